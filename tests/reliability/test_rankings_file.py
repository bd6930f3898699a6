"""The file of rankings: killed annotators, and many rankings."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import KILLS

from minirlhf.data import Prompt
from minirlhf.feedback import annotators, rankings
from minirlhf.files import read_jsonl, write_jsonl

if not hasattr(os, "fork") or sys.platform != "linux":
    pytest.skip("needs fork", allow_module_level=True)

from lives import Lives


def without_time(path: Path) -> list[dict]:
    return [row | {"time": None} for row in read_jsonl(path)]


def test_a_simulated_annotator_that_is_killed_ranks_everything_once(tmp_path):
    lives = Lives(tmp_path)
    rows = []
    for i in range(60):
        texts = [f"{word} {i}." for word in ("Yes", "No", "I do not know")]
        rows.append({"id": i, "prompt": f"Is {i} prime?", "responses": texts})
    write_jsonl(tmp_path / "c.jsonl", rows)
    argv = ["label.py", "--candidates", str(tmp_path / "c.jsonl"), "--annotator", "toyworld"]
    code, printed = lives([*argv, "--out", str(tmp_path / "whole.jsonl")])
    assert code == 0, printed
    cut = tmp_path / "cut.jsonl"
    dice = random.Random(0)
    for _ in range(KILLS):
        code, printed = lives([*argv, "--out", str(cut)], die=dice.randint(1, 20))
        assert code in (0, -signal.SIGKILL), printed
        if cut.exists() and dice.random() < 0.5:
            cut.write_bytes(cut.read_bytes()[: -dice.randint(1, 30)])  # the last line is torn
    code, printed = lives([*argv, "--out", str(cut)])
    lives.close()
    assert code == 0, printed
    assert without_time(cut) == without_time(tmp_path / "whole.jsonl")
    assert not list(tmp_path.glob("*.lock"))


def test_a_summary_takes_time_in_proportion(tmp_path):
    """20 000 rankings, by two annotators and by 2 000. On an idle core they take one second."""
    for count in (2, 2000):
        path = tmp_path / f"{count}.jsonl"
        for number in range(20000):  # each question is for two of them
            prompt = Prompt.of(f"Question {number // 2}?")
            candidate = rankings.Candidate(number // 2, prompt, [f"answer {k}" for k in range(4)])
            ranks = [1, 2, 2, 4] if number % 3 else [2, 1, 3, 4]
            annotator = f"a{number % count}"
            rankings.append_ranking(path, candidate, ranks, annotator, sync=False)
        began = time.monotonic()
        assert "agree" in annotators.summarize(str(path))
        assert time.monotonic() - began < 15
