"""Text and conversations <-> token ids: byte-level BPE, as GPT-2, SmolLM, Qwen and Llama 3 have it.

tiktoken encodes; bpe.py trains vocabularies. Folders of such tokenizers load here, and
transformers opens the folders that are saved here and computes the same ids.

A conversation is a tuple of turns (role, text). chat.py says how it is written in the model's own
format. Only this file makes ids of it, so what a message quotes can never become a turn. Training
supervises what the assistant says and the token (EOS) that ends its turn.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import tiktoken

from minirlhf import UserError, bpe, tokenizer_files
from minirlhf.bpe import BYTE_OF_SYMBOL, SYMBOLS, to_bytes
from minirlhf.chat import FORMATS, PLAIN, ChatFormat, Piece, Turns, is_raw, recognise
from minirlhf.cli import printable
from minirlhf.files import to_json, write_atomically
from minirlhf.tokenizer_files import INTACT, Spec

LONGEST_SPACE = 10_000  # tiktoken's regex engine fails on longer runs of blanks, so we cut them

NEVER_IN_TEXT = "ÿ"  # the byte 0xFF, which UTF-8 does not use
# A vocabulary may lack control characters and the first bytes of characters that Unicode has not
# assigned, as SmolLM's does. Text is written with the other bytes.
_UNUSED = [0xC0, 0xC1, 0xF1, 0xF2]
TEXT_BYTES = {*b"\t\n\r", *range(32, 127), *range(128, 0xF5)}.difference(_UNUSED)
NEEDED = [symbol for symbol in SYMBOLS if BYTE_OF_SYMBOL[symbol] in TEXT_BYTES]


class Tokenizer:
    vocab: dict[str, int]  # token -> id
    vocab_size: int
    eos_id: int  # ends what the assistant says; is trained, carries the reward
    stop_ids: tuple[int, ...]  # end generation: eos_id and other EOS ids of the folder
    bos_id: int | None  # before every conversation
    pad_id: int | None  # for other libraries: rows are padded by their lengths here
    chat_format: str  # "plain", "chatml" or "llama3"

    def __init__(self, spec: Spec, chat: ChatFormat | None = None):
        """spec: what the tokenizer's files say. chat: how it writes conversations; None: plain."""
        self.spec = spec
        self.chat = chat or replace(PLAIN, end=spec.eos_token)
        self.chat_format = self.chat.name
        self.vocab = spec.vocab
        self.merges = spec.merges
        self.vocab_size = max(self.vocab.values()) + 1  # above len(vocab) where ids are unused

        # 1. special tokens
        self.eos_id = self.vocab[self.chat.end]
        self.stop_ids = tuple(dict.fromkeys([self.eos_id, *spec.stop_ids]))
        self.bos_id = self.vocab.get(self.chat.bos)
        self.pad_token = padding_token(spec, self.chat)
        self.pad_id = self.vocab.get(self.pad_token)
        self._special_tokens = any_of(spec.special_tokens)
        self._text_tokens = any_of(spec.text_tokens)

        # 2. bytes of each id
        added = spec.special_tokens | spec.text_tokens
        self._bytes = {}
        for token, i in self.vocab.items():
            is_text = token in added or not BYTE_OF_SYMBOL.keys() >= set(token)
            self._bytes[i] = token.encode() if is_text else to_bytes(token)

        # 3. byte-pair encoding: tiktoken numbers tokens in the order of merging
        tokens = merge_order(spec)
        tokens += [symbol for symbol in SYMBOLS if symbol not in self.vocab]
        self._ids = [self.vocab.get(token) for token in tokens]
        ranks = {to_bytes(token): rank for rank, token in enumerate(tokens)}
        self._bpe = tiktoken.Encoding(
            "bpe", pat_str=spec.pattern, mergeable_ranks=ranks, special_tokens={}
        )

    # ------------------------------------------------------------------ text

    def encode(self, text: str) -> list[int]:
        """Text that looks like a special token is text. Lone surrogates become U+FFFD."""
        ids = []
        for part in self._text_tokens.split(text):
            if part in self.spec.text_tokens:
                ids.append(self.vocab[part])
            else:
                ids += self._encode_bytes(part)
        return ids

    def _encode_bytes(self, text: str) -> list[int]:
        if self.spec.nfc:
            text = unicodedata.normalize("NFC", text)
        ranks = []
        start = 0
        for run in re.finditer(rf"(?<!\s)\s{{{LONGEST_SPACE},}}", text):
            for cut in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE):
                ranks += self._bpe.encode_ordinary(text[start:cut])
                start = cut
        ranks += self._bpe.encode_ordinary(text[start:])
        ids = [self._ids[rank] for rank in ranks]
        return [i for i in ids if i is not None]  # SmolLM has no token for some control characters

    def decode(self, ids: Iterable[int]) -> str:
        """Special tokens are written out; broken UTF-8 and ids without a token become U+FFFD."""
        parts = [self._bytes.get(int(i), b"\xff") for i in ids]
        return b"".join(parts).decode("utf-8", "replace")

    # ------------------------------------------------------------------ conversations

    def render(self, turns: Turns) -> tuple[list[int], list[bool]]:
        """A conversation -> ids and loss mask: True on assistant turns and the EOS after each."""
        ids = []
        mask = []
        for supervised, pieces in groupby(self.chat.pieces(turns), lambda piece: piece.supervised):
            tokens = self._encode_pieces(pieces)
            ids += tokens
            mask += [supervised] * len(tokens)
        return ids, mask

    def encode_prompt(self, turns: Turns) -> list[int]:
        """All turns and the header behind which the assistant speaks."""
        ids, _ = self.render((*turns, ("assistant", "")))
        return ids[:-1]  # without the EOS of the empty response

    def encode_response(self, prompt: Turns, response: str, finished: bool = True) -> list[int]:
        """finished: add EOS. A response that the length limit cut has none."""
        ids = self._encode_pieces(self.chat.answer(prompt, response))
        return ids if finished else ids[:-1]

    def decode_response(self, prompt: Turns, ids: Iterable[int]) -> str:
        """The text up to the first token that ends it: the inverse of encode_response."""
        ids = [int(i) for i in ids]
        for end, i in enumerate(ids):
            if i in self.stop_ids:
                ids = ids[:end]
                break
        text = self.decode(ids)
        return text if is_raw(prompt) else text.removeprefix(self.chat.space)

    def _encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Special tokens count in the format's own strings alone. Tokens span pieces."""
        ids = []
        text = ""
        for piece in pieces:
            if not piece.is_markup:
                text += piece.text
                continue
            for part in self._special_tokens.split(piece.text):
                if part in self.spec.special_tokens:
                    ids += self.encode(text)
                    ids.append(self.vocab[part])
                    text = ""
                else:
                    text += part
        return ids + self.encode(text)

    def show(self, ids: Iterable[int], mask: Iterable[bool]) -> str:
        """For the terminal: supervised tokens green, others dim, a bar after each token."""
        shown = []
        for i, supervised in zip(ids, mask):
            colour = 32 if supervised else 2
            text = printable(self.decode([i])).replace("\n", "⏎\n")
            shown.append(f"\x1b[{colour}m{text}\x1b[0m|")
        return "".join(shown)

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, folder: str | Path, chat_format: str = "auto") -> "Tokenizer":
        """Read tokenizer.json, or vocab.json and merges.txt.

        chat_format: plain, chatml or llama3; auto: that of the folder's chat template.
        Raises UserError for damaged files and for what is not supported.
        """
        spec = tokenizer_files.read(Path(folder))
        return cls(spec, choose_format(spec, chat_format))

    def save_pretrained(self, folder: str | Path, padding: bool = False) -> None:
        """Write tokenizer.json as it was read, or vocab.json and merges.txt; tokenizer_config.json.

        Files of another tokenizer in the folder, which would be read before these, are deleted.
        padding: name a token to fill up batches, as transformers needs for a reward model.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.spec.config | {"eos_token": self.chat.end}
        config["chat_template"] = self.chat.template()
        config.pop("auto_map", None)  # code of strangers
        if padding and self.pad_id is not None:
            config |= {"pad_token": self.pad_token, "padding_side": "right"}
        contents = {}  # of files
        if self.spec.tokenizer_json:
            config["tokenizer_class"] = "PreTrainedTokenizerFast"  # it takes the file as it is
            contents["tokenizer.json"] = self.spec.tokenizer_json
        else:
            config |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
            config |= {"bos_token": self.chat.end, "unk_token": self.chat.end}
            config |= {"clean_up_tokenization_spaces": False}
            lines = [f"{left} {right}\n" for left, right in self.merges]
            contents["vocab.json"] = to_json(self.vocab).encode()
            contents["merges.txt"] = ("#version: 0.2\n" + "".join(lines)).encode()
        contents["tokenizer_config.json"] = to_json(config, indent=2).encode()
        for name in tokenizer_files.NAMES:
            if name not in contents:
                (folder / name).unlink(missing_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A vocabulary of its own: see bpe.train."""
        return cls(bpe.train(texts, vocab_size))


# ---------------------------------------------------------------------- from a folder's Spec


def choose_format(spec: Spec, name: str) -> ChatFormat:
    """name: plain, chatml, llama3, or auto for that of the chat template.

    A folder without a template is plain.
    """
    if name not in ("auto", *FORMATS):
        raise UserError(f"--chat_format {name}: choose from auto, {', '.join(FORMATS)}")
    bos = spec.bos_token if spec.puts_bos else ""
    formats = FORMATS | {"plain": replace(PLAIN, end=spec.eos_token, bos=bos)}
    own = formats["plain"]
    if spec.chat_template:
        own = recognise(spec.chat_template, spec.bos_token, spec.eos_token)
    if name == "auto" and own is None:
        raise UserError(
            f"{spec.source}: the chat template is none that is known; choose from "
            f"{', '.join(FORMATS)} with --chat_format (train_sft.py, sample.py)"
        )
    chat = own if own and name in ("auto", own.name) else formats[name]
    for token in re.findall(r"<\|\w+\|>", chat.markup()):
        if token not in spec.vocab:
            raise UserError(
                f"{spec.source}: the chat format {chat.name} needs the token {token}, which the "
                "vocabulary lacks; choose another with --chat_format, such as plain"
            )
    return replace(chat, text_bos=bos)


def padding_token(spec: Spec, chat: ChatFormat) -> str:
    """What fills up batches in transformers, which reads a reward behind the last other token.

    Not EOS, for that is the token to read. The folder's own padding; a special token that nothing
    uses; or a byte that no text has.
    """
    if spec.pad_token not in ("", chat.end):
        return spec.pad_token
    stops = {token for token in spec.special_tokens if spec.vocab[token] in spec.stop_ids}
    unused = spec.special_tokens - stops - {spec.bos_token, chat.end}
    unused = [token for token in unused if token not in chat.markup()]
    named = [token for token in unused if "pad" in token]
    return min(named or unused, key=spec.vocab.get, default=NEVER_IN_TEXT)


def merge_order(spec: Spec) -> list[str]:
    """All tokens of bytes in the order of merging, which their ids need not follow.

    A token may come from several pairs, which follow each other (Llama 3's do).
    """
    tokens = dict.fromkeys(symbol for symbol in SYMBOLS if symbol in spec.vocab)
    for symbol in NEEDED:
        if symbol not in tokens:
            raise UserError(f"{spec.source}: the vocabulary lacks {symbol!r}; {INTACT}")
    for merged, pairs in groupby(spec.merges, "".join):
        is_next = any(left in tokens and right in tokens for left, right in pairs)
        if not is_next or merged in tokens or merged not in spec.vocab:
            raise UserError(
                f"{spec.source}: the merge to {merged!r} is out of order, or not in the "
                f"vocabulary; {INTACT}"
            )
        tokens[merged] = None
    return list(tokens)


def any_of(tokens: Iterable[str]) -> re.Pattern:
    """Its split() cuts a text before and behind every token, the longest of those that fit."""
    longest_first = sorted(tokens, key=len, reverse=True)
    alternatives = "|".join(re.escape(token) for token in longest_first)
    return re.compile(f"({alternatives})" if alternatives else "((?!))")
