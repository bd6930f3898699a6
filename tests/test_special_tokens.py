"""Folders with GPT-2's special tokens load; others are refused by file, field and value."""

import json
import shutil

import pytest
from conftest import SHARED, tiny

from minirlhf import UserError
from minirlhf.model import GPT
from minirlhf.tokenizer import EOS, Tokenizer

END = {"content": EOS, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
PAD = END | {"content": "[PAD]"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}
PUTS_EOS = TEMPLATE | {"special_tokens": {EOS: {"id": EOS, "ids": [320], "tokens": [EOS]}}}


def tokenizer_json(tokenizer, **changes) -> dict:
    merges = [" ".join(merge) for merge in tokenizer.merges]
    return {
        "version": "1.0",
        "added_tokens": [END | {"id": tokenizer.eos_id, "special": True}],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": BYTE_LEVEL | {"add_prefix_space": True},
        "model": {"type": "BPE", "vocab": tokenizer.vocab, "merges": merges},
    } | changes


def folder_with(tmp_path, tokenizer, name, content):
    """A folder as transformers writes it, but for one file."""
    tokenizer.save_pretrained(tmp_path)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    return tmp_path


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        Tokenizer.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


NAMES_MAP, CONFIG = "special_tokens_map.json", "tokenizer_config.json"


@pytest.mark.parametrize(
    ("name", "content", "field", "value"),
    [
        (CONFIG, {"eos_token": "<|im_end|>"}, "eos_token", "<|im_end|>"),
        (CONFIG, {"eos_token": END | {"content": "</s>"}}, "eos_token", "</s>"),
        (CONFIG, {"bos_token": "<s>"}, "bos_token", "<s>"),
        (CONFIG, {"pad_token": "[PAD]"}, "pad_token", "[PAD]"),
        (CONFIG, {"added_tokens_decoder": {"321": PAD}}, "added_tokens_decoder", "[PAD]"),
        (CONFIG, {"added_tokens_decoder": {"7": END}}, "added_tokens_decoder", "'7'"),
        (CONFIG, {"add_prefix_space": True}, "add_prefix_space", "true"),
        (CONFIG, {"add_bos_token": True}, "add_bos_token", "true"),
        (CONFIG, {"add_eos_token": True}, "add_eos_token", "true"),
        (CONFIG, {"additional_special_tokens": ["<u>"]}, "additional_special_tokens", "<u>"),
        (CONFIG, {"extra_special_tokens": {"image": "<i>"}}, "extra_special_tokens", "<i>"),
        (NAMES_MAP, {"eos_token": "<|im_end|>"}, "eos_token", "<|im_end|>"),
        (NAMES_MAP, {"pad_token": PAD}, "pad_token", "[PAD]"),
        (NAMES_MAP, {"additional_special_tokens": [PAD]}, "additional_special_tokens", "[PAD]"),
        ("added_tokens.json", {"[PAD]": 321}, "added token", "[PAD]"),
        ("added_tokens.json", {EOS: 7}, "the file", "id 7"),
        ("config.json", {"eos_token_id": 5}, "eos_token_id", "5"),
        ("config.json", {"eos_token_id": [319, 5]}, "eos_token_id", "[319, 5]"),
        ("generation_config.json", {"eos_token_id": 50256}, "eos_token_id", "50256"),
        ("generation_config.json", {"eos_token_id": [5]}, "eos_token_id", "[5]"),
    ],
)
def test_another_tokenizer_is_refused_by_name(tokenizer, tmp_path, name, content, field, value):
    message = refusal(folder_with(tmp_path, tokenizer, name, content))
    for words in (str(tmp_path / name), field, value):
        assert words in message


@pytest.mark.parametrize("beside_vocab_json", [True, False])
@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("added_tokens", [END | {"id": 319}, PAD | {"id": 320}], "[PAD]"),
        ("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}, "add_prefix_space is true"),
        ("pre_tokenizer", {"type": "Metaspace"}, "Metaspace"),
        ("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}, "ByteLevel"),
        ("pre_tokenizer", None, "None"),
        ("normalizer", {"type": "NFKC"}, "NFKC"),
        ("post_processor", PUTS_EOS, "TemplateProcessing"),
        ("post_processor", {"type": "RobertaProcessing"}, "RobertaProcessing"),
        ("post_processor", {"type": "Sequence", "processors": [BYTE_LEVEL, PUTS_EOS]}, EOS),
    ],
)
def test_another_tokenizer_json_is_refused(
    tokenizer, tmp_path, field, value, shown, beside_vocab_json
):
    content = tokenizer_json(tokenizer, **{field: value})
    folder = folder_with(tmp_path, tokenizer, "tokenizer.json", content)
    if not beside_vocab_json:
        (folder / "vocab.json").unlink()
    message = refusal(folder)
    for words in (str(tmp_path / "tokenizer.json"), field, shown):
        assert words in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[(name, text) for name in (CONFIG, NAMES_MAP) for text in ("", "[]", "3", "[" * 10**5)],
        *[(name, "{") for name in ("added_tokens.json", "config.json", "generation_config.json")],
        ("tokenizer.json", "null"),
        (CONFIG, {"eos_token": 5}),
        (CONFIG, {"eos_token": {"text": EOS}}),
        (CONFIG, {"add_bos_token": "yes"}),
        (CONFIG, {"additional_special_tokens": 3}),
        (CONFIG, {"added_tokens_decoder": [END]}),
        ("config.json", {"eos_token_id": "319"}),
        ("config.json", {"eos_token_id": [True]}),
        ("config.json", {"eos_token_id": []}),
        ("tokenizer.json", {"added_tokens": 3}),
        ("tokenizer.json", {"added_tokens": [3]}),
        ("tokenizer.json", {"pre_tokenizer": 3}),
        ("tokenizer.json", {"pre_tokenizer": BYTE_LEVEL, "post_processor": "none"}),
        ("tokenizer.json", {"pre_tokenizer": BYTE_LEVEL, "post_processor": {"type": "Sequence"}}),
    ],
)
def test_damaged_files_are_one_sentence(tokenizer, tmp_path, name, content):
    message = refusal(folder_with(tmp_path, tokenizer, name, content))
    assert f"{tmp_path / name} is damaged" in message


def write_hugging_faces_files(folder, eos_id: int, pad_token: str | None) -> None:
    """What the hub's gpt2 folder holds, and what GPT2TokenizerFast.save_pretrained adds to it."""
    tokens = {"bos_token": END, "eos_token": END, "unk_token": END}
    if pad_token:
        tokens["pad_token"] = END | {"content": pad_token, "normalized": False}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(eos_id): END | {"special": True}},
        "bos_token": EOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": pad_token,
        "extra_special_tokens": {},
        "additional_special_tokens": [],
        "model_max_length": 1024,
        "tokenizer_class": "GPT2Tokenizer",
    }
    ends = {"bos_token_id": eos_id, "eos_token_id": eos_id}
    (folder / NAMES_MAP).write_text(json.dumps(tokens))
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({EOS: eos_id}))
    (folder / "generation_config.json").write_text(json.dumps(ends | {"_from_model_config": True}))


@pytest.mark.parametrize("pad_token", [None, EOS])
@pytest.mark.parametrize("post_processor", [None, BYTE_LEVEL, TEMPLATE | {"special_tokens": {}}])
@pytest.mark.parametrize("only_tokenizer_json", [True, False])
def test_gpt2s_own_special_tokens_load(
    tokenizer, tmp_path, pad_token, post_processor, only_tokenizer_json
):
    model = tiny(tokenizer)
    model.save_pretrained(tmp_path)
    write_hugging_faces_files(tmp_path, tokenizer.eos_id, pad_token)
    content = tokenizer_json(tokenizer, post_processor=post_processor)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    if only_tokenizer_json:
        (tmp_path / "vocab.json").unlink()
        (tmp_path / "merges.txt").unlink()
    loaded = GPT.from_pretrained(tmp_path).tokenizer
    assert loaded.vocab == tokenizer.vocab
    assert loaded.merges == tokenizer.merges
    assert loaded.eos_id == tokenizer.eos_id


def test_gpt2s_own_folder_loads(tmp_path):
    source = SHARED / "gpt2"
    if not source.exists():
        pytest.skip("GPT-2's tokenizer is not here")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, tmp_path / name)
    (tmp_path / CONFIG).write_text('{"model_max_length": 1024}')
    (tmp_path / "config.json").write_text('{"bos_token_id": 50256, "eos_token_id": 50256}')
    end = END | {"id": 50256, "special": True}
    content = {"added_tokens": [end], "normalizer": None, "pre_tokenizer": BYTE_LEVEL}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.from_pretrained(tmp_path).encode("Hello world") == [15496, 995]


def test_our_own_folder_loads_and_null_is_absent(tokenizer, tmp_path):
    tiny(tokenizer).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).tokenizer.eos_id == tokenizer.eos_id
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    (tmp_path / NAMES_MAP).write_text('{"eos_token": null, "additional_special_tokens": null}')
    assert GPT.from_pretrained(tmp_path).tokenizer.eos_id == tokenizer.eos_id


def test_what_transformers_writes(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(tmp_path / "ours")
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path / "ours")
    theirs.pad_token = theirs.eos_token
    theirs.save_pretrained(tmp_path / "theirs")
    assert Tokenizer.from_pretrained(tmp_path / "theirs").vocab == tokenizer.vocab
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path / "padded")
    assert "[PAD]" in refusal(tmp_path / "padded")
