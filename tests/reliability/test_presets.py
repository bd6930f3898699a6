"""run_rlhf.py: the loop on the toy world and on human preferences, small; and no memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizer_folders
import torch

import run_rlhf
from minirlhf import UserError
from minirlhf.files import read_json, read_jsonl
from minirlhf.model import GPT, Config
from minirlhf.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PARTS = ("pairs.jsonl", "judge.jsonl", "questions.jsonl")
ANSWERS = ["I would try the lake in spring.", "No idea.", "It depends on the weather."]


@pytest.mark.parametrize("chat", [False, True])
def test_the_preset_runs_on_human_preferences(chat, tmp_path):
    """A model with a chat format has learned to answer: it needs no SFT."""
    rows = []
    for i in range(90):
        question = f"\n\nHuman: question {i} of many?\n\nAssistant:"
        rows.append(
            {"chosen": f"{question} {ANSWERS[i % 3]}", "rejected": f"{question} Why do you ask?"}
        )
    rows.append({"chosen": f"{question} {'many ' * 400}", "rejected": f"{question} None."})
    pairs = tmp_path / "my_pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([row["chosen"] for row in rows], 400)
    if chat:
        tokenizer = Tokenizer.from_pretrained(tokenizer_folders.write(tmp_path / "chat", "smollm2"))
    GPT(Config(tokenizer.vocab_size, 256, 32, 2, 4), tokenizer).save_pretrained(tmp_path / "init")
    out = tmp_path / "out"
    settings = run_rlhf.Settings(
        preset="real",
        init=str(tmp_path / "init"),
        data=str(pairs),
        out=str(out),
        quick=True,
        longest_pair=200,
    )
    run_rlhf.main(settings)

    parts = []
    for name in PARTS:
        parts.append({row["prompt"] for row in read_jsonl(out / name)})
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 90  # nothing is on two sides
    chosen = [row["chosen"] for name in PARTS for row in read_jsonl(out / name)]
    assert len(chosen) == 90  # the pair that is too long is left out
    report = read_json(out / "report.json")
    stages = [policy["stage"] for policy in report["policies"]]
    assert stages == ["init" if chat else "SFT", "round 1"]
    assert (out / "sft").exists() is not chat
    result = read_json(out / "evaluation.json")["results"][0]
    assert result["gold"]["mean"] != result["reward"]["mean"]

    written = (out / "report.json").stat().st_mtime_ns
    run_rlhf.main(settings)  # all stages are done
    assert (out / "report.json").stat().st_mtime_ns > written
    settings.kl_coef = 0.5
    with pytest.raises(UserError, match="kl_coef"):
        run_rlhf.main(settings)


def test_really_out_of_memory(tmp_path):
    """A batch of rows that no machine has memory for, in a process that may take 4 GiB."""
    resource = pytest.importorskip("resource")
    (tmp_path / "x.txt").write_text("ab " * 2_000_000)

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))

    flags = {
        "--data": tmp_path / "x.txt",
        "--out": tmp_path / "run",
        "--n_positions": 4096,
        "--vocab_size": 260,
        "--batch_size": 512,
        "--token_budget": 2**21,
        "--validation": 0,
    }
    command = [sys.executable, "train_sft.py"]
    for flag, value in flags.items():
        command += [flag, str(value)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, preexec_fn=limit
    )
    assert done.returncode == 2 and "--token_budget" in done.stderr
    assert "out of memory" in done.stderr and "Traceback" not in done.stderr
