"""Text <-> token ids: byte-level BPE in the files of GPT-2, and how a conversation becomes ids with a loss mask.

tiktoken encodes, the trainer is ours. GPT-2's vocab.json and merges.txt load, and transformers opens what is saved.

A rendered text is a list of segments (text, by_assistant). An EOS follows each segment of the assistant's; its
tokens and that EOS are what training supervises. Conversations have hh-rlhf's plain form:
    [("\\n\\nHuman: hi\\n\\nAssistant:", False), (" Hello.", True), ("\\n\\nHuman: bye\\n\\nAssistant:", False), ...]
A *prompt* is the plain text up to where the assistant speaks; a *response* is bare text ("Hello.").
"""

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

from minirlhf import UserError, write_atomically
from minirlhf.json_text import to_json
from minirlhf.special_tokens import EOS, refuse_other_tokenizers

Segment = tuple[str, bool]  # (text, by_assistant)

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

# GPT-2's rule for cutting a text into pieces, within which tokens merge. The trainer's differs twice: each digit is a
# piece, so that numbers stay spelt out and sums can be learnt (without merges of digits, GPT-2's rule encodes to the
# same ids); and runs are bounded, so that a megabyte without a space is no single word.
PIECE = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TRAINING_PIECE = regex.compile(PIECE.replace(r"\p{N}+", r"\p{N}").replace("+", "{1,32}"))
LONGEST_SPACE = 10_000  # tiktoken's regex engine panics on a run of some 100 000 blanks: longer runs are cut here

# GPT-2 writes bytes as symbols: a printable Latin-1 byte as itself, the others from U+0100 on. In the ids' order.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = _PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE]
SYMBOLS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]
_BYTE_OF = dict(zip(SYMBOLS, BYTES))

CHAT_TEMPLATE = (  # conversation_segments again, for transformers' apply_chat_template
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{{ '\n\nAssistant:' + (' ' + text if text else '') + eos_token }}"
    "{% else %}{{ text if m['role'] == 'system' else '\n\nHuman: ' + text }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def conversation_segments(messages: list[dict]) -> list[Segment]:
    """Messages with role and content -> segments; those of a prompt, where the last message is not the assistant's.
    A system text can only come first; it stands as it is before the first "\\n\\nHuman:"."""
    segments, text = [], ""
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(content, str):
            raise UserError(f"message {number} must be an object with a text 'role' and a text 'content'")
        if role == "assistant":
            segments += [(text + ASSISTANT, False), (response_text(ASSISTANT, content), True)]
            text = ""
        elif role in ("user", "human"):
            text += f"{HUMAN} {content}"
        elif role == "system" and number == 1:
            text = content
        else:
            raise UserError(f"message {number} has role {role!r}; use user, assistant, or system for the first message")
    return segments if segments and not text else [*segments, (text + ASSISTANT, False)]


def parse_prompt(text: str) -> list[Segment]:
    """Plain text -> segments. An assistant turn that another turn follows is the assistant's, an empty one too: its
    text is "" then. The last one is open."""
    segments, start = [], 0
    for marker, following in pairwise(re.finditer(f"{HUMAN}|{ASSISTANT}", text)):
        if marker[0] == ASSISTANT:
            segments.append((text[start : marker.end()], False))
            segments.append((text[marker.end() : following.start()], True))
            start = following.start()
    return [*segments, (text[start:], False)]


def response_text(prompt: str, response: str) -> str:
    """The response as it stands behind its prompt: in a conversation a space divides the two."""
    return f" {response}" if response and prompt.endswith(ASSISTANT) else response


class Tokenizer:
    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], where: str = "the tokenizer's"):
        """vocab and merges as the two files have them."""
        remedy = "vocab.json and merges.txt must be intact, and from the same tokenizer"
        if missing := [token for token in (EOS, *SYMBOLS) if token not in vocab]:
            raise UserError(f"{where} vocab.json lacks {missing[0]}, of {EOS} and GPT-2's 256 byte symbols; {remedy}")
        if not all(type(i) is int and i >= 0 for i in vocab.values()) or len(set(vocab.values())) < len(vocab):
            raise UserError(f"{where} vocab.json gives an id twice, or one that is no whole number; {remedy}")
        ranks = {symbol: rank for rank, symbol in enumerate(SYMBOLS)}  # the order of merging, which ids need not follow
        for left, right in merges:
            made = left + right
            if made not in vocab or made in ranks or left not in ranks or right not in ranks:
                raise UserError(f"{where} merges.txt: {left} {right} is out of order, or not in vocab.json; {remedy}")
            ranks[made] = len(ranks)
        self.vocab, self.merges, self.eos_id = vocab, merges, vocab[EOS]
        self.vocab_size = max(vocab.values()) + 1  # ids that nothing uses are allowed, as in padded vocabularies
        ids, raw = [vocab[token] for token in ranks], [bytes(_BYTE_OF[symbol] for symbol in token) for token in ranks]
        self._id_of_rank = None if ids == list(range(len(ids))) else ids  # None: they agree, as GPT-2's do
        self._bytes = {i: token.encode("utf-8", "replace") for token, i in vocab.items()}  # as EOS stays
        self._bytes |= zip(ids, raw)
        ranks = {token: rank for rank, token in enumerate(raw)}
        self._bpe = tiktoken.Encoding("bpe", pat_str=PIECE, mergeable_ranks=ranks, special_tokens={})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """vocab.json and merges.txt, or where they are missing a tokenizer.json, which is all that newer transformers write.
        UserError for a tokenizer that is not GPT-2's: another EOS, added tokens, text that is changed before it is cut."""
        vocab_file, merges_file, both = (Path(folder) / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
        try:
            if both.exists() and not vocab_file.exists():
                raw, merges_file = json.loads(both.read_text(encoding="utf-8")), both
                vocab = raw["model"]["vocab"] | {token["content"]: token["id"] for token in raw["added_tokens"]}
                lines = [line if isinstance(line, str) else " ".join(line) for line in raw["model"]["merges"]] or [""]
            else:
                vocab = dict(json.loads(vocab_file.read_text(encoding="utf-8")))
                lines = merges_file.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; a tokenizer is vocab.json and merges.txt") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:     # not UTF-8, not JSON, not these
            raise UserError(f"{vocab_file} or {merges_file.name} is damaged: {error}; take an intact copy") from None
        refuse_other_tokenizers(Path(folder), vocab)
        merges = [tuple(line.split(" ")) for line in lines[lines[0].startswith("#version") :] if line]
        if wrong := [merge for merge in merges if len(merge) != 2]:
            raise UserError(f"{merges_file}: {wrong[0]} are not two tokens on a line; take an intact copy")
        return cls(vocab, merges, f"{folder}:")

    def save_pretrained(self, folder: str | Path) -> None:
        config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": EOS, "eos_token": EOS, "unk_token": EOS,
                  "add_prefix_space": False, "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}
        merges = "".join(f"{left} {right}\n" for left, right in self.merges)
        files = {"vocab.json": to_json(self.vocab), "merges.txt": "#version: 0.2\n" + merges,
                 "tokenizer_config.json": to_json(config, indent=2)}
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(Path(folder) / name, text.encode())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-pair encoding: 256 bytes, merges, EOS; fewer tokens than asked for once no pair occurs twice. Of equally
        frequent pairs the one with the smaller ids comes first, so that the texts' order does not matter."""
        if vocab_size < 257:
            raise UserError(f"a vocabulary of {vocab_size} tokens is too small; 256 bytes and {EOS} make 257")
        pieces = Counter(piece for text in texts for piece in TRAINING_PIECE.findall(text))
        words = [[BYTES.index(byte) for byte in piece.encode("utf-8", "replace")] for piece in pieces]
        merges = learn_merges(words, list(pieces.values()), vocab_size - 257)
        tokens = [*SYMBOLS]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        vocab = {token: i for i, token in enumerate([*tokens, EOS])}
        return cls(vocab, [(tokens[left], tokens[right]) for left, right in merges])

    def encode(self, text: str) -> list[int]:
        """Text that looks like a special token is text. Lone surrogates, which are no characters, become U+FFFD."""
        ranks, start = [], 0
        for run in re.finditer(rf"(?<!\s)\s{{{LONGEST_SPACE},}}", text):
            for cut in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE):
                ranks += self._bpe.encode_ordinary(text[start:cut])
                start = cut
        ranks += self._bpe.encode_ordinary(text[start:])
        return ranks if self._id_of_rank is None else [self._id_of_rank[rank] for rank in ranks]

    def decode(self, ids: Iterable[int]) -> str:
        """EOS is shown as <|endoftext|>; broken UTF-8 and ids that no token has as U+FFFD."""
        return b"".join(self._bytes.get(i, b"\xff") for i in map(int, ids)).decode("utf-8", "replace")

    def render(self, segments: list[Segment]) -> tuple[list[int], list[bool]]:
        """Segments -> ids, and the loss mask: True on the assistant's tokens and the EOS after them."""
        ids, mask = [], []
        for text, by_assistant in segments:
            tokens = self.encode(text) + [self.eos_id] * by_assistant
            ids += tokens
            mask += [by_assistant] * len(tokens)
        return ids, mask

    def encode_prompt(self, text: str) -> list[int]:
        return self.render(parse_prompt(text))[0]

    def encode_response(self, prompt: str, response: str, finished: bool = True) -> list[int]:
        """Unfinished is a response that the length limit cut: it has no EOS."""
        return self.encode(response_text(prompt, response)) + [self.eos_id] * finished

    def decode_response(self, prompt: str, ids: Iterable[int]) -> str:
        """The bare text up to the first EOS: encode_response backwards."""
        ids = [int(i) for i in ids]
        text = self.decode(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids)
        return text.removeprefix(" ") if prompt.endswith(ASSISTANT) else text

    def show(self, ids: Iterable[int], mask: Iterable[bool]) -> str:
        """For the terminal: supervised tokens green, others dim, a bar after each token, control characters escaped."""
        def visible(i: int) -> str:
            return "".join(c if c.isprintable() else "⏎\n" if c == "\n" else repr(c)[1:-1] for c in self.decode([i]))

        return "".join(f"\x1b[{32 if supervised else 2}m{visible(i)}\x1b[0m|" for i, supervised in zip(ids, mask))


def learn_merges(words: list[list[int]], counts: list[int], wanted: int) -> list[tuple[int, int]]:
    """The most frequent pair of neighbours becomes token 256, then the next 257, ... Counts of pairs are kept up to
    date by an index pair -> words, and read off a heap whose stale entries go back corrected. Changes words."""
    pair_count, words_of = Counter(), defaultdict(set)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pair_count[pair] += counts[w]
            words_of[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < wanted and heap:
        count, pair = heapq.heappop(heap)
        if -count != pair_count[pair]:
            heapq.heappush(heap, (-pair_count[pair], pair))
            continue
        if count > -2:
            break
        new = 256 + len(merges)
        merges.append(pair)
        change = Counter()
        for w in words_of.pop(pair):
            word = []
            for token in words[w]:
                if word and (word[-1], token) == pair:
                    word[-1] = new
                else:
                    word.append(token)
            for neighbours in pairwise(words[w]):
                change[neighbours] -= counts[w]
            for neighbours in pairwise(word):
                change[neighbours] += counts[w]
                if new in neighbours:
                    words_of[neighbours].add(w)
            words[w] = word
        for neighbours, difference in change.items():
            pair_count[neighbours] += difference
            if difference > 0:
                heapq.heappush(heap, (-pair_count[neighbours], neighbours))
    return merges
