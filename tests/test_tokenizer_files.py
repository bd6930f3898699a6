"""Other people's folders load as they are, or are refused by file, field and value."""

import json
import random
import shutil
import time

import pytest
import tokenizer_folders
from conftest import SHARED, tiny

from minirlhf import UserError, tokenizer_files
from minirlhf.model import GPT, Config, ids_without_token
from minirlhf.tokenizer import Tokenizer
from minirlhf.tokenizer_files import EOS

END = {"content": EOS, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
PAD = END | {"content": "[PAD]"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
A = {"Sequence": {"id": "A", "type_id": 0}}
TEMPLATE = {"type": "TemplateProcessing", "single": [A]}
PUTS_EOS = TEMPLATE | {"single": [A, {"SpecialToken": {"id": EOS, "type_id": 0}}]}


NFC = {"type": "NFC"}
SPLIT_AT_BLANKS = tokenizer_folders.split(r"\s+")
DIGITS_TOGETHER = {"type": "Digits", "individual_digits": False}
TWO_DIGITS = {"type": "Sequence", "pretokenizers": [DIGITS_TOGETHER, BYTE_LEVEL]}


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
        (CONFIG, {"add_bos_token": "yes"}, "add_bos_token", "yes"),
        (CONFIG, {"eos_token": END | {"lstrip": True}}, "eos_token", "lstrip"),
        (CONFIG, {"additional_special_tokens": ["<u>"]}, "additional_special_tokens", "<u>"),
        (CONFIG, {"extra_special_tokens": {"image": "<i>"}}, "extra_special_tokens", "<i>"),
        (NAMES_MAP, {"eos_token": "<|im_end|>"}, "eos_token", "<|im_end|>"),
        (NAMES_MAP, {"pad_token": PAD}, "pad_token", "[PAD]"),
        (NAMES_MAP, {"additional_special_tokens": [PAD]}, "additional_special_tokens", "[PAD]"),
        ("added_tokens.json", {"[PAD]": 321}, "the token", "[PAD]"),
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
        ("added_tokens", [END | {"id": 7}], "id 7"),
        ("added_tokens", [END | {"id": 319}, PAD | {"id": 320, "lstrip": True}], "lstrip"),
        ("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}, "add_prefix_space is true"),
        ("pre_tokenizer", {"type": "Metaspace"}, "SentencePiece"),
        ("pre_tokenizer", {"type": "Digits", "individual_digits": True}, "Digits"),
        ("pre_tokenizer", SPLIT_AT_BLANKS, "Split"),
        ("pre_tokenizer", TWO_DIGITS, "individual_digits"),
        ("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}, "ByteLevel"),
        ("pre_tokenizer", None, "null"),
        ("normalizer", {"type": "NFKC"}, "NFKC"),
        ("normalizer", {"type": "Sequence", "normalizers": [NFC, {"type": "Lowercase"}]}, "Lower"),
        ("model", {"type": "Unigram"}, "SentencePiece"),
        ("model", {"type": "BPE", "byte_fallback": True}, "SentencePiece"),
        ("model", {"type": "WordPiece"}, "WordPiece"),
        ("model", {"type": "BPE", "dropout": 0.1}, "dropout"),
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
        (CONFIG, {"additional_special_tokens": 3}),
        (CONFIG, {"added_tokens_decoder": [END]}),
        ("config.json", {"eos_token_id": "319"}),
        ("config.json", {"eos_token_id": [True]}),
        ("config.json", {"eos_token_id": []}),
        (CONFIG, {"chat_template": 3}),
    ],
)
def test_damaged_files_are_one_sentence(tokenizer, tmp_path, name, content):
    message = refusal(folder_with(tmp_path, tokenizer, name, content))
    assert f"{tmp_path / name} is damaged" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("added_tokens", 3),
        ("added_tokens", [3]),
        ("added_tokens", [{"id": 3}]),
        ("pre_tokenizer", 3),
        ("pre_tokenizer", {"type": "Sequence"}),
        ("normalizer", "NFC"),
        ("post_processor", "none"),
        ("post_processor", {"type": "Sequence"}),
        ("model", None),
        ("model", {"vocab": [], "merges": []}),
        ("model", {"vocab": {}, "merges": "a b"}),
    ],
)
def test_a_damaged_tokenizer_json_is_one_sentence(tokenizer, tmp_path, field, value):
    content = tokenizer_json(tokenizer, **{field: value})
    message = refusal(folder_with(tmp_path, tokenizer, "tokenizer.json", content))
    assert f"{tmp_path / 'tokenizer.json'} is damaged" in message


@pytest.mark.parametrize("count", [100, 10_001])
def test_hostile_vocabularies(tokenizer, tmp_path, count):
    vocab = tokenizer.vocab | {f"<{i}>": 1000 + i for i in range(count)}
    added = [{"content": f"<{i}>", "id": 1000 + i} for i in range(count)]
    if count == 100:
        vocab["\ud800"] = 999  # JSON can write it, UTF-8 cannot
    model = {"vocab": vocab, "merges": tokenizer.merges}
    content = tokenizer_json(tokenizer, model=model, added_tokens=added)
    message = refusal(folder_with(tmp_path, tokenizer, "tokenizer.json", content))
    assert "no text" in message or "added tokens" in message


def test_tokens_that_files_list_beside_vocab_json_are_special(tokenizer, tmp_path):
    """As in older folders: the vocabulary has them, and the template needs them."""
    tokenizer.save_pretrained(tmp_path)
    vocab = tokenizer.vocab | {"<|im_start|>": 320, "<|im_end|>": 321}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    tokens = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    (tmp_path / NAMES_MAP).write_text(json.dumps(tokens))
    (tmp_path / CONFIG).write_text(json.dumps({"chat_template": tokenizer_folders.CHATML_TURNS}))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.encode_prompt((("user", "<|im_end|>"),)).count(321) == 1
    assert loaded.encode_prompt((("user", ""),))[0] == 320


def test_sentencepiece_without_tokenizer_json_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"...")
    (tmp_path / CONFIG).write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert "SentencePiece" in refusal(tmp_path)


def test_only_gpt2_is_known_without_tokenizer_json(tokenizer, tmp_path):
    content = {"tokenizer_class": "Qwen2Tokenizer"}
    message = refusal(folder_with(tmp_path, tokenizer, CONFIG, content))
    assert "Qwen2Tokenizer" in message and "tokenizer.json" in message


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
    gpt2 = Tokenizer.from_pretrained(tmp_path)
    assert gpt2.encode("Hello world") == [15496, 995]
    content = tokenizer_json(gpt2)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    both = Tokenizer.from_pretrained(tmp_path)
    assert both.vocab == gpt2.vocab and both.merges == gpt2.merges


def test_a_bos_token_is_put_where_tokenizer_json_puts_it(tmp_path):
    for kind in ("llama3", "smollm2"):
        folder = tokenizer_folders.write(tmp_path / kind, kind)
        tokenizer = Tokenizer.from_pretrained(folder)
        ids = tokenizer.encode_prompt((("text", "The fox"),))
        bos = [tokenizer.bos_id] if kind == "llama3" else []
        assert ids == bos + tokenizer.encode("The fox")
        transformers = pytest.importorskip("transformers")
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        assert theirs("The fox").input_ids == ids


def random_text(rng) -> str:
    words = [
        "the fox",
        " Ran",
        "12345",
        " 1",
        "'s",
        "'LL",
        "\n",
        " \n\n ",
        "\t",
        "  ",
        "!?",
        "e\u0301",
    ]
    words += ["東京", "🦊", "\u00a0", "½", "٣", "<think>", "</think>\n", "<|im_end|>", "<|eot_id|>"]
    kinds = [
        lambda: rng.choice(words),
        lambda: rng.choice(tokenizer_folders.TEXT),
        lambda: chr(rng.randrange(32, 0x530)),
        lambda: chr(rng.randrange(0x4E00, 0x9FA0)),
    ]
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(15)))


@pytest.mark.parametrize("kind", tokenizer_folders.KINDS)
def test_ids_are_those_of_the_tokenizers_library(tmp_path, kind):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tokenizer_folders.write(tmp_path, kind)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.save(str(folder / "tokenizer.json"))  # in the library's own words
    theirs.encode_special_tokens = True  # what looks like a special token is text
    ours = Tokenizer.from_pretrained(folder)
    rng = random.Random(0)
    for text in [tokenizer_folders.TEXT, "a\x13b", *(random_text(rng) for _ in range(2000))]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", tokenizer_folders.KINDS)
def test_long_runs_take_linear_time(tmp_path, kind):
    tokenizer = Tokenizer.from_pretrained(tokenizer_folders.write(tmp_path, kind))
    for character in ["a", " ", "\n", " \n", "=", "1", "é"]:
        text = character * 100_000 + "x"
        began = time.perf_counter()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.perf_counter() - began < 5


def test_ids_without_a_token(tmp_path):
    tokenizer = Tokenizer.from_pretrained(tokenizer_folders.write(tmp_path, "qwen3"))
    size = tokenizer.vocab_size
    assert ids_without_token(Config(size), tokenizer) is None
    missing = ids_without_token(Config(size + 3), tokenizer)
    assert missing.tolist() == [False] * size + [True] * 3


def test_our_own_folder_loads_and_null_is_absent(tokenizer, tmp_path):
    tiny(tokenizer).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).tokenizer.eos_id == tokenizer.eos_id
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    (tmp_path / NAMES_MAP).write_text('{"eos_token": null, "additional_special_tokens": null}')
    assert GPT.from_pretrained(tmp_path).tokenizer.eos_id == tokenizer.eos_id


def test_a_folder_keeps_no_file_of_the_tokenizer_before(tokenizer, tmp_path):
    other = Tokenizer.train(["zebra zebra "], 262)
    for name in tokenizer_files.NAMES:
        (tmp_path / name).write_text('{"<pad>": 0}')
    (tmp_path / "tokenizer.json").write_text("of another model")
    other.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).vocab == other.vocab
    tokenizer.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).vocab == tokenizer.vocab
    left = {"vocab.json", "merges.txt", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_transformers_writes(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(tmp_path / "ours")
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path / "ours")
    theirs.pad_token = theirs.eos_token
    theirs.save_pretrained(tmp_path / "theirs")
    assert Tokenizer.from_pretrained(tmp_path / "theirs").vocab == tokenizer.vocab
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path / "padded")
    padded = Tokenizer.from_pretrained(tmp_path / "padded")
    assert padded.pad_id == theirs.pad_token_id == tokenizer.vocab_size
    assert padded.encode("a[PAD]") == tokenizer.encode("a[PAD]")
