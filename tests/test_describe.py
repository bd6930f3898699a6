"""`python -m minirlhf.data FILE`: what a file holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

from minirlhf import UserError, describe
from minirlhf.data import Prompt, read_demonstrations, read_rankings
from minirlhf.describe import check

ROOT = Path(__file__).parents[1]


def test_a_check_says_what_a_file_holds(tmp_path, capsys, tokenizer):
    rows = [
        *[{"prompt": "a", "chosen": "long answer here", "rejected": "no"}] * 2,
        {"prompt": "b", "chosen": "x", "rejected": "some more"},
        {"prompt": "c", "chosen": "y", "rejected": "y"},
        {"prompt": "word " * 300, "chosen": "a", "rejected": "b\x1b[31m"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check(str(path))
    for words in (
        "4 rankings of 3 prompts, 1 duplicates",
        f"({path}, line 5)",
        "of 4 comparisons",
        f"--- {path}, line 1",
        ">>> long answer here",
    ):
        assert words in report
    assert "\x1b" not in report
    assert "1 of 5 records skipped" in capsys.readouterr().out

    tokenizer.save_pretrained(tmp_path / "t")
    turns = Prompt.of("word " * 300).turns
    length = len(tokenizer.encode_prompt(turns))
    length += len(tokenizer.encode_response(turns, "b\x1b[31m"))  # the longer response
    assert f"longest: {length} " in check(str(path), str(tmp_path / "t"))

    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"prompt": "b c"}')
    assert "3 prompts of 2 prompts, 1 duplicates" in check(str(path))
    path.write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"text": 1}')
    with pytest.raises(UserError, match=r"line 3.*prompt"):
        check(str(path))


def test_every_kind_is_counted(tmp_path, capsys):
    def report(*rows: dict) -> str:
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return check(str(path))

    good = {"prompt": "a", "response": "b", "label": True}
    assert "2 labelled responses (1 good, 1 bad)" in report(good, good | {"label": 0})
    assert "1 labelled responses (1 good, 0 bad)" in report(good)  # KTO would refuse it
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert "3 labelled responses (2 good, 1 bad)" in report(good, pair)
    assert "1 demonstrations" in report({"prompt": "a", "response": "b", "label": None})
    assert "1 demonstrations" in report(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    )
    ranking = {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 2]}
    assert "1 of 2 responses, 1 of 3 responses; 1 of 4 comparisons are ties" in report(
        ranking, pair
    )
    assert "1 prompts" in report({"prompt": "a", "answer": 7})
    assert "fields not used: answer" in capsys.readouterr().out
    long = report({"text": "word " * 1000})
    assert len(long) < 2000 and "(5000 characters)" in long


def test_overlaps(tmp_path):
    rows = {"a.jsonl": ["x", "y", "y"], "b.json": ["y", "z"], "c.csv": ["w"]}
    prompts = [{"prompt": text, "completion": "r"} for text in rows["a.jsonl"]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    prompts = [{"prompt": text, "completion": "r"} for text in rows["b.json"]]
    (tmp_path / "b.json").write_text(json.dumps({"data": prompts}))
    (tmp_path / "c.csv").write_text("prompt,completion\nw,r\n")
    a, b, c = (str(tmp_path / name) for name in rows)
    assert f"1 of 2 prompts of {a} are also in {b}" in check(f"{a},{b},{c}")
    assert check(str(tmp_path)).count("are also in") == 1
    assert "no prompt is in two files" in check(f"{a},{c}")
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(name)
    texts = ",".join(str(tmp_path / name) for name in ("one.txt", "two.txt"))
    assert "no prompt is in two files" in check(texts)


def test_as_a_command(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    describe.main([str(path)])
    assert "1 demonstrations" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        describe.main([str(tmp_path / "no\x1b\n.jsonl")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "\x1b" not in error


def test_a_reader_that_has_seen_enough(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "minirlhf.data", str(path)]
    done = subprocess.run(command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


REAL = [
    ("hh_rlhf/helpful-base.test", read_rankings, 2354, 15),
    ("hh_rlhf/harmless-base.test", read_rankings, 2312, 9),
    ("hh_rlhf/helpful-rejection-sampled.test", read_rankings, 2749, 35),
    ("sft/dolly_3k", read_demonstrations, 2996, 0),
    ("sft/gsm8k_train", read_demonstrations, 7473, 0),
]


@pytest.mark.parametrize("name, read, total, skipped", REAL)
def test_every_real_record_is_used_or_counted(capsys, name, read, total, skipped):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{name} is not here")
    assert len(read(str(path))) == total - skipped
    printed = capsys.readouterr().out
    if skipped:
        assert f"{skipped} of {total} records skipped" in printed
