"""A model folder: what is written is read back, and what does not fit is refused by name."""

import json
import os
import stat
import struct

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

from minirlhf import UserError, checkpoint
from minirlhf.model import GPT, Config, ScalarGPT


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder, **tensors):
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path)


# ---- writing and reading


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    for cls in (GPT, ScalarGPT):
        net = tiny(tokenizer, cls)
        net.config.score_mean, net.config.score_std = 0.5, 2.0
        net.save_pretrained(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__)
        assert torch.equal(net(tokens), again(tokens))
        assert all(parameter.requires_grad for parameter in again.parameters())
        assert again.config == net.config
        assert again.tokenizer.encode("The fox can't.") == tokenizer.encode("The fox can't.")


def test_a_language_model_becomes_a_fresh_reward_model(folder, tokenizer):
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    assert (ScalarGPT.from_pretrained(folder)(tokens) == 0).all()
    scored = ScalarGPT.from_pretrained(folder, score_mean=0.5, score_std=2.0)
    assert (scored(tokens) == (0 - 0.5) / 2).all()


@pytest.mark.parametrize(
    "config",
    [
        Config(400, 50, 24, 3, 2, n_inner=40),
        Config(330, 70, 24, 1, 4, tie_word_embeddings=False),
    ],
)
def test_other_sizes_and_an_untied_head_survive(tokenizer, tmp_path, config):
    model = GPT(config, tokenizer)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(tokenizer.vocab_size, (2, 30))
    again = GPT.from_pretrained(tmp_path)
    assert again.config == config
    assert torch.equal(again(tokens), model(tokens))
    scalar = ScalarGPT.from_pretrained(tmp_path)
    assert torch.equal(scalar.hidden(tokens), model.hidden(tokens))


def test_the_folder_has_hugging_faces_names_and_layout(policy, folder):
    tensors = load_file(folder / "model.safetensors")
    assert tensors["transformer.h.1.attn.c_attn.weight"].shape == (32, 96)  # (in, out)
    mlp = tensors["transformer.h.1.mlp.c_proj.weight"]
    assert torch.equal(mlp, policy.h[1].mlp_proj.weight.T)
    assert "lm_head.weight" not in tensors  # tied
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["vocab_size"] == policy.config.vocab_size


def test_equal_weights_give_equal_bytes_for_all_who_may_read(policy, folder, tmp_path):
    first = folder / "model.safetensors"
    policy.save_pretrained(tmp_path / "again")
    assert first.read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    mode = stat.S_IMODE(first.stat().st_mode)
    assert mode == stat.S_IMODE((folder / "config.json").stat().st_mode)


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"step": torch.tensor(3.0), "moment": torch.randn(2, 3).T, "ids": torch.arange(4)}
    path = tmp_path / "state.safetensors"
    checkpoint.write_tensors(path, tensors, state='{"step": 3}')
    again, metadata = checkpoint.read_tensors(path)
    assert metadata == {"state": '{"step": 3}'}
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_sharded_weights_are_put_together(folder, policy):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(2):
        part = list(tensors)[i::2]
        save_file({name: tensors[name] for name in part}, folder / f"part{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"part{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    again = GPT.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters()))


def test_folders_as_others_write_them(folder, policy):
    """Half precision, names without a prefix, the tied head stored, causal masks stored."""
    tensors = load_file(folder / "model.safetensors")
    variant = {name.removeprefix("transformer."): tensor.half() for name, tensor in tensors.items()}
    variant["lm_head.weight"] = variant["wte.weight"].clone()
    for i in range(2):
        variant[f"h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(variant, folder / "model.safetensors")
    again = GPT.from_pretrained(folder)
    for parameter, again_parameter in zip(policy.parameters(), again.parameters()):
        assert torch.equal(again_parameter, parameter.half().float())


# ---- refusals


def refused(folder, *words):
    """One sentence that holds the words."""
    with pytest.raises(UserError) as error:
        GPT.from_pretrained(folder)
    message = str(error.value)
    assert all(str(word) in message for word in words), message
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "bert"),
        ("activation_function", "relu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
    ],
)
def test_what_the_model_cannot_represent_is_named(folder, field, value):
    change_config(folder, **{field: value})
    refused(folder, "config.json", field, repr(value))


@pytest.mark.parametrize(
    "fields",
    [
        {"n_layer": 10**9},
        {"n_embd": 10**12},
        {"vocab_size": -5},
        {"n_head": 0},
        {"n_head": 5},
        {"n_positions": 1e300},
        {"n_embd": "32"},
        {"n_layer": True},
        {"n_inner": 2**62},
        {"layer_norm_epsilon": "x"},
        {"layer_norm_epsilon": -1e-5},
        {"score_std": 0},
        {"score_std": float("nan")},
        {"score_mean": 10**400},
        {"tie_word_embeddings": "no"},
        {"n_embd": None},
        {"n_layer": [2]},
        {"vocab_size": 10**7},  # a size that a model might have, but not this one
        {"n_positions": 10**7},
        {"n_embd": 10**5},
        {"n_layer": 100},
        {"n_layer": 3},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(folder, fields):
    change_config(folder, **fields)
    refused(folder, folder)


def test_a_config_that_is_none(folder):
    for text in ("[]", "3", "null", "{", "[" * 10**5, '{"n_layer": ' + "1" * 5000 + "}", "{}"):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json")


def test_a_vocabulary_larger_than_the_model_is_refused(folder):
    change_config(folder, vocab_size=300)
    refused(folder, "vocab_size", 300)


def test_missing_files_are_named(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors")


def test_a_pickle_is_refused_with_the_command_that_converts_it(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", "weights_only=True", "model.safetensors")


def test_a_truncated_or_flipped_file_is_damaged(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused(folder, "model.safetensors")
    flipped = bytearray(good)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    refused(folder, "model.safetensors", "checksum")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("transformer.h.0.ln_1.bias", torch.full((32,), float("nan"))),
        ("transformer.h.0.ln_1.bias", torch.full((32,), float("inf"))),
        ("transformer.h.0.attn.c_attn.weight", torch.full((32, 96), float("nan")).bfloat16()),
        ("transformer.h.0.ln_1.bias", torch.full((32,), 1e300, dtype=torch.float64)),
        ("transformer.h.0.ln_1.bias", torch.zeros(32, dtype=torch.int64)),
        ("transformer.h.0.ln_1.bias", torch.zeros(32, dtype=torch.complex64)),
        ("transformer.h.0.ln_1.bias", torch.zeros(32).to(torch.float8_e4m3fn)),
        ("wte.weight", torch.zeros(320, 32)),  # a second time
        ("lm_head.weight", torch.zeros(320, 32).to(torch.float8_e5m2)),
        ("transformer.h.0.ln_1.bias", torch.zeros(33)),
        ("transformer.h.2.ln_1.bias", torch.zeros(32)),
        ("adapter.down", torch.zeros(3)),
        ("lm_head.weight", torch.ones(320, 32)),
    ],
)
def test_strange_tensors_are_named(folder, name, tensor):
    change_tensors(folder, **{name: tensor})
    refused(folder, name.removeprefix("transformer."))


def test_scores_make_a_reward_model_whatever_config_json_says(folder):
    change_tensors(folder, **{"score.weight": torch.ones(1, 32)})
    refused(folder, folder, "reward model")
    assert ScalarGPT.from_pretrained(folder).score.weight.eq(1).all()


def test_an_adapter_is_refused_by_name(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, folder, "PEFT adapter", "merge")


# ---- files that are none


NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
)


@pytest.mark.skipif(os.name == "nt", reason="pipes and links")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_regular_file_is_not_read(folder, name):
    """A pipe has no end before somebody writes, a device has none at all."""
    path = folder / name
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(folder, path, "regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(folder, path, "regular file")
    path.unlink()
    path.mkdir()
    refused(folder, path, "regular file")


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_link_to_itself_is_a_missing_file(folder):
    for name in ("config.json", "model.safetensors", "merges.txt"):
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(path)
        refused(folder, path, "does not exist")
        path.unlink()
        path.write_bytes(content)


def test_a_file_too_large_to_be_one_of_a_models_is_not_read(folder):
    for name in NAMES[:-2]:
        path = folder / name
        content = path.read_bytes() if path.exists() else None
        with path.open("wb") as file:
            file.truncate(50 * 2**20)
        refused(folder, path, "bytes")
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 2**26))
        file.truncate(2**27)
    refused(folder, "model.safetensors", "header")


def test_missing_shards_are_named(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = {"wte.weight": "a.safetensors", "h.0.ln_1.bias": "b.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, folder / "b.safetensors", "missing")


def test_an_index_that_leaves_the_folder_is_not_followed(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    secret = str(tmp_path / "secret.safetensors")
    for name in ("../secret.safetensors", secret, "..", "x/../../secret.safetensors"):
        index.write_text(json.dumps({"weight_map": {"wte.weight": name}}))
        refused(folder, "index.json", "do not trust")
    for text in ("{}", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "absent"}}', "["):
        index.write_text(text)
        refused(folder, folder)
