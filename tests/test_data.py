"""Records of every shape, real files, bad input, splits and batches."""

import gzip
import json
import random
import types
from pathlib import Path

import pytest
import torch
from conftest import SHARED

import minirlhf
from minirlhf import UserError
from minirlhf.data import (
    batch_indices,
    fit,
    held_out,
    micro_batches,
    pad,
    read_demonstrations,
    read_prompts,
    read_rankings,
    records,
)
from minirlhf.tokenizer import ASSISTANT, HUMAN, Tokenizer

PROMPT = "\n\nHuman: hi\n\nAssistant:"
USER, ASSISTANT_SAYS = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="file.jsonl"):
        path = tmp_path / name
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not here")
    return str(SHARED / name)


# ---- shapes of records


@pytest.mark.parametrize("record", [
    {"prompt": "hi", "completion": "yo"},
    {"prompt": "hi", "completion": " yo"},
    {"prompt": PROMPT, "completion": "yo"},
    {"prompt": PROMPT + " ", "completion": "yo"},
    {"prompt": "\n\nHuman: hi", "completion": "yo"},
    {"prompt": [USER], "completion": [ASSISTANT_SAYS]},
    {"messages": [USER, ASSISTANT_SAYS]},
    {"prompt": "hi", "chosen": "yo", "rejected": "no"},
    {"chosen": PROMPT + " yo", "rejected": PROMPT + " no"},
    {"chosen": [USER, ASSISTANT_SAYS], "rejected": []},
])  # fmt: skip
def test_demonstrations(write, record):
    assert read_demonstrations(write(record)) == [[(PROMPT, False), (" yo", True)]]
    assert read_prompts(write(record)) == [PROMPT]


def test_demonstrations_of_several_turns(write):
    dialogue = PROMPT + " a\n\nHuman: b\n\nAssistant:"
    expected = [(PROMPT, False), (" a", True), ("\n\nHuman: b\n\nAssistant:", False), (" c", True)]
    assert read_demonstrations(write({"prompt": dialogue, "completion": "c"})) == [expected]
    assert read_demonstrations(write({"chosen": dialogue + " c"})) == [expected]


def test_raw_template(write):
    path = write({"prompt": "Text. TL;DR:", "completion": " short"}, {"prompt": "", "completion": "x"})
    assert read_demonstrations(path, template="raw") == [[("Text. TL;DR:", False), (" short", True)], [("x", True)]]
    pair = read_rankings(write({"prompt": "TL;DR:", "chosen": " a", "rejected": "a"}), template="raw")[0]
    assert (pair.prompt, pair.responses) == ("TL;DR:", [" a", "a"])
    with pytest.raises(UserError, match="chat or raw"):
        read_prompts(path, template="Chat")


def test_rankings(write):
    path = write(
        {"prompt": "hi", "responses": ["a", "", "c"], "ranks": [2, 3, 1], "annotator": "me"},
        {"prompt": "hi", "chosen": " a", "rejected": "b"},
        {"chosen": PROMPT + " a", "rejected": PROMPT + " b"},
        {"prompt": [USER], "chosen": [ASSISTANT_SAYS | {"content": "a"}], "rejected": "b"},
    )
    first, *pairs = read_rankings(path)
    assert (first.prompt, first.responses, first.ranks, first.annotator) == (PROMPT, ["a", "", "c"], [2, 3, 1], "me")
    assert first.where == f"{path}, line 1"
    assert [(p.prompt, p.responses, p.ranks) for p in pairs] == [(PROMPT, ["a", "b"], [1, 2])] * 3


def test_prompts_are_taken_once_each_in_order(write):
    ranking = {"prompt": "a", "responses": ["x", "y"], "ranks": [1, 2]}
    path = write({"prompt": "b"}, ranking, {"prompt": "b", "completion": "z"}, {"messages": [USER]})
    assert read_prompts(path) == [f"{HUMAN} {text}{ASSISTANT}" for text in ("b", "a", "hi")]


# ---- files


def test_files(write, tmp_path):
    text = "a\u2028b\rc\x85d"
    one = write({"text": text}, "", "  \r", {"text": "é"}, name="one.jsonl.gz")
    (tmp_path / "two.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x\xe2\x80\xa8y"}\r\n{"text": "last"}')
    three = write(json.dumps([{"text": "p"}, {"text": "q"}], indent=1), name="three.json")
    (tmp_path / "four.txt").write_bytes(b"l1\r\nl2")
    two, four = str(tmp_path / "two.jsonl"), str(tmp_path / "four.txt")
    found = list(records(f"{one}, {two},{three},{four}", "demonstrations"))
    assert [r["text"] for _, r in found] == [text, "é", "x\u2028y", "last", "p", "q", "l1\r\nl2"]
    assert [w.split("/")[-1] for w, _ in found] == ["one.jsonl.gz, line 1", "one.jsonl.gz, line 4", "two.jsonl, line 1",
        "two.jsonl, line 2", "three.json, record 1", "three.json, record 2", "four.txt"]  # fmt: skip
    assert len(list(records(f"{one},{two}", "demonstrations", count=3))) == 4          # count is the toy world's
    assert read_demonstrations(one)[0] == [(text, True)]


def test_toy(monkeypatch):
    toy = types.ModuleType("minirlhf.toyworld")
    toy.prompts = lambda split, count, seed: [f"{split} {seed} {i}" for i in range(count)]
    toy.demonstrations = lambda *which: [{"prompt": p, "completion": "yes"} for p in toy.prompts(*which)]
    monkeypatch.setitem(__import__("sys").modules, "minirlhf.toyworld", toy)
    monkeypatch.setattr(minirlhf, "toyworld", toy, raising=False)
    assert read_prompts("toy", split="test", count=2, seed=5) == [f"{HUMAN} test 5 {i}{ASSISTANT}" for i in range(2)]
    assert len(read_demonstrations("toy", count=3)) == 3 and len(read_demonstrations("toy")) > 100
    with pytest.raises(UserError, match=r"label\.py"):
        read_rankings("toy")


# ---- bad input


GOOD = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
RANKING = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}


@pytest.mark.parametrize("read, record, words", [
    (read_demonstrations, "{oops", ["not valid JSON", "oops"]),
    (read_demonstrations, "[1]", ["must be an object", "a list"]),
    (read_demonstrations, {"prompt": "p", "complection": "c"}, ["'completion' is missing", "complection", "add it"]),
    (read_demonstrations, {"prompt": 3, "completion": "c"}, ["'prompt' must be a text", "a number", "mend"]),
    (read_demonstrations, {"prompt": "p", "completion": None}, ["'completion' must be a text", "null"]),
    (read_demonstrations, {"text": ["x"]}, ["'text' must be a text, not a list"]),
    (read_demonstrations, {"messages": "x"}, ["'messages' must be a list"]),
    (read_demonstrations, {"messages": []}, ["'messages'", "message 1"]),
    (read_demonstrations, {"messages": [USER | {"role": "bot"}]}, ["'messages'", "message 1", "'bot'", "use user"]),
    (read_demonstrations, {"question": "x"}, ["'prompt' is missing", "question"]),
    (read_demonstrations, {}, ["'prompt' is missing"]),
    (read_prompts, {"text": "x"}, ["'prompt' is missing", "text"]),
    (read_prompts, {"prompt": [{"role": "assistant", "content": "x"}]}, ["'prompt' ends with", "user's"]),
    (read_rankings, GOOD, ["'chosen' is missing", "completion"]),
    (read_rankings, {"prompt": "p", "chosen": "c"}, ["'rejected' is missing", "add it"]),
    (read_rankings, {"chosen": "c", "rejected": "r"}, ["'chosen' is no dialogue", "add a field 'prompt'"]),
    (read_rankings, PAIR | {"chosen": []}, ["'chosen'"]),
    (read_rankings, PAIR | {"chosen": [{"role": "user", "content": "x"}]}, ["'chosen'", "one message"]),
    (read_rankings, RANKING | {"ranks": [1, 2, 3]}, ["2 'responses'", "3 'ranks'", "give"]),
    (read_rankings, RANKING | {"ranks": [1]}, ["2 'responses'", "1 'ranks'"]),
    (read_rankings, RANKING | {"responses": ["a"], "ranks": [1]}, ["1 'responses'", "2 or more"]),
    (read_rankings, RANKING | {"ranks": [1, "2"]}, ["'ranks' holds '2'", "whole number"]),
    (read_rankings, RANKING | {"ranks": [1, True]}, ["'ranks' holds True"]),
    (read_rankings, RANKING | {"responses": ["a", "a"], "ranks": [1, 10**400]}, ["'ranks' holds 10000"]),
    (read_rankings, RANKING | {"ranks": [1, float("nan")]}, ["'ranks' holds nan"]),
    (read_rankings, RANKING | {"ranks": 1}, ["'ranks' must be a list"]),
    (read_rankings, RANKING | {"responses": ["a", 2]}, ["'responses[1]' must be a text"]),
    (read_rankings, {"prompt": "p", "responses": ["a", "b"]}, ["'ranks' is missing"]),
])  # fmt: skip
def test_malformed_records(write, read, record, words):
    good = {read_demonstrations: GOOD, read_prompts: GOOD, read_rankings: PAIR}[read]
    path = write(*[good] * 16, record, good)
    with pytest.raises(UserError) as caught:
        read(path)
    for word in [f"{path}, line 17", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read, record, words", [
    (read_rankings, PAIR | {"rejected": "c"}, ["'chosen' that equals 'rejected'", "mend"]),
    (read_rankings, PAIR | {"rejected": " "}, ["empty 'chosen' or 'rejected'"]),
    (read_rankings, {"chosen": "", "rejected": ""}, ["empty 'chosen'"]),
    (read_rankings, {"chosen": PROMPT + " a", "rejected": "x" + PROMPT + " b"}, ["differ before the last assistant"]),
    (read_rankings, RANKING | {"ranks": [1, 1]}, ["all 'ranks' tied"]),
    (read_demonstrations, GOOD | {"completion": ""}, ["empty 'completion'"]),
    (read_demonstrations, GOOD | {"prompt": "\n"}, ["empty 'prompt'"]),
    (read_demonstrations, {"text": ""}, ["empty 'text'"]),
    (read_demonstrations, {"messages": [{"role": "user", "content": "x"}]}, ["no assistant turn in 'messages'"]),
])  # fmt: skip
def test_useless_records_are_counted_and_fatal_only_alone(write, capsys, read, record, words):
    good = GOOD if read is read_demonstrations else PAIR
    path = write(good, record, good, record)
    assert len(read(path)) == 2
    out = capsys.readouterr().out
    assert out.startswith("data: 2 of 4 records skipped: 2 with") and out.endswith(f"(first: {path}, line 2)\n")
    path = write(record)
    with pytest.raises(UserError) as caught:
        read(path)
    assert all(word in str(caught.value) for word in [f"{path}, line 1", *words])
    assert all(word in out for word in words[:1])


def test_bad_files(write, tmp_path):
    def refused(data, *words):
        with pytest.raises(UserError) as caught:
            read_demonstrations(str(data))
        assert all(word in str(caught.value) for word in [Path(data).name, *words]), str(caught.value)

    refused(tmp_path / "none.jsonl", "No such file", "--data")
    refused(write(), "no record", "one JSON object")
    refused(write("", " "), "no record")
    refused(write(name="a.jsonl.gz"), "no record")
    refused(tmp_path / "a.csv", ".jsonl", "rename")
    refused(write(GOOD, name="a.json"), "list")
    refused(write("[", name="b.json"), "not valid JSON")
    refused(write('{"text": ' + "1" * 5000 + "}", name="big.jsonl"), "line 1")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    refused(tmp_path / "latin.jsonl", "line 2", "UTF-8")
    (tmp_path / "plain.jsonl.gz").write_bytes(b"no gzip")
    refused(tmp_path / "plain.jsonl.gz", "gzip", "intact")
    whole = gzip.compress(json.dumps({"text": "x" * 1000}).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    refused(tmp_path / "cut.jsonl.gz", "intact")
    (tmp_path / "folder.jsonl").mkdir()
    refused(tmp_path / "folder.jsonl", "--data")


# ---- real files


@pytest.mark.parametrize("name, total, differing, empty, identical, longer", [
    ("harmless-base", 2312, 5, 4, 0, 0.442),
    ("helpful-base", 2354, 9, 4, 2, 0.607),
    ("helpful-rejection-sampled", 2749, 3, 0, 32, 0.574),
])  # fmt: skip
def test_hh_rlhf(capsys, name, total, differing, empty, identical, longer):
    tokenizer = Tokenizer.from_pretrained(Path(shared("gpt2/vocab.json")).parent)
    rankings = read_rankings(shared(f"hh_rlhf/{name}.test.jsonl.gz"))
    out = capsys.readouterr().out
    assert len(rankings) == total - differing - empty - identical
    for count, words in [(differing, "that differ before"), (empty, "empty 'chosen'"), (identical, "that equals")]:
        assert (words in out) == (count > 0) and (not count or f"{count} with" in out.split(words)[0].split(";")[-1])
    assert all(r.prompt.endswith(ASSISTANT) and r.prompt.startswith(HUMAN) for r in rankings)
    lengths = [[len(tokenizer.encode_response(r.prompt, text)) for text in r.responses] for r in rankings]
    share = sum(a > b for a, b in lengths) / sum(a != b for a, b in lengths)
    assert share == pytest.approx(longer, abs=0.0006)  # in GPT-2 tokens of the response, equal lengths apart
    assert len(read_demonstrations(shared(f"hh_rlhf/{name}.test.jsonl.gz"))) >= total - empty


def test_line_separators_inside_real_records():
    assert len(read_demonstrations(shared("sft/dolly_3k.jsonl.gz"))) == 2996
    gsm = read_demonstrations(shared("sft/gsm8k_train.jsonl.gz"))
    assert len(gsm) == 7473 and any("\u2028" in text for r in gsm for text, _ in r)


def test_padding_is_rare_in_real_batches():
    tokenizer = Tokenizer.from_pretrained(Path(shared("gpt2/vocab.json")).parent)
    rows = [tokenizer.render(segments)[0] for segments in read_demonstrations(shared("sft/dolly_3k.jsonl.gz"))]
    rows = fit(rows, 1024, "demonstrations")
    real = padded = 0
    for step in range(40):
        lengths = [len(rows[i]) for i in batch_indices(len(rows), step, 64, 0)]
        for batch in micro_batches(lengths, 2048):
            real += sum(lengths[i] for i in batch)
            padded += len(batch) * max(lengths[i] for i in batch)
    assert 1 - real / padded < 0.10


# ---- splits and batches


def test_held_out_keeps_a_prompts_records_together():
    items = [(f"prompt {i % 50}", i) for i in range(200)]
    train, validation = held_out(items, key=lambda item: item[0], fraction=0.2, seed=1)
    assert sorted(train + validation, key=lambda item: item[1]) == items
    assert train == sorted(train, key=lambda item: item[1])
    assert not {p for p, _ in train} & {p for p, _ in validation} and 4 <= len({p for p, _ in validation}) <= 16
    assert (train, validation) == held_out(items, key=lambda item: item[0], fraction=0.2, seed=1)
    assert validation != held_out(items, key=lambda item: item[0], fraction=0.2, seed=2)[1]
    grown = held_out([*items, ("new", 200)], key=lambda item: item[0], fraction=0.2, seed=1)  # the others stay
    assert set(validation) <= set(grown[1]) and set(train) <= set(grown[0])


def test_held_out_of_few():
    for seed in range(20):
        for fraction in (0.01, 0.99):
            train, validation = held_out(["a", "b"], key=str, fraction=fraction, seed=seed)
            assert len(train) == len(validation) == 1
    for fraction in (0.1, 0.99):
        for prompt in "abcdefgh":  # one prompt alone is trained on, whatever its hash
            assert held_out([prompt] * 2, key=str, fraction=fraction) == ([prompt] * 2, [])
    assert held_out(["a", "b"], key=str, fraction=0) == (["a", "b"], [])
    assert held_out([], key=str) == ([], [])


def test_batches_are_epochs_of_permutations():
    n, size = 10, 4
    stream = [i for step in range(15) for i in batch_indices(n, step, size, seed=3)]
    for epoch in range(6):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert stream[:n] != stream[n : 2 * n]
    assert batch_indices(n, 7, size, seed=3) == stream[28:32] and batch_indices(n, 7, size, seed=4) != stream[28:32]
    assert len(batch_indices(3, 0, 8, seed=0)) == 8


def test_micro_batches():
    rng = random.Random(0)
    for _ in range(100):
        lengths = [rng.randrange(0, 300) for _ in range(rng.randrange(0, 70))]
        batches = micro_batches(lengths, 500)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 500 for batch in batches)
        assert batches == micro_batches(lengths, 500)
    assert sorted(micro_batches([900, 1], 500)) == [[0], [1]]
    assert sorted(map(len, micro_batches([10] * 7, 40))) == [3, 4]


def test_pad():
    tokens, lengths = pad([[1, 2, 3], [4], []])
    assert tokens.tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]] and lengths.tolist() == [3, 1, 0]
    assert tokens.dtype == lengths.dtype == torch.long
    assert pad([[]])[0].shape == (1, 0)


def test_fit(capsys):
    assert fit([[1], [1, 2], [1, 2, 3]], 2, "demonstrations") == [[1], [1, 2]]
    assert capsys.readouterr().out == "data: 1 of 3 demonstrations skipped: longer than the model's context of 2 tokens\n"
    assert fit([([1, 2], "x")], 2, "rows", length=lambda row: len(row[0])) == [([1, 2], "x")]
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match=r"shortest has 3; shorten them"):
        fit([[1, 2, 3]], 2, "demonstrations")
