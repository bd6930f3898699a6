"""What a folder says of its tokenizer: vocabulary, merges, how it cuts text, special tokens.

Byte-level BPE is read as it comes: GPT-2's, SmolLM's, Qwen's and Llama 3's. Whatever would make
other ids here than in transformers is refused with file, field and value.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirlhf import UserError, files

EOS = "<|endoftext|>"

# How a text is cut into pieces. Tokens merge within a piece only.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits apart, then GPT-2's: blanks before a digit are a piece, as those at the end of a text are.
SMOLLM = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

NAMES = (  # the files of a folder that are read here
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
KINDS = "take a model with the tokenizer of GPT-2, SmolLM, Qwen2, Qwen3 or Llama 3"
INTACT = "take all of the tokenizer's files from one folder"
CLASSES_WITHOUT_JSON = (None, "GPT2Tokenizer", "GPT2TokenizerFast")

MOST_ADDED_TOKENS = 10_000

NAMED_TOKENS = ("eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token")
TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass
class Spec:
    """A tokenizer as its files describe it."""

    vocab: dict[str, int]  # every token -> id, added tokens too
    merges: list[tuple[str, str]]  # in the order of merging
    source: str = "tokenizer"  # the folder, for error messages
    pattern: str = GPT2  # cuts text into pieces
    nfc: bool = False  # text is normalised to NFC first
    special_tokens: set[str] = field(default_factory=set)  # text that looks like one stays text
    text_tokens: set[str] = field(default_factory=set)  # added tokens that a text can hold: <think>
    eos_token: str = EOS
    stop_ids: list[int] = field(default_factory=list)  # every EOS that the files name
    bos_token: str = ""
    puts_bos: bool = False  # before every text
    pad_token: str = ""
    chat_template: str = ""
    config: dict = field(default_factory=dict)  # tokenizer_config.json
    tokenizer_json: bytes = b""  # the file, where there is one


def read(folder: Path) -> Spec:
    """UserError for files that are missing, damaged, or of a kind that is not supported."""
    config = files.read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").exists():
        spec = read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "tokenizer.model").exists() and not (folder / "vocab.json").exists():
        raise sentencepiece(folder / "tokenizer.model", "the file")
    else:
        check_class(folder / "tokenizer_config.json", config.get("tokenizer_class"))
        spec = read_gpt2_files(folder)
    spec.source = str(folder)
    spec.config = config
    check_vocab(spec)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        read_token_names(folder / name, spec)
    path = folder / "added_tokens.json"
    for token, number in files.read_json(path).items():
        add_token(path, "the file", token, spec, number)
    read_eos(folder, spec)
    if len(spec.special_tokens | spec.text_tokens) > MOST_ADDED_TOKENS:
        raise UserError(f"{spec.source}: more than {MOST_ADDED_TOKENS} added tokens; {KINDS}")
    spec.chat_template = read_chat_template(folder, config)
    return spec


# ---------------------------------------------------------------------- vocabulary and merges


def check_class(path: Path, name: Any) -> None:
    if name not in CLASSES_WITHOUT_JSON:
        why = (
            "without tokenizer.json only GPT-2's is known; write that file with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
        raise not_supported(path, "tokenizer_class", name, why)


def read_gpt2_files(folder: Path) -> Spec:
    """vocab.json and merges.txt."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).exists():
            raise UserError(
                f"{folder / name} does not exist; a tokenizer is tokenizer.json, or vocab.json and "
                "merges.txt"
            )
    vocab = files.read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    merges = pairs(folder / "merges.txt", merges)
    return Spec(vocab, merges, special_tokens={EOS} & vocab.keys())


def read_tokenizer_json(path: Path) -> Spec:
    """The file of the tokenizers library."""
    content = files.read_json(path)
    model = checked(path, "model", content.get("model"), dict)
    if model.get("type") == "Unigram" or model.get("byte_fallback"):
        raise sentencepiece(path, "model")
    if model.get("type", "BPE") != "BPE":
        raise not_supported(path, "model.type", model["type"], KINDS)
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise not_supported(path, f"model.{name}", model[name], KINDS)
    vocab = dict(checked(path, "model.vocab", model.get("vocab"), dict))
    merges = checked(path, "model.merges", model.get("merges"), list)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    spec = Spec(vocab, pairs(path, merges), tokenizer_json=path.read_bytes())
    spec.pattern = read_pattern(path, content.get("pre_tokenizer"))
    if model.get("ignore_merges"):
        check_all_merged(path, spec)
    spec.nfc = is_nfc(path, content.get("normalizer"))
    for token in checked(path, "added_tokens", content.get("added_tokens") or [], list):
        number = checked(path, "added_tokens", token, dict).get("id")
        vocab.setdefault(str(token.get("content")), number)
        add_token(path, "added_tokens", token, spec, number)
    bos_token = token_before_text(path, content.get("post_processor"))
    if bos_token:
        spec.bos_token = add_token(path, "post_processor", bos_token, spec)
        spec.puts_bos = True
    return spec


def check_all_merged(path: Path, spec: Spec) -> None:
    """With ignore_merges a piece may be a token that no merge makes; that is not supported."""
    merged = {left + right for left, right in spec.merges}
    for token in spec.vocab:
        if len(token) > 1 and token not in merged:
            why = f"no merge makes the token {token!r:.40}"
            raise not_supported(path, "model.ignore_merges", True, why)


def pairs(path: Path, merges: list) -> list[tuple[str, str]]:
    for number, merge in enumerate(merges, 1):
        texts = isinstance(merge, list) and all(isinstance(token, str) for token in merge)
        if not texts or len(merge) != 2:
            raise UserError(f"{path}, merge {number}: {merge!r:.60} is not two tokens; {INTACT}")
    return [(left, right) for left, right in merges]


def check_vocab(spec: Spec) -> None:
    ids = list(spec.vocab.values())
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        raise UserError(f"{spec.source}: the vocabulary has an id twice, or a wrong one; {INTACT}")
    try:
        "".join(spec.vocab).encode()
    except UnicodeEncodeError:  # JSON can write half a character
        raise UserError(f"{spec.source}: a token is no text; {INTACT}") from None


# ---------------------------------------------------------------------- tokenizer.json's rules


def read_pattern(path: Path, pre_tokenizer: Any) -> str:
    """One of the four ways to cut text that we know."""
    steps = list(parts_of(path, "pre_tokenizer", pre_tokenizer, "pretokenizers"))
    kinds = [step.get("type") for step in steps]
    if "Metaspace" in kinds:
        raise sentencepiece(path, "pre_tokenizer")
    if steps:
        check_flag(path, "pre_tokenizer.add_prefix_space", steps[-1].get("add_prefix_space"))
        uses_gpt2s = steps[-1].get("use_regex", True)  # older files do not have the field
        if kinds == ["ByteLevel"] and uses_gpt2s:
            return GPT2
        if kinds == ["Digits", "ByteLevel"] and uses_gpt2s and steps[0].get("individual_digits"):
            return SMOLLM
        if kinds == ["Split", "ByteLevel"] and not uses_gpt2s:
            split = steps[0]
            cuts_matches = split.get("behavior") == "Isolated" and not split.get("invert")
            for pattern in (LLAMA3, QWEN2):
                if cuts_matches and split.get("pattern") == {"Regex": pattern}:
                    return pattern
    raise not_supported(path, "pre_tokenizer", pre_tokenizer, KINDS)


def is_nfc(path: Path, normalizer: Any) -> bool:
    steps = list(parts_of(path, "normalizer", normalizer, "normalizers"))
    for step in steps:
        if step.get("type") != "NFC":
            raise not_supported(path, "normalizer", normalizer, KINDS)
    return bool(steps)


def token_before_text(path: Path, post_processor: Any) -> str:
    """The token that is put before every text, "" if there is none."""
    token = ""
    for step in parts_of(path, "post_processor", post_processor, "processors"):
        if step.get("type") == "ByteLevel":  # only moves offsets
            continue
        template = step.get("single")
        if step.get("type") != "TemplateProcessing" or not isinstance(template, list):
            raise not_supported(path, "post_processor", step, KINDS)
        kinds = [kind for part in template for kind in checked(path, "post_processor", part, dict)]
        if kinds == ["SpecialToken", "Sequence"]:
            token = checked(path, "post_processor", template[0]["SpecialToken"], dict).get("id")
        elif kinds != ["Sequence"]:
            raise not_supported(path, "post_processor", step, "a token stands behind the text")
    return token


def parts_of(path: Path, field: str, processor: Any, steps_field: str) -> Iterator[dict]:
    """The steps of a processor, which may be none, one, or a Sequence of them."""
    if processor is None:
        return
    if checked(path, field, processor, dict).get("type") != "Sequence":
        yield processor
        return
    for step in checked(path, f"{field}.{steps_field}", processor.get(steps_field), list):
        yield from parts_of(path, f"{field}.{steps_field}", step, steps_field)


# ---------------------------------------------------------------------- special tokens


def read_token_names(path: Path, spec: Spec) -> None:
    """tokenizer_config.json or special_tokens_map.json: which token is EOS, BOS, padding; and
    added tokens, which the vocabulary must have."""
    content = files.read_json(path)
    names = {}
    for name in NAMED_TOKENS:
        if content.get(name):
            names[name] = add_token(path, name, content[name], spec)
    for name in TOKEN_LISTS:
        tokens = checked(path, name, content.get(name) or [], list | dict)
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            add_token(path, name, token, spec)
    name = "added_tokens_decoder"
    for number, token in checked(path, name, content.get(name) or {}, dict).items():
        add_token(path, name, token, spec, number)
    spec.pad_token = names.get("pad_token", spec.pad_token)
    if "eos_token" in names:
        spec.eos_token = names["eos_token"]
        spec.stop_ids.append(spec.vocab[spec.eos_token])
    if "bos_token" in names and not spec.puts_bos:
        spec.bos_token = names["bos_token"]
    for flag in ("add_prefix_space", "add_eos_token"):
        check_flag(path, flag, content.get(flag))
    if not spec.puts_bos:
        check_flag(path, "add_bos_token", content.get("add_bos_token"))


def add_token(path: Path, field: str, token: Any, spec: Spec, number: Any = None) -> str:
    """The text of a token that a file lists: text itself, or an object that has it as "content".

    Special, unless it is marked otherwise. UserError if the vocabulary lacks it, or has another id.
    """
    options = token if isinstance(token, dict) else {"content": token}
    text = checked(path, field, options.get("content"), str)
    for flag in ("lstrip", "rstrip", "single_word"):
        check_flag(path, f"{field}: {text!r:.40}: {flag}", options.get(flag))
    if text not in spec.vocab:
        raise UserError(
            f"{path}: {field} names the token {text!r:.80}, which the vocabulary lacks; {INTACT}"
        )
    if number is not None and str(number) != str(spec.vocab[text]):
        raise UserError(
            f"{path}: {field} holds {text!r:.80} with id {number!r:.20}, the vocabulary has it "
            f"with id {spec.vocab[text]}; {INTACT}"
        )
    if text not in spec.special_tokens and text not in spec.text_tokens:
        is_special = options.get("special", True)
        (spec.special_tokens if is_special else spec.text_tokens).add(text)
    return text


def read_eos(folder: Path, spec: Spec) -> None:
    """eos_token_id may be absent, null, a number, or a list, of which each number ends a text."""
    token_of = {i: token for token, i in spec.vocab.items()}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        value = files.read_json(path).get("eos_token_id")
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(number) is int for number in numbers):
            raise damaged(path, "eos_token_id", value)
        for number in numbers:
            token = token_of.get(number)
            if token not in spec.special_tokens:
                why = f"the token {token!r:.40} of id {number} is no special token; {INTACT}"
                raise not_supported(path, "eos_token_id", value, why)
        spec.stop_ids += numbers
    if spec.eos_token not in spec.vocab:  # no file names a token
        if not spec.stop_ids:
            raise UserError(f"{spec.source}: the vocabulary lacks {EOS!r}; {INTACT}")
        spec.eos_token = token_of[spec.stop_ids[0]]
    spec.special_tokens.add(spec.eos_token)


def read_chat_template(folder: Path, config: dict) -> str:
    """The Jinja template; "" where there is none."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    path = folder / "tokenizer_config.json"
    templates = checked(path, "chat_template", config.get("chat_template") or "", str | list)
    if isinstance(templates, str):
        return templates
    for named in templates:  # several, each with its name
        if checked(path, "chat_template", named, dict).get("name") == "default":
            return checked(path, "chat_template", named.get("template"), str)
    return ""


# ---------------------------------------------------------------------- with care


def read_text(path: Path) -> str:
    try:
        text = files.read_small(path).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: take an intact copy") from None
    return text.replace("\r\n", "\n")


def checked(path: Path, field: str, value: Any, kind: Any) -> Any:
    """The value, if it is of that kind."""
    if not isinstance(value, kind):
        raise damaged(path, field, value)
    return value


def check_flag(path: Path, field: str, value: Any) -> None:
    if value not in (None, False):
        raise not_supported(path, field, value, KINDS)


def damaged(path: Path, field: str, value: Any) -> UserError:
    return UserError(f"{path} is damaged: {field} is {value!r:.80}; take an intact copy")


def not_supported(path: Path, field: str, value: Any, why: str) -> UserError:
    return UserError(f"{path}: {field} is {json.dumps(value)[:200]}, which is not supported; {why}")


def sentencepiece(path: Path, field: str) -> UserError:
    return UserError(
        f"{path}: {field} is of a SentencePiece tokenizer (Llama 2, Mistral, Gemma), which is not "
        f"supported; {KINDS}"
    )
