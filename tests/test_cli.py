"""A script for these tests.

Its second paragraph.
"""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from minirlhf import UserError, cli


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # model to start from
    out: str = "out/x"  # the run's folder
    steps: int = 40  # how many; 100% of them
    lr: float = 1e-3  # learning rate

    # method
    advantage: Literal["gae", "rloo"] = "gae"  # what an answer is compared with
    penalty: float = -1.0  # of an unfinished response
    group_std: bool = True  # divide
    # run
    resume: bool = False  # go on


def run(monkeypatch, main, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train_x.py", *argv])
    try:
        cli.start(main, Settings)
    except SystemExit as end:
        return end.code
    return 0


def test_flags_become_settings_and_settings_a_command():
    argv = ["--steps", "3", "--lr=0.5", "--advantage", "rloo", "--no-group_std", "--resume"]
    settings = cli.parse(Settings, argv)
    expected = Settings(steps=3, lr=0.5, advantage="rloo", group_std=False, resume=True)
    assert settings == expected and cli.parse(Settings, []) == Settings()
    words = cli.command("train_x.py", Settings(init="a b", penalty=-2.0, resume=True)).split()
    assert words == ["python", "train_x.py", "--init", "'a", "b'", "--penalty", "-2.0", "--resume"]


def test_help_shows_the_docstring_and_then_the_groups_in_order(monkeypatch, capsys):
    assert run(monkeypatch, pytest.fail, "--help") == 0
    text = capsys.readouterr().out
    parts = ["A script", "second paragraph", "everyday:", "--init", "model to start from"]
    parts += ["out/sft", "100%", "method:", "{gae,rloo}", "--no-group_std", "run:", "--resume"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--lrr", "1"], ["--lrr", "--lr?"]),
        (["--group-std"], ["--group_std"]),
        (["--no-grup_std"], ["--no-group_std?"]),
        (["--step", "3"], ["--step", "--steps?"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps", "-1"], ["--steps", "-1"]),
        (["--lr", "nan"], ["--lr"]),
        (["--penalty", "-inf"], ["--penalty"]),
        (["--lr", "-0.1"], ["--lr"]),
        (["--lr", "1e-40"], ["--lr 1e-40", "1e-30"]),  # float32 makes it 0
        (["--lr", "1e300"], ["--lr 1e+300", "1e+30"]),
        (["--steps", str(2**64)], [f"--steps {2**64}"]),
        (["--steps", "9" * 5000], ["--steps"]),
        (["--advantage", "ppo"], ["--advantage", "gae", "rloo"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(argv, parts, monkeypatch, capsys):
    assert run(monkeypatch, pytest.fail, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert all(part in said for part in parts), said


def test_at_least():
    cli.at_least(1, Settings(), "steps")
    with pytest.raises(UserError, match="--steps 0"):
        cli.at_least(1, Settings(steps=0), "steps")


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (UserError("x.jsonl, line 3: no"), 2, ["x.jsonl, line 3"]),
        (OSError(28, "No space left on device", "out/x/model"), 2, ["out/x/model", "--resume"]),
        (OSError(28, "No space left on device"), 2, ["out/x: No space"]),
        (FileNotFoundError(2, "No such file or directory", "a.jsonl"), 2, ["a.jsonl", "name"]),
        (UserError("\x1b[2Jtwo\r\nlines\u202e"), 2, ["\\x1b[2Jtwo\\r\\nlines\\u202e"]),
        (RuntimeError("CUDA out of memory.\nTried to"), 2, ["out of memory", "--init", "--resume"]),
        (MemoryError(), 2, ["out of memory"]),
        (RuntimeError("int64_t without overflow"), 2, ["a number that was given is too large"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_errors_are_sentences_and_exit_codes(error, code, parts, monkeypatch, capsys):
    def main(settings):
        raise error

    assert run(monkeypatch, main) == code
    said = capsys.readouterr().err
    assert all(part in said for part in parts) and said.count("\n") == (code == 2)


def test_what_steers_a_terminal_is_escaped_and_letters_are_not():
    assert cli.printable("a\x1b]0;\x07\x9b\b\r") == r"a\x1b]0;\x07\x9b\x08\r"
    assert cli.printable("\u202eevil\u2066\ud800") == r"\u202eevil\u2066\ud800"
    text = "two\n\tlines, naïve 東京\u3000👩\u200d👩 שלום \xa0"
    assert cli.printable(text) == text


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main(settings):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run(monkeypatch, main)


def test_a_console_without_the_letters_of_a_sample(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(monkeypatch, lambda settings: print("± 日")) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xb1 \\u65e5\n"


# ---- at the terminal's edges

SCRIPT = """
from dataclasses import dataclass
from minirlhf.cli import start


@dataclass
class Settings:
    show_batch: bool = False  # a flag
    resume: bool = False  # another


def main(settings):
    print("é" * 9)
    for number in range(20_000):
        print(number)
    print(input("more? "))


start(main, Settings)
"""


@pytest.fixture
def run_script(tmp_path):
    """Runs SCRIPT in a shell, with what its streams are redirected to."""

    def run(redirected: str, script: str = SCRIPT, **variables) -> subprocess.CompletedProcess:
        path = tmp_path / "script.py"
        path.write_text(script, encoding="utf-8")
        variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | variables
        variables.pop("PYTHONUNBUFFERED", None)
        line = f"set -o pipefail; {sys.executable} {path} {redirected}"
        return subprocess.run(["bash", "-c", line], env=variables, capture_output=True, text=True)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="bash and /dev/full")
def test_streams_that_are_closed_full_or_of_few_letters(run_script):
    done = run_script("< /dev/null", PYTHONIOENCODING="ascii")
    assert r"\xe9" in done.stdout and "EOFError" in done.stderr  # main asks for a line in vain
    assert "EOFError" in run_script("<&-").stderr
    assert run_script("<<< yes >&-").returncode == 0
    full = run_script("<<< yes > /dev/full")
    assert full.returncode == 2 and len(full.stderr.splitlines()) == 1
    assert "No space left" in full.stderr
    unread = run_script("<<< yes | head -1", SCRIPT.replace("resume", "again"))
    assert unread.returncode == 0 and not unread.stderr
    unread = run_script("<<< yes | head -1")
    assert unread.returncode == 2 and "--resume goes on" in unread.stderr
