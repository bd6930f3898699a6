"""What a folder says of its tokenizer: vocabulary, merges, how it cuts text, special tokens.

Byte-level BPE is read as it comes: GPT-2's, SmolLM's, Qwen's and Llama 3's. Whatever would make
other ids here than in transformers is refused with file, field and value.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirlhf import UserError

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

KINDS = "take a model with the tokenizer of GPT-2, SmolLM, Qwen2, Qwen3 or Llama 3"
INTACT = "take all of the tokenizer's files from one folder"
CLASSES_WITHOUT_JSON = (None, "GPT2Tokenizer", "GPT2TokenizerFast")

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
    path = folder / "tokenizer_config.json"
    config = read_object(path)
    if (folder / "tokenizer.json").exists():
        spec = read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "tokenizer.model").exists() and not (folder / "vocab.json").exists():
        raise sentencepiece(folder / "tokenizer.model", "the file")
    else:
        if config.get("tokenizer_class") not in CLASSES_WITHOUT_JSON:
            why = (
                "without tokenizer.json only GPT-2's is known; write that file with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
            raise not_supported(path, "tokenizer_class", config["tokenizer_class"], why)
        spec = read_gpt2_files(folder)
    spec.source = str(folder)
    spec.config = config
    check_vocab(spec)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        read_token_names(folder / name, spec)
    check_added_tokens(folder, spec)
    read_eos(folder, spec)
    spec.chat_template = read_chat_template(folder, config)
    return spec


# ---------------------------------------------------------------------- vocabulary and merges


def read_gpt2_files(folder: Path) -> Spec:
    """vocab.json and merges.txt. The only special token is <|endoftext|>."""
    path = folder / "vocab.json"
    try:
        vocab = dict(json.loads(path.read_text(encoding="utf-8")))
        path = folder / "merges.txt"
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; a tokenizer is tokenizer.json, or vocab.json and "
            "merges.txt"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, str(error)[:99]) from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return Spec(vocab, pairs(path, merges), special_tokens={EOS} & vocab.keys())


def read_tokenizer_json(path: Path) -> Spec:
    """The file of the tokenizers library."""
    content = read_object(path)
    model = object_field(path, content, "model")
    if model.get("type") == "Unigram" or model.get("byte_fallback"):
        raise sentencepiece(path, "model")
    if model.get("type", "BPE") != "BPE":
        raise not_supported(path, "model.type", model["type"], KINDS)
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise not_supported(path, f"model.{name}", model[name], KINDS)
    vocab = dict(object_field(path, model, "vocab"))
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise damaged(path, f"model.merges is {merges!r:.80}, not a list")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    spec = Spec(vocab, pairs(path, merges))
    spec.pattern = read_pattern(path, content.get("pre_tokenizer"))
    if model.get("ignore_merges"):
        check_all_merged(path, spec)
    spec.nfc = is_nfc(path, content.get("normalizer"))
    bos_token = token_before_text(path, content.get("post_processor"))
    read_added_tokens(path, content.get("added_tokens") or [], spec)
    if bos_token:
        check_known(path, "post_processor", bos_token, spec)
        spec.puts_bos = True
        spec.bos_token = bos_token
    spec.tokenizer_json = path.read_bytes()
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
        kinds = [kind for part in template for kind in part]
        if kinds == ["SpecialToken", "Sequence"]:
            token = object_field(path, template[0], "SpecialToken").get("id")
        elif kinds != ["Sequence"]:
            raise not_supported(path, "post_processor", step, "a token stands behind the text")
    return token


def read_added_tokens(path: Path, tokens: Any, spec: Spec) -> None:
    """Add them to the vocabulary."""
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise damaged(path, f"added_tokens is {tokens!r:.80}, not a list of objects")
    for token in tokens:
        text = content_of(path, "added_tokens", token)
        for flag in ("lstrip", "rstrip", "single_word"):
            check_flag(path, f"added_tokens: {text!r:.40}: {flag}", token.get(flag))
        if spec.vocab.setdefault(text, token.get("id")) != token.get("id"):
            raise UserError(
                f"{path}: added_tokens holds {text!r:.40} with id {token.get('id')!r:.20}, the "
                f"vocabulary has it with id {spec.vocab[text]}; {INTACT}"
            )
        if token.get("special", True):
            spec.special_tokens.add(text)
        else:
            spec.text_tokens.add(text)


def parts_of(path: Path, field: str, processor: Any, steps_field: str) -> Iterator[dict]:
    """The steps of a processor, which may be none, one, or a Sequence of them."""
    if processor is None:
        return
    if not isinstance(processor, dict):
        raise damaged(path, f"{field} is {processor!r:.80}, not an object")
    if processor.get("type") != "Sequence":
        yield processor
        return
    steps = processor.get(steps_field)
    if not isinstance(steps, list):
        raise damaged(path, f"{field}.{steps_field} is {steps!r:.80}, not a list")
    for step in steps:
        yield from parts_of(path, f"{field}.{steps_field}", step, steps_field)


# ---------------------------------------------------------------------- special tokens


def read_token_names(path: Path, spec: Spec) -> None:
    """tokenizer_config.json or special_tokens_map.json: which token is EOS, BOS, padding."""
    content = read_object(path)
    names = {}
    for name in NAMED_TOKENS:
        token = content_of(path, name, content.get(name))
        if token:
            check_known(path, name, token, spec)
            names[name] = token
    for name in TOKEN_LISTS:
        tokens = content.get(name) or []
        if not isinstance(tokens, list | dict):
            raise damaged(path, f"{name} is {tokens!r:.80}, neither a list nor an object")
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            check_known(path, name, content_of(path, name, token), spec)
    spec.special_tokens.update(names.values())
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


def check_added_tokens(folder: Path, spec: Spec) -> None:
    """What older folders list outside of tokenizer.json must be known already."""
    path = folder / "added_tokens.json"
    for token, number in read_object(path).items():
        check_known(path, "the file", token, spec, number)
    path = folder / "tokenizer_config.json"
    decoder = spec.config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise damaged(path, f"added_tokens_decoder is {decoder!r:.80}, not an object")
    for number, token in decoder.items():
        token = content_of(path, f"added_tokens_decoder.{number:.20}", token)
        check_known(path, "added_tokens_decoder", token, spec, number)


def check_known(path: Path, field: str, token: str, spec: Spec, number: Any = None) -> None:
    """UserError for a token that is not in the vocabulary, or has another id there."""
    known = spec.vocab.get(token)
    if known is None:
        raise UserError(
            f"{path}: {field} names the token {token!r:.80}, which the vocabulary lacks; {INTACT}"
        )
    if number is not None and str(number) != str(known):
        raise UserError(
            f"{path}: {field} holds {token!r:.80} with id {number!r:.20}, the vocabulary has it "
            f"with id {known}; {INTACT}"
        )


def read_eos(folder: Path, spec: Spec) -> None:
    """eos_token_id may be absent, null, a number, or a list, of which each number ends a text."""
    token_of = {i: token for token, i in spec.vocab.items()}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        value = read_object(path).get("eos_token_id")
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(number) is int for number in numbers):
            raise damaged(path, f"eos_token_id is {value!r:.80}, not a number or a list of numbers")
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
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise damaged(path, f"it is not UTF-8, {error}") from None
    templates = config.get("chat_template") or ""
    if isinstance(templates, str):
        return templates
    try:  # several, each with its name
        return {item["name"]: str(item["template"]) for item in templates}.get("default", "")
    except (TypeError, KeyError):
        what = f"chat_template is {templates!r:.80}, not a text"
        raise damaged(folder / "tokenizer_config.json", what) from None


# ---------------------------------------------------------------------- JSON with care


def check_flag(path: Path, field: str, value: Any) -> None:
    if value is True:
        raise not_supported(path, field, value, KINDS)
    if value is not None and value is not False:
        raise damaged(path, f"{field} is {value!r:.80}, neither true nor false")


def content_of(path: Path, field: str, token: Any) -> str | None:
    """A token as these files write it: its text, an object with its text as "content", or null."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) or (text is None and token is None):
        return text
    raise damaged(path, f"{field} is {token!r:.80}, which is no token")


def object_field(path: Path, content: dict, name: str) -> dict:
    value = content.get(name)
    if not isinstance(value, dict):
        raise damaged(path, f"{name} is {value!r:.80}, not an object")
    return value


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
    return UserError(f"{path}: {field} is {json.dumps(value)[:200]}, which is not supported; {why}")


def sentencepiece(path: Path, field: str) -> UserError:
    return UserError(
        f"{path}: {field} is of a SentencePiece tokenizer (Llama 2, Mistral, Gemma), which is not "
        f"supported; {KINDS}"
    )


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}; take an intact copy")
