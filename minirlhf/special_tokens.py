"""What a folder says of its tokenizer beside vocabulary and merges: any but GPT-2's is refused.

Nothing here changes a tokenizer. A folder with another EOS, with added tokens, or with tokens that
are put around every text would be read as if it had none of them, and saved without them.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minirlhf import UserError

EOS = "<|endoftext|>"

ONLY_EOS = f"the only special token that is supported is {EOS}"

NAMED_TOKENS = (
    "eos_token",
    "bos_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
    "pad_token",
)
TOKEN_LISTS = (
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
)
FLAGS = ("add_prefix_space", "add_bos_token", "add_eos_token")


def refuse_other_tokenizers(folder: Path, vocab: dict[str, int]) -> None:
    """UserError with file, field and value, unless the only special token is <|endoftext|>.

    vocab: the folder's tokens and their ids.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        check_tokenizer_config(folder / name, vocab)
    added_tokens = folder / "added_tokens.json"
    check_added_tokens(added_tokens, "the file", read_object(added_tokens).items(), vocab)
    check_tokenizer_json(folder / "tokenizer.json", vocab)
    for name in ("config.json", "generation_config.json"):
        check_eos_id(folder / name, vocab)


def check_tokenizer_config(path: Path, vocab: dict[str, int]) -> None:
    content = read_object(path)
    for field in NAMED_TOKENS:
        token = content_of(path, field, content.get(field))
        is_ordinary_padding = field == "pad_token" and token in vocab  # nothing here reads padding
        if token not in (None, EOS) and not is_ordinary_padding:
            raise not_supported(path, field, token, ONLY_EOS)
    for field in TOKEN_LISTS:
        tokens = content.get(field) or []
        if not isinstance(tokens, list | dict):
            raise damaged(path, f"{field} is {tokens!r:.80}, neither a list nor an object")
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            if content_of(path, field, token) != EOS:
                raise not_supported(path, field, tokens, ONLY_EOS)
    for field in FLAGS:
        check_flag(path, field, content.get(field))
    decoder = content.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise damaged(path, f"added_tokens_decoder is {decoder!r:.80}, not an object")
    added = []
    for number, token in decoder.items():
        added.append((content_of(path, f"added_tokens_decoder.{number:.20}", token), number))
    check_added_tokens(path, "added_tokens_decoder", added, vocab)


def check_tokenizer_json(path: Path, vocab: dict[str, int]) -> None:
    content = read_object(path)
    tokens = content.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise damaged(path, f"added_tokens is {tokens!r:.80}, not a list of objects")
    added = [(content_of(path, "added_tokens", token), token.get("id")) for token in tokens]
    check_added_tokens(path, "added_tokens", added, vocab)
    if content.get("normalizer"):
        raise not_supported(path, "normalizer", content["normalizer"], "GPT-2 has none")
    if content:
        check_pre_tokenizer(path, content.get("pre_tokenizer"))
    for part in parts_of(path, "post_processor", content.get("post_processor")):
        # GPT-2's is ByteLevel: that only moves offsets, whatever its add_prefix_space says.
        adds_nothing = part.get("type") == "TemplateProcessing" and not part.get("special_tokens")
        if part.get("type") != "ByteLevel" and not adds_nothing:
            raise not_supported(path, "post_processor", part, "no token may be put around a text")


def check_pre_tokenizer(path: Path, pre_tokenizer: Any) -> None:
    if not isinstance(pre_tokenizer, dict):
        raise damaged(path, f"pre_tokenizer is {pre_tokenizer!r:.80}, not an object")
    check_flag(path, "pre_tokenizer.add_prefix_space", pre_tokenizer.get("add_prefix_space"))
    # Older files do not have the field.
    uses_gpt2s_pattern = pre_tokenizer.get("use_regex", True) is True
    if pre_tokenizer.get("type") != "ByteLevel" or not uses_gpt2s_pattern:
        why = "it does not cut text as GPT-2 does"
        raise not_supported(path, "pre_tokenizer", pre_tokenizer, why)


def parts_of(path: Path, field: str, processor: Any) -> Iterator[dict]:
    """The steps of a post-processor, which may be none, one, or a Sequence of them."""
    if processor is None:
        return
    if not isinstance(processor, dict):
        raise damaged(path, f"{field} is {processor!r:.80}, not an object")
    if processor.get("type") != "Sequence":
        yield processor
        return
    steps = processor.get("processors")
    if not isinstance(steps, list):
        raise damaged(path, f"{field}.processors is {steps!r:.80}, not a list")
    for step in steps:
        yield from parts_of(path, f"{field}.processors", step)


def check_added_tokens(
    path: Path, field: str, added: Iterable[tuple[str | None, Any]], vocab: dict[str, int]
) -> None:
    """added: (token, id) of each; an id may be a text, as JSON's keys are."""
    for token, number in added:
        if token != EOS:
            raise UserError(
                f"{path}: {field} holds the added token {token!r:.80} (id {number!r:.20}): only "
                f"{EOS} is supported, any other would be lost; take a model without added tokens"
            )
        if EOS in vocab and str(number) != str(vocab[EOS]):
            raise UserError(
                f"{path}: {field} holds {EOS} with id {number!r:.20}, the vocabulary has it with "
                f"id {vocab[EOS]}: take both files from one folder"
            )


def check_eos_id(path: Path, vocab: dict[str, int]) -> None:
    """eos_token_id may be absent, null, a number, or a list, of which each number ends a text."""
    value = read_object(path).get("eos_token_id")
    if value is None or EOS not in vocab:
        return
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(number) is int for number in numbers):
        raise damaged(path, f"eos_token_id is {value!r:.80}, not a whole number or a list of some")
    if set(numbers) != {vocab[EOS]}:
        why = f"the only end that is supported is {EOS}, whose id is {vocab[EOS]}"
        raise not_supported(path, "eos_token_id", value, why)


def check_flag(path: Path, field: str, value: Any) -> None:
    if value is True:
        why = "a text must be encoded as it is, with nothing before or behind it"
        raise not_supported(path, field, value, why)
    if value is not None and value is not False:
        raise damaged(path, f"{field} is {value!r:.80}, neither true nor false")


def content_of(path: Path, field: str, token: Any) -> str | None:
    """A token as these files write it: its text, an object with its text as "content", or null."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) or (text is None and token is None):
        return text
    raise damaged(path, f"{field} is {token!r:.80}, which is no token")


def read_object(path: Path) -> dict:
    """The JSON object in a file; {} where there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): take an intact copy") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise damaged(path, f"it is not valid JSON, {str(error)[:99]}") from None
    if not isinstance(content, dict):
        raise damaged(path, "it holds no JSON object")
    return content


def not_supported(path: Path, field: str, value: Any, why: str) -> UserError:
    shown = json.dumps(value)[:200]
    return UserError(f"{path}: {field} is {shown}: {why}; take a model with GPT-2's own tokenizer")


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}; take an intact copy")
