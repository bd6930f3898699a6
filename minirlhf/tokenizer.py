"""Text and conversations <-> token ids: byte-level BPE in GPT-2's files.

tiktoken encodes; the trainer of vocabularies is ours. Folders of GPT-2's tokenizer load here, and
transformers opens the folders that are saved here.

A conversation is a tuple of turns (role, text). Only this file renders turns into ids, so what a
message quotes can never become a turn. The format is that of Anthropic's hh-rlhf:

    \\n\\nHuman: What is 2 + 2?\\n\\nAssistant: It is 4.<|endoftext|>

Training supervises each assistant turn and the end-of-text token (EOS) behind it.
"""

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

from minirlhf import UserError
from minirlhf.files import to_json, write_atomically
from minirlhf.special_tokens import EOS, refuse_other_tokenizers

# Roles are "system", "user", "assistant" and "text": a raw prompt that the model continues as it
# is. A "text" turn can only come first. (("text", ""),) is the empty prompt.
Turn = tuple[str, str]
Turns = tuple[Turn, ...]

USER_HEADER, ASSISTANT_HEADER = "\n\nHuman:", "\n\nAssistant:"

# GPT-2's rule for cutting a text into pieces; tokens merge within a piece only.
PIECE = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The trainer keeps digits apart, so that a small model can learn sums, and bounds a piece's length.
TRAINING_PIECE = regex.compile(PIECE.replace(r"\p{N}+", r"\p{N}").replace("+", "{1,32}"))
LONGEST_SPACE = 10_000  # tiktoken's regex engine fails on longer runs of blanks, so we cut them

# GPT-2 writes a byte as a visible character: printable Latin-1 as itself, the rest from U+0100 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = _PRINTABLE + _OTHERS  # in the order of their ids
SYMBOLS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(len(_OTHERS))]
BYTE_OF_SYMBOL = dict(zip(SYMBOLS, BYTES))

# The same format for transformers' apply_chat_template.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '\n\nAssistant:' + (' ' + text if text else '') + eos_token }}"
    "{% else %}{{ text if m['role'] == 'system' else '\n\nHuman: ' + text }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def is_raw(turns: Turns) -> bool:
    """Whether the model continues a text instead of answering in a conversation."""
    return turns[0][0] == "text"


def render_text(turns: Turns) -> Iterator[tuple[str, bool]]:
    """Turns -> the texts that are encoded one by one, and whether the assistant wrote each."""
    header = "" if is_raw(turns) else ASSISTANT_HEADER
    context = ""
    for role, text in turns:
        if role == "assistant":
            yield context + header, False
            yield response_text(turns, text), True
            context = ""
        elif role == "user":
            context += f"{USER_HEADER} {text}"
        else:
            context += text
    if context:
        yield context, False


def prompt_text(turns: Turns) -> str:
    """A prompt as it is encoded, with the open header behind it: a key that is its own alone."""
    return "".join(text for text, _ in render_text((*turns, ("assistant", ""))))


def response_text(prompt: Turns, response: str) -> str:
    """The response as it stands behind its prompt: in a conversation, a space divides the two."""
    return response if is_raw(prompt) or not response else " " + response


class Tokenizer:
    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], source="tokenizer"):
        """vocab: token -> id. merges: pairs in the order of merging, as GPT-2's files hold them.

        source: the folder, for error messages.
        """
        check_vocab(vocab, source)
        tokens = merged_tokens(vocab, merges, source)
        self.vocab = vocab
        self.merges = merges
        self.eos_id = vocab[EOS]
        self.vocab_size = max(vocab.values()) + 1  # larger than len(vocab) where ids are unused

        raw_bytes = [bytes(BYTE_OF_SYMBOL[symbol] for symbol in token) for token in tokens]
        self._ids = [vocab[token] for token in tokens]  # rank in merging order -> id
        self._bytes = dict(zip(self._ids, raw_bytes))
        self._bytes[self.eos_id] = EOS.encode()
        ranks = {token: rank for rank, token in enumerate(raw_bytes)}
        self._bpe = tiktoken.Encoding(
            "bpe", pat_str=PIECE, mergeable_ranks=ranks, special_tokens={}
        )

    # ------------------------------------------------------------------ text

    def encode(self, text: str) -> list[int]:
        """Text that looks like a special token is text. Lone surrogates become U+FFFD."""
        ranks = []
        start = 0
        for run in re.finditer(rf"(?<!\s)\s{{{LONGEST_SPACE},}}", text):
            for cut in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE):
                ranks += self._bpe.encode_ordinary(text[start:cut])
                start = cut
        ranks += self._bpe.encode_ordinary(text[start:])
        return [self._ids[rank] for rank in ranks]

    def decode(self, ids: Iterable[int]) -> str:
        """EOS is shown as <|endoftext|>; broken UTF-8 and ids without a token become U+FFFD."""
        parts = [self._bytes.get(int(i), b"\xff") for i in ids]
        return b"".join(parts).decode("utf-8", "replace")

    # ------------------------------------------------------------------ conversations

    def render(self, turns: Turns) -> tuple[list[int], list[bool]]:
        """A conversation -> ids and loss mask: True on assistant turns and the EOS after each."""
        ids = []
        mask = []
        if is_raw(turns) and not turns[0][1]:  # an empty prompt: the text starts behind an EOS
            ids.append(self.eos_id)
            mask.append(False)
        for text, by_assistant in render_text(turns):
            tokens = self.encode(text)
            if by_assistant:
                tokens.append(self.eos_id)
            ids += tokens
            mask += [by_assistant] * len(tokens)
        return ids, mask

    def encode_prompt(self, turns: Turns) -> list[int]:
        """All turns and the header behind which the assistant speaks."""
        ids, _ = self.render((*turns, ("assistant", "")))
        return ids[:-1]  # without the EOS of the empty response

    def encode_response(self, prompt: Turns, response: str, finished: bool = True) -> list[int]:
        """finished: add EOS. A response that the length limit cut has none."""
        ids = self.encode(response_text(prompt, response))
        return [*ids, self.eos_id] if finished else ids

    def decode_response(self, prompt: Turns, ids: Iterable[int]) -> str:
        """The text up to the first EOS: the inverse of encode_response."""
        ids = [int(i) for i in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        text = self.decode(ids)
        return text if is_raw(prompt) else text.removeprefix(" ")

    def show(self, ids: Iterable[int], mask: Iterable[bool]) -> str:
        """For the terminal: supervised tokens green, others dim, a bar after each token."""
        shown = []
        for i, supervised in zip(ids, mask):
            colour = 32 if supervised else 2
            shown.append(f"\x1b[{colour}m{visible(self.decode([i]))}\x1b[0m|")
        return "".join(shown)

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """Read vocab.json and merges.txt, or tokenizer.json where there is no vocab.json."""
        folder = Path(folder)
        vocab, merges = read_files(folder)
        refuse_other_tokenizers(folder, vocab)
        return cls(vocab, merges, str(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": EOS,
            "eos_token": EOS,
            "unk_token": EOS,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{left} {right}\n" for left, right in self.merges]
        write_atomically(folder / "vocab.json", to_json(self.vocab).encode())
        write_atomically(folder / "merges.txt", ("#version: 0.2\n" + "".join(lines)).encode())
        write_atomically(folder / "tokenizer_config.json", to_json(config, indent=2).encode())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-pair encoding: 256 bytes, then merges, then EOS.

        The vocabulary is smaller than asked for where no pair occurs twice. Of equally frequent
        pairs the one with the smaller ids is merged first: the order of the texts does not matter.
        """
        if vocab_size < 257:
            raise UserError(
                f"a vocabulary of {vocab_size} tokens is too small; 256 bytes and {EOS} make 257"
            )
        pieces = Counter(piece for text in texts for piece in TRAINING_PIECE.findall(text))
        id_of_byte = {byte: i for i, byte in enumerate(BYTES)}
        words = [
            [id_of_byte[byte] for byte in piece.encode("utf-8", "replace")] for piece in pieces
        ]
        merges = learn_merges(words, list(pieces.values()), vocab_size - 257)
        tokens = list(SYMBOLS)
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        vocab = {token: i for i, token in enumerate([*tokens, EOS])}
        return cls(vocab, [(tokens[left], tokens[right]) for left, right in merges])


def visible(text: str) -> str:
    """Control characters escaped, line breaks marked."""
    shown = []
    for character in text:
        if character == "\n":
            shown.append("⏎\n")
        elif character.isprintable():
            shown.append(character)
        else:
            shown.append(repr(character)[1:-1])
    return "".join(shown)


# ---------------------------------------------------------------------- reading a folder

INTACT = "vocab.json and merges.txt must be intact, and from the same tokenizer"


def read_files(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The folder's vocab and merges. UserError where they are missing, damaged or not GPT-2's."""
    path = folder / "vocab.json"
    try:
        if not path.exists() and (folder / "tokenizer.json").exists():
            path = folder / "tokenizer.json"
            vocab, lines = read_tokenizer_json(path)
        else:
            vocab = dict(json.loads(path.read_text(encoding="utf-8")))
            path = folder / "merges.txt"
            lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; a tokenizer is vocab.json and merges.txt"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; use an intact copy") from None

    merges = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise UserError(f"{path}, merge {number}: {line[:60]!r} is not two tokens; {INTACT}")
        merges.append((parts[0], parts[1]))
    return vocab, merges


def read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[str]]:
    """Newer versions of transformers write this one file instead of two."""
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = dict(content["model"]["vocab"])
    for token in content["added_tokens"]:
        vocab[token["content"]] = token["id"]
    lines = []
    for merge in content["model"]["merges"]:
        lines.append(merge if isinstance(merge, str) else " ".join(merge))
    return vocab, lines


def check_vocab(vocab: dict[str, int], source: str) -> None:
    for token in (EOS, *SYMBOLS):
        if token not in vocab:
            raise UserError(f"{source}: the vocabulary lacks {token!r}; {INTACT}")
    ids = list(vocab.values())
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        raise UserError(f"{source}: the vocabulary has an id twice, or a wrong one; {INTACT}")


def merged_tokens(vocab: dict[str, int], merges: list, source: str) -> list[str]:
    """All tokens but EOS in the order of merging, which their ids need not follow."""
    tokens = dict.fromkeys(SYMBOLS)
    for left, right in merges:
        merged = left + right
        if merged not in vocab or merged in tokens or left not in tokens or right not in tokens:
            raise UserError(
                f"{source}: the merge {left} {right} is out of order or not in vocab.json; {INTACT}"
            )
        tokens[merged] = None
    return list(tokens)


# ---------------------------------------------------------------------- training a vocabulary


def learn_merges(words: list[list[int]], counts: list[int], wanted: int) -> list[tuple[int, int]]:
    """The most frequent pair of neighbours becomes token 256, the next most frequent 257, ...

    words: ids of each piece; changed in place. counts: how often each occurs. The counts of pairs
    are kept up to date through an index pair -> words. A heap holds them; an entry that is out of
    date goes back with its new count.
    """
    pair_count = Counter()
    words_with = defaultdict(set)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pair_count[pair] += counts[w]
            words_with[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)

    merges = []
    while len(merges) < wanted and heap:
        negative_count, pair = heapq.heappop(heap)
        if -negative_count != pair_count[pair]:
            heapq.heappush(heap, (-pair_count[pair], pair))
            continue
        if pair_count[pair] < 2:
            break
        new = 256 + len(merges)
        merges.append(pair)
        change = Counter()
        for w in words_with.pop(pair):
            word = merge_pair(words[w], pair, new)
            for neighbours in pairwise(words[w]):
                change[neighbours] -= counts[w]
            for neighbours in pairwise(word):
                change[neighbours] += counts[w]
                if new in neighbours:
                    words_with[neighbours].add(w)
            words[w] = word
        for neighbours, difference in change.items():
            pair_count[neighbours] += difference
            if difference > 0:
                heapq.heappush(heap, (-pair_count[neighbours], neighbours))
    return merges


def merge_pair(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged
