"""Files from strangers: nothing they hold is run, nothing absurd is built, and each refusal is one sentence. Fuzzing is seeded;
MINIRLHF_FUZZ=100000 sets the number of inputs of each fuzz test."""
import gzip
import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
from collections import Counter

import pytest
import torch
from conftest import SHARED, tiny
from safetensors.torch import load_file, save_file

from minirlhf import UserError, data, labelserver
from minirlhf.data import read_demonstrations, read_prompts, read_rankings
from minirlhf.model import GPT, ScalarGPT, hf_name
from minirlhf.run import read_jsonl
from minirlhf.tokenizer import Tokenizer

FUZZ = int(os.environ.get("MINIRLHF_FUZZ", 400))


@pytest.fixture
def folder(tokenizer, tmp_path):
    tiny(tokenizer).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def refused(read, *words):
    with pytest.raises(UserError) as error:
        read()
    assert all(str(word) in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def with_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(("field", "value"), [
    ("model_type", "llama"), ("activation_function", "relu"), ("scale_attn_by_inverse_layer_idx", True),
    ("scale_attn_weights", False), ("add_cross_attention", True)])
def test_what_cannot_be_represented_is_refused_by_name(folder, field, value):
    with_config(folder, **{field: value})
    refused(lambda: GPT.from_pretrained(folder), "config.json", field, repr(value))


@pytest.mark.parametrize("fields", [
    {"n_layer": 10**9}, {"n_embd": 10**12}, {"vocab_size": -5}, {"n_head": 0}, {"n_head": 5}, {"n_positions": 1e300},
    {"n_embd": "32"}, {"n_layer": True}, {"n_inner": 2**62}, {"layer_norm_epsilon": "x"}, {"score_std": 0},
    {"score_std": float("nan")}, {"score_mean": 10**400},
    {"vocab_size": 10**7}, {"n_positions": 10**7}, {"n_embd": 10**5}, {"n_layer": 900}, {"tie_word_embeddings": "no"},
    {"n_embd": None}, {"n_layer": [2]}])
def test_absurd_sizes_cost_nothing(folder, fields):
    with_config(folder, **fields)
    began = time.perf_counter()
    refused(lambda: GPT.from_pretrained(folder), folder)
    assert time.perf_counter() - began < 20              # and no memory: 10**7 x 32 alone would be over a gigabyte


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "[" * 10**5, '{"n_layer": ' + "1" * 5000 + "}", '{"vocab_size": 1}'])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    refused(lambda: GPT.from_pretrained(folder), "config.json")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(folder, tmp_path, policy):
    (folder / "model.safetensors").unlink()
    for save in (lambda x, f: torch.save(x, f), lambda x, f: torch.save(x, f, _use_new_zipfile_serialization=False),
                 lambda x, f: f.write_bytes(pickle.dumps(x))):
        save({"transformer.wte.weight": Evil(tmp_path / "owned")}, folder / "pytorch_model.bin")
        refused(lambda: GPT.from_pretrained(folder), "pytorch_model.bin", "cannot be read")
        assert not (tmp_path / "owned").exists()
    for content in ({"a": 1}, [1], {3: torch.zeros(1)}):
        torch.save(content, folder / "pytorch_model.bin")
        refused(lambda: GPT.from_pretrained(folder), "pytorch_model.bin")
    whole = policy.hf_tensors()
    torch.save(whole, folder / "pytorch_model.bin")
    good = (folder / "pytorch_model.bin").read_bytes()
    for cut in (0, 100, len(good) // 2, len(good) - 30):
        (folder / "pytorch_model.bin").write_bytes(good[:cut])
        refused(lambda: GPT.from_pretrained(folder), "pytorch_model.bin")


def test_zip_bombs(folder, tmp_path, policy, monkeypatch):
    (folder / "model.safetensors").unlink()
    torch.save(policy.hf_tensors() | {"zeros": torch.zeros(10**6)}, tmp_path / "stored.bin")
    with zipfile.ZipFile(tmp_path / "stored.bin") as stored, \
            zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in stored.namelist():
            packed.writestr(part, stored.read(part))
    refused(lambda: GPT.from_pretrained(folder), "pytorch_model.bin", "compressed", "do not trust")
    bomb = tmp_path / "bomb.jsonl.gz"
    monkeypatch.setattr(data, "LONGEST_LINE", 2**20)
    bomb.write_bytes(gzip.compress(b'{"text": "' + b"a" * 2**24))
    refused(lambda: read_demonstrations(str(bomb)), "bomb.jsonl.gz, line 1", "bytes")
    monkeypatch.setattr(data, "BOMB_BYTES", 2**20)
    bomb.write_bytes(gzip.compress(b'{"text": "aaaaaaaaaaaaaaaaaa"}\n' * 10**5))
    refused(lambda: read_demonstrations(str(bomb)), "bomb.jsonl.gz, line", "200 times")
    monkeypatch.setattr(data, "LONGEST_FILE", 1000)
    (tmp_path / "long.txt").write_text("a" * 1001)
    refused(lambda: read_demonstrations(str(tmp_path / "long.txt")), "long.txt", "1000")


def lying(header: dict | bytes, body: bytes = b"", size: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + body


F = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize("content", [
    b"", b"\0" * 7, lying(b""), lying({"a": F}, b"1234", size=2**63), lying({"a": F}, b"1234", size=10**6),
    lying({"a": F | {"data_offsets": [0, 8]}}, b"1234"), lying({"a": F | {"data_offsets": [4, 0]}}, b"1234"),
    lying({"a": F | {"data_offsets": [-4, 0]}}, b"1234"), lying({"a": F | {"shape": [2**62, 4]}}, b"1234"),
    lying({"a": F | {"shape": [-1]}}, b"1234"), lying({"a": F | {"dtype": "Q4"}}, b"1234"), lying({"a": F, "b": F}, b"1234"),
    lying({"a": F}, b"12345678"), lying({"a": F}, b"12"), lying(b"[" * 10**5), lying({"a": F | {"shape": "x"}}, b"1234"),
    lying(b'{"a": %s, "a": %s}' % ((json.dumps(F).encode()), json.dumps(F | {"data_offsets": [4, 8]}).encode()), b"12345678"),
    lying({"wte.weight": F}, b"1234")])
def test_safetensors_headers_that_lie(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(lambda: GPT.from_pretrained(folder), folder)


def test_truncated_or_flipped_weights(folder):
    path = folder / "model.safetensors"
    good, rng = path.read_bytes(), random.Random(0)
    for _ in range(max(40, FUZZ // 20)):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)       # in the header or in the weights
        path.write_bytes(bad)
        try:
            GPT.from_pretrained(folder)
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        else:                                                        # what says "format" may change, the weights may not
            assert load_file(path).keys() == {hf_name(name) for name in GPT.from_pretrained(folder).state_dict()}
            assert all(torch.equal(a, b) for a, b in zip(load_file(path).values(), torch_load(good, folder).values()))
        path.write_bytes(good[: rng.randrange(len(good))])
        refused(lambda: GPT.from_pretrained(folder), "model.safetensors", "cannot be read")


def torch_load(content, folder):
    (folder / "good.safetensors").write_bytes(content)
    return load_file(folder / "good.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.ln_1.bias"][3] = value
    save_file(tensors, folder / "model.safetensors")
    refused(lambda: GPT.from_pretrained(folder), "h.0.ln_1.bias", "not finite")
    tensors["transformer.h.0.ln_1.bias"] = torch.zeros(32, dtype=torch.int64)
    save_file(tensors, folder / "model.safetensors")
    refused(lambda: GPT.from_pretrained(folder), "h.0.ln_1.bias", "int64")


def test_parts_outside_the_folder_are_not_opened(folder, tmp_path, policy):
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "..", "x/../../secret.safetensors"):
        index.write_text(json.dumps({"weight_map": {"wte.weight": name}}))
        refused(lambda: GPT.from_pretrained(folder), "index.json", "do not trust")
    for text in ("{}", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "absent"}}', "["):
        index.write_text(text)
        refused(lambda: GPT.from_pretrained(folder), folder)
    tensors = load_file(tmp_path / "secret.safetensors")            # and honest parts are put together
    for i, part in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        save_file({k: tensors[k] for k in part}, folder / f"part{i}.safetensors")
    index.write_text(json.dumps({"weight_map": {k: f"part{i % 2}.safetensors" for i, k in enumerate(tensors)}}))
    assert all(torch.equal(a, b) for a, b in zip(GPT.from_pretrained(folder).parameters(), policy.parameters()))


def test_strange_tensors_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    for name, x, said in [("transformer.h.2.ln_1.bias", torch.zeros(32), "h.2.ln_1"), ("adapter.down", torch.zeros(3), "adapter"),
                          ("lm_head.weight", torch.ones_like(tensors["transformer.wte.weight"]), "tie_word_embeddings")]:
        save_file(tensors | {name: x}, folder / "model.safetensors")
        refused(lambda: GPT.from_pretrained(folder), said)
    masks = {f"transformer.h.{i}.attn.{k}": torch.ones(1, 1, 64, 64) for i in range(2) for k in ("bias", "masked_bias")}
    save_file(tensors | masks, folder / "model.safetensors")        # old checkpoints hold their causal masks
    GPT.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------- fuzz

def mutated(rng: random.Random, seeds: list[bytes], dictionary: list[bytes]) -> bytes:
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(6):
            case 0:
                content[at:at] = rng.choice(dictionary)
            case 1:
                del content[at : at + rng.randrange(1, 9)]
            case 2 if content:
                content[at % len(content)] = rng.randrange(256)
            case 3 if content:
                content[at % len(content)] ^= 1 << rng.randrange(8)
            case 4:
                content[at:at] = content[at : at + rng.randrange(1, 30)]
            case 5:
                content[at : at + rng.randrange(12)] = rng.choice(dictionary)
    return bytes(content)


WORDS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\r", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff", b"\0", b"null",
         b"true", b"1e999", b"-0", b"NaN", b"Infinity", b"9" * 400, b"\\ud800", b"\\udc00\\ud800", b"[" * 200, b'"prompt"',
         b'"chosen"',
         b'"messages"', b'"role": "user"', b'"content"', b'"text"', b'"responses"', b'"ranks"', b"\\n\\nHuman:",
         b"\\n\\nAssistant:",
         b'"instruction": "a", "output": "b"', b'"summaries": [{"text": "a"}, {"text": "b"}], "info": {"post": ""}, "choice": 1']


def test_fuzz_the_reader(tmp_path, tokenizer):
    rng, read, used, path = random.Random(1), (read_demonstrations, read_rankings, read_prompts), 0, tmp_path / "x.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    seeds = [json.dumps(r).encode() for r in (
        {"prompt": "a", "completion": "b"}, {"text": "a"}, {"messages": turns}, {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}, {"instruction": "a", "input": "b", "output": "c"},
        {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0})]
    for i in range(FUZZ):
        path.write_bytes(mutated(rng, seeds, WORDS) + b"\n" + rng.choice(seeds) * rng.randrange(2))
        try:
            for found in read[i % 3](str(path), template=rng.choice(["chat", "raw"])):
                found = found if isinstance(found, list) else [(found, True)] if isinstance(found, str) else \
                    [(found.prompt, False), *((r, True) for r in found.responses)]
                tokenizer.render(found)
                "".join(text for text, _ in found).encode()          # what was read can be written
                used += 1
        except UserError as error:
            assert "x.jsonl" in str(error) and "\n" not in str(error)
    assert used > FUZZ // 100


def test_fuzz_tokenizer_files(tmp_path, tokenizer):
    rng, used = random.Random(2), 0
    tokenizer.save_pretrained(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    both = {"model": {"vocab": tokenizer.vocab, "merges": [" ".join(m) for m in tokenizer.merges]}, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}}
    for name in files:
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(both))
    files["tokenizer.json"] = (tmp_path / "tokenizer.json").read_bytes()
    assert Tokenizer.from_pretrained(tmp_path).encode("The fox") == tokenizer.encode("The fox")
    (tmp_path / "tokenizer.json").write_text(json.dumps(both | {"pre_tokenizer": {"type": "Metaspace"}}))
    refused(lambda: Tokenizer.from_pretrained(tmp_path), "tokenizer.json")
    for i in range(FUZZ):
        for name in files:
            (tmp_path / name).unlink(missing_ok=True)
        broken = [{"vocab.json"}, {"merges.txt"}, {"tokenizer.json"}][i % 3]
        for name in {"tokenizer.json"} if i % 3 == 2 else {"vocab.json", "merges.txt"}:
            (tmp_path / name).write_bytes(mutated(rng, [files[name]], [*WORDS, b" ", b"#version", b"\n\n", "Ġ".encode()])
                                          if name in broken else files[name])
        try:
            found = Tokenizer.from_pretrained(tmp_path)
            assert found.decode(found.encode("The fox can't \u00e9")) == "The fox can't \u00e9"
            used += 1
        except UserError as error:
            assert str(tmp_path) in str(error)
    assert used


def test_fuzz_safetensors(folder):
    rng, path, used = random.Random(3), folder / "model.safetensors", 0
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    for _ in range(FUZZ):
        changed = mutated(rng, [good[:header]], [*WORDS, b"F16", b"I64", b"BF16", b"BOOL", b'"shape":[', b"0", b"9" * 20, b"-"])
        path.write_bytes(changed + good[header:])
        try:
            (GPT if rng.random() < 0.8 else ScalarGPT).from_pretrained(folder)
            used += 1
        except UserError as error:
            assert str(folder) in str(error)
    path.write_bytes(good)
    GPT.from_pretrained(folder)
    assert used < FUZZ


# ---------------------------------------------------------------------------------------------- dirty real data

@pytest.mark.parametrize(("name", "read", "total", "skipped"), [
    ("hh_rlhf/helpful-base.test", read_rankings, 2354, 15), ("hh_rlhf/harmless-base.test", read_rankings, 2312, 9),
    ("hh_rlhf/helpful-rejection-sampled.test", read_rankings, 2749, 35),
    ("hh_rlhf/helpful-base.test", read_demonstrations, 2354, 0),
    ("hh_rlhf/harmless-base.test", read_demonstrations, 2312, 4), ("sft/dolly_3k", read_demonstrations, 2996, 0),
    ("sft/gsm8k_train", read_demonstrations, 7473, 0)])
def test_every_real_record_is_used_or_counted(capsys, name, read, total, skipped):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{name} is not here")
    used = read(str(path))
    out = capsys.readouterr().out
    assert len(used) == total - skipped
    assert out.startswith(f"data: {skipped} of {total} records skipped: ") if skipped else not out
    if skipped:
        assert sum(int(part.split()[0]) for part in out.split("skipped: ")[1].split("; ")) == skipped


def test_a_check_says_what_a_file_holds(tmp_path, capsys, tokenizer):
    rows = [{"prompt": "a", "chosen": "long answer here", "rejected": "no"}] * 2 + [
        {"prompt": "b", "chosen": "x", "rejected": "some more"}, {"prompt": "c", "chosen": "y", "rejected": "y"},
        {"prompt": "word " * 300, "chosen": "a", "rejected": "b"}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = data.check(str(path))
    for words in ("4 rankings of 3 prompts, 1 duplicates", "up to    512       1", f"longest: 309 ({path}, line 5)",
                  "longer one in 66.7% of 3 comparisons", f"--- {path}, line 1", ">>> long answer here", f"--- {path}, line 5"):
        assert words in said, said
    assert "1 of 5 records skipped" in capsys.readouterr().out
    tokenizer.save_pretrained(tmp_path / "t")
    n = len(tokenizer.encode("\n\nHuman: " + "word " * 300 + "\n\nAssistant:")) + len(tokenizer.encode("a"))
    assert f"longest: {n} " in data.check(str(path), str(tmp_path / "t"))
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"prompt": "b c"}')
    assert "3 prompts of 2 prompts, 1 duplicates" in data.check(str(path)) and f"--- {path}, line 3" in data.check(str(path))
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"text": 1}')
    refused(lambda: data.check(str(path)), "line 3", "prompt")


class Wire:
    """A connection whose other side has said everything it will say, and listens."""
    def __init__(self, said: bytes):
        self.said, self.heard = said, b""

    def makefile(self, mode, size=-1):
        return io.BytesIO(self.said)

    def sendall(self, data):
        self.heard += data

    def settimeout(self, seconds):
        pass


def test_fuzz_the_label_server(tmp_path):
    """Requests with bytes changed, cut, doubled, joined: an answer or a refusal each time, and never a record that nobody gave."""
    dice, statuses = random.Random(3), Counter()
    rows = [{"id": str(i), "prompt": f"p{i}", "responses": [f"{i}.{k}" for k in range(3)]} for i in range(30)]
    with labelserver.Server(labelserver.Sitting(rows, tmp_path / "r.jsonl", "me"), "127.0.0.1", 0) as server:
        host = f"Host: 127.0.0.1:{server.server_address[1]}\r\nX-Token: {server.token}\r\n"
        for _ in range(FUZZ):
            asked = server.sitting.question().get("question", 0)
            body = json.dumps({"question": dice.choice((asked, asked, 7, -1, "0")), "ranks": dice.sample((1, 2, 3), 3),
                               "harmful": dice.choice(([], [1], [9])), "skip": dice.random() < .2})
            request = bytearray(dice.choice((
                f"GET /question HTTP/1.1\r\n{host}\r\n", f"GET /?token={server.token} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
                f"POST /answer HTTP/1.1\r\n{host}Content-Length: {len(body)}\r\n\r\n{body}",
                f"POST /finish HTTP/1.1\r\n{host}Origin: http://127.0.0.1\r\nContent-Length: 0\r\n\r\n")).encode())
            for _ in range(dice.choice((0, 1, 1, 2, 8))):
                at, how = dice.randrange(len(request) + 1), dice.randrange(5)
                piece = dice.choice((b"\r\n", b"\0", b"\xff", b"{", b"[" * 3000, b":", b"%", b"9" * 40, b"//[", bytes(request)))
                if how == 0:
                    request[at:at + 1] = bytes([dice.randrange(256)])
                elif how < 3:
                    request[at:at] = piece
                else:
                    del request[at:at + dice.randrange(1, 30) if how == 3 else None]
            wire = Wire(bytes(request))
            labelserver.Handler(wire, ("127.0.0.1", 1), server)
            statuses[wire.heard[9:12] if wire.heard.startswith(b"HTTP/1.") else wire.heard[:1]] += 1
    known = {b"200", b"400", b"403", b"404", b"413", b"414", b"431", b"501", b"505", b"", b"{", b"<"}       # no status: HTTP/0.9
    assert not statuses.keys() - known and {b"200", b"400", b"403", b"413"} <= statuses.keys(), statuses
    records = read_jsonl(tmp_path / "r.jsonl")
    assert 0 < len(records) == len({(r["id"], r.get("repeat")) for r in records}) <= 33
    assert all(sorted(r["ranks"]) == [1, 2, 3] or (r["skipped"] and set(r["ranks"]) == {1}) for r in records)
