"""Model folders from strangers: nothing they hold is run, and each refusal is one sentence."""

import json
import os
import pickle
import random
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from minirlhf import UserError, checkpoint
from minirlhf.model import GPT


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        GPT.from_pretrained(folder)
    check_message(error.value, folder, *words)


def check_message(error, folder, *words):
    message = str(error)
    assert str(folder) in message
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 1000


# ---- pickles


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    content = {"transformer.wte.weight": Evil(tmp_path / "owned")}
    torch.save(content, path)
    refused(folder, "pytorch_model.bin")
    path.write_bytes(pickle.dumps(content))
    refused(folder, "pytorch_model.bin")
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(os.name == "nt", reason="the command is for a Unix shell")
def test_the_command_that_a_refusal_names_converts_the_file(folder, policy):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head = {"lm_head.weight": tensors["transformer.wte.weight"]}  # tied, as transformers saves it
    torch.save(tensors | head, folder / "pytorch_model.bin")
    command = checkpoint.CONVERT.replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, cwd=folder, check=True)
    again = GPT.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters()))


# ---- safetensors whose headers lie


def file_of(header: dict | bytes, body: bytes = b"", size: int | None = None) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    if size is None:
        size = len(header)
    return struct.pack("<Q", size) + header + body


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
ENTRY_JSON = json.dumps(ENTRY).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        file_of(b""),
        file_of({"a": ENTRY}, b"1234", size=2**63),
        file_of({"a": ENTRY}, b"1234", size=10**6),
        file_of({"a": ENTRY | {"data_offsets": [0, 8]}}, b"1234"),
        file_of({"a": ENTRY | {"data_offsets": [4, 0]}}, b"1234"),
        file_of({"a": ENTRY | {"data_offsets": [-4, 0]}}, b"1234"),
        file_of({"a": ENTRY | {"shape": [2**62, 4]}}, b"1234"),
        file_of({"a": ENTRY | {"shape": [-1]}}, b"1234"),
        file_of({"a": ENTRY | {"shape": "x"}}, b"1234"),
        file_of({"a": ENTRY | {"dtype": "Q4"}}, b"1234"),
        file_of({"a": ENTRY, "b": ENTRY}, b"1234"),
        file_of({"a": ENTRY}, b"12345678"),
        file_of({"a": ENTRY}, b"12"),
        file_of(b"[" * 10**5),
        file_of(b'{"a": %s, "a": %s}' % (ENTRY_JSON, ENTRY_JSON), b"1234"),
        file_of({"wte.weight": ENTRY}, b"1234"),
    ],
)
def test_headers_that_lie_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder)


def opens_or_is_refused(folder) -> bool:
    try:
        GPT.from_pretrained(folder)
    except UserError as error:
        check_message(error, folder)
        return False
    return True


def test_a_flipped_bit_never_changes_a_weight(folder, policy):
    rng = random.Random(0)
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for _ in range(40):
        flipped = bytearray(good)
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        if opens_or_is_refused(folder):  # a bit of the metadata
            again = GPT.from_pretrained(folder)
            assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters()))
        path.write_bytes(good[: rng.randrange(len(good))])
        refused(folder, "model.safetensors")
