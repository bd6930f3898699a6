"""The scripts as a user starts them: help, wrong input, one sentence and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import train_ppo
import train_rm
from minirlhf import cli

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    "train_sft.py",
    "train_rm.py",
    "train_ppo.py",
    "train_dpo.py",
    "sample.py",
    "label.py",
    "evaluate.py",
    "run_rlhf.py",
    "examples/revise.py",
]
GOOD = json.dumps({"prompt": "hi", "completion": "hello"})
PAIR = json.dumps({"prompt": "hi", "chosen": "a", "rejected": "b"})


def run_script(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    "script, lines, words",
    [
        ("train_sft.py", [GOOD] * 16 + ['{"prompt": "hi"'], ["line 17", "JSON"]),
        (
            "train_rm.py",
            [PAIR, '{"prompt": "hi", "responses": ["a", "b"], "ranks": [1]}'],
            ["line 2"],
        ),
        ("train_ppo.py", ['{"completion": "x"}'], ["line 1", "prompt"]),
        ("train_dpo.py", ['{"prompt": "x"}'], ["line 1", "chosen"]),
        ("sample.py", [json.dumps({"prompt": "word " * 500})], ["context"]),
        ("label.py", ['{"prompt": "hi"}'], ["line 1", "responses"]),
    ],
)
def test_a_wrong_record_is_one_sentence_and_exit_code_2(script, lines, words, stages, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(line + "\n" for line in lines))
    flags = ["--data", data, "--init", stages / "sft", "--out", tmp_path / "x"]
    if script == "train_ppo.py":
        flags += ["--reward", stages / "rm"]
    if script == "sample.py":
        flags = flags[:4]
    if script == "label.py":
        flags = ["--candidates", data, "--out", tmp_path / "x.jsonl"]
    assert_one_sentence(run_script(script, *flags), *words)
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_missing_files_and_folders(stages, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    out = ["--out", tmp_path / "x"]
    rankings, rm = stages / "rankings.jsonl", stages / "rm"
    for words, name in [
        (("train_sft.py", "--data", tmp_path / "no.jsonl", *out), "no.jsonl"),
        (("train_rm.py", "--init", tmp_path / "nothing", "--data", rankings, *out), "nothing"),
        (("train_ppo.py", "--init", bare, "--reward", rm, *out), "bare"),
        (("train_ppo.py", "--init", stages / "sft", "--reward", tmp_path / "r.py:f", *out), "r.py"),
        (("train_sft.py", "--stepz", "3", *out), "--steps"),
        (("train_rm.py", "--data", tmp_path / "rankings.jsonl", *out), "`python label.py --out"),
    ]:
        assert_one_sentence(run_script(*words), name)
    assert not list((tmp_path / "x").glob("*"))


@pytest.mark.parametrize(
    "line",
    [
        "train_ppo.py --init SFT --reward no --out a/x",
        "train_dpo.py --init SFT --data RANKINGS --reference no --out a/x",
        "label.py --chat --policies no --out a/x.jsonl",
        "label.py --candidates CANDIDATES --annotator ai --judge no --out a/x.jsonl",
        "run_rlhf.py --world no --out a/x",
        "run_rlhf.py --preset real --init no --out a/x",
        "run_rlhf.py --preset real --init SFT --data no.jsonl --out a/x",
        "examples/revise.py --init no --out a/x.jsonl",
    ],
)
def test_nothing_is_left_where_an_input_is_missing(line, stages, tmp_path):
    (tmp_path / "candidates.jsonl").write_text('{"prompt": "hi", "responses": ["a", "b"]}\n')
    line = line.replace("SFT", str(stages / "sft"))
    line = line.replace("RANKINGS", str(stages / "rankings.jsonl"))
    line = line.replace("CANDIDATES", "candidates.jsonl")
    script, *words = line.split()
    command = [sys.executable, ROOT / script, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert_one_sentence(done, "no")
    assert [path.name for path in tmp_path.iterdir()] == ["candidates.jsonl"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_help(script):
    module = __import__(script[:-3].replace("/", "."), fromlist=["Settings"])
    notes = cli.comments(module.Settings)
    for name in module.Settings.__dataclass_fields__:
        heading, text = notes[name]
        assert heading and text
    assert next(iter(notes.values()))[0] == "everyday"


def test_help_shows_the_groups_in_order():
    done = run_script("train_ppo.py", "--help")
    assert done.returncode == 0
    places = [done.stdout.index(f"\n{group}:") for group in ("everyday", "method", "memory", "run")]
    assert places == sorted(places)


def test_a_finished_run_says_which_command_comes_next(stages, tmp_path):
    sft, rm, ppo = stages / "sft", stages / "rm", tmp_path / "ppo"
    rl = {"steps": 1, "prompts_per_step": 4, "minibatches": 1, "max_tokens": 8}
    flags = ["--init", sft, "--reward", rm, "--out", ppo]
    for name, value in rl.items():
        flags += [f"--{name}", value]
    done = run_script("train_ppo.py", *flags)
    command = f"python evaluate.py --policies {sft},{ppo} --reward {rm} --max_tokens 8"
    assert done.stdout.endswith(f"next: {command}\n"), done.stderr
    again = run_script("train_ppo.py", *flags, "--resume")
    assert "finished already" in again.stdout and again.stdout.endswith(f"next: {command}\n")
    shown = run_script("train_ppo.py", *flags[:4], "--out", tmp_path / "x", "--show_batch")
    assert shown.returncode == 0 and "next:" not in shown.stdout
    settings = train_ppo.Settings(reward="out/rm,my.py:f", reward_weights="0.7,0.3")
    assert train_ppo.then(settings)[-3:] == ["out/rm,my.py:f", "--reward_weights", "0.7,0.3"]
    raw = train_ppo.Settings(reward="out/rm", template="raw", unfinished_score=-2)
    assert train_ppo.then(raw)[-4:] == ["--template", "raw", "--unfinished_score", "-2"]
    settings = train_rm.Settings(init="out/sft", normalize_on="a folder", out="out/rm")
    assert train_rm.then(settings)[3:] == ["a folder", "--reward", "out/rm"]
    raw = train_rm.Settings(init="out/sft", out="out/rm", template="raw")
    assert train_rm.then(raw)[-2:] == ["--template", "raw"]
