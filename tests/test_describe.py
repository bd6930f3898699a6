"""`python -m minirlhf.data FILE`: what a file holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

from minirlhf import UserError
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


def test_as_a_command(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    command = [sys.executable, "-m", "minirlhf.data"]
    done = subprocess.run([*command, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 demonstrations" in done.stdout
    done = subprocess.run(
        [*command, tmp_path / "no.jsonl"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")


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
