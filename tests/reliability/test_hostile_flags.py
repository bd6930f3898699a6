"""Every numeric flag of every script with hostile values: the script runs, or says one sentence.

Each value gets a process of its own, with limits on time and memory. A run ends with the first
step that it logs. MINIRLHF_FLAGS=all runs every script, a quarter of an hour;
MINIRLHF_FLAGS=train_ppo,sample runs those two.
"""

import importlib
import json
import os
import shutil
import signal
import socketserver
import sys
import traceback
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import tiny

from minirlhf import UserError, cli
from minirlhf.model import ScalarGPT
from minirlhf.run import Run

if sys.platform != "linux":
    pytest.skip("forks, and limits memory", allow_module_level=True)
import resource

SECONDS = 60
MEMORY = 3 * 2**30  # bytes on top of what a process has at the start
INTS = ["-1", "0", "1", str(2**31), str(2**53), str(2**53 + 1), str(2**64), "9" * 5000, "1e3", ""]
FLOATS = ["nan", "inf", "-inf", "-1", "0", "-0.0", "1e-30", "1e-40", "1e30", "1e300", "1e999", ""]
VALUES = {int: INTS, float: FLOATS}
SCRIPTS = {  # what makes a small run of each
    "train_sft": "--data sft.jsonl --out run --steps 2 --n_layer 1 --n_head 2 --n_embd 32",
    "train_sft more": "--init sft --data sft.jsonl --out run --steps 2 --lora_rank 2",
    "train_rm": "--init sft --data rankings.jsonl --out run --max_tokens 8",
    "train_dpo": "--init sft --data rankings.jsonl --out run --max_tokens 8 --batch_size 4",
    "train_dpo online": "--init sft --online --reward rm --data prompts.jsonl --out run --steps 2"
    " --max_tokens 8 --batch_size 4",
    "train_ppo": "--init sft --reward rm --data prompts.jsonl --out run --steps 2 --max_tokens 8"
    " --prompts_per_step 8",
    "train_ppo grpo": "--init sft --reward rm --data prompts.jsonl --out run --steps 2"
    " --max_tokens 8 --prompts_per_step 4 --samples_per_prompt 2 --advantage grpo",
    "sample": "--init sft --data prompts.jsonl --max_tokens 8",
    "sample one": "--init sft --prompt Hi --max_tokens 8",
    "evaluate": "--policies sft,sft2 --reward rm --gold rm --data prompts.jsonl --max_tokens 8"
    " --out evaluation.json",
    "label": "--candidates candidates.jsonl --out labels.jsonl --annotator toyworld",
    "label page": "--candidates candidates.jsonl --out labels.jsonl --no-open",
    "label chat": "--chat --policies sft,sft2 --out chat.jsonl --no-open --max_tokens 8",
    "run_rlhf": "--quick --out loop",
}


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Models and data of the smallest kind."""
    folder = tmp_path_factory.mktemp("flags")
    tiny(tokenizer, n_positions=96).save_pretrained(folder / "sft")
    tiny(tokenizer, seed=1, n_positions=96).save_pretrained(folder / "sft2")
    tiny(tokenizer, ScalarGPT, n_positions=96).save_pretrained(folder / "rm")
    rows = {"sft": [], "prompts": [], "rankings": [], "candidates": []}
    for i in range(12):
        prompt = f"What is {i} + 3?"
        rows["sft"].append({"prompt": prompt, "completion": f"It is {i}."})
        rows["prompts"].append({"prompt": prompt})
        rows["rankings"].append({"prompt": prompt, "chosen": "The fox", "rejected": f"No {i}"})
        answers = ["The fox ran.", "The dog slept.", f"It is {i}."]
        rows["candidates"].append({"id": str(i), "prompt": prompt, "responses": answers})
    for name, records in rows.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def end(*_, **__):
    os._exit(0)


def run(script, argv: list[str]) -> None:
    """In a process of its own."""
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    Run.log = end
    socketserver.BaseServer.serve_forever = end
    if script.__name__ == "run_rlhf":
        script.train_sft.main = end
    sys.argv = [script.__name__, *argv]
    cli.start(script.main, script.Settings)


def outcome(script, argv: list[str]) -> str:
    """ "ran", "refused", or what went wrong."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(script, argv)
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    lines = Path("output.txt").read_text(errors="replace").splitlines()
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 0:
        return "ran"
    if code == 2 and len(errors) == 1:
        return "refused"
    return f"exit code {code}: {lines[-3:]}"


def cases(script):
    """Flag and value, for every numeric flag."""
    types = typing.get_type_hints(script.Settings)
    for field in fields(script.Settings):
        for value in VALUES.get(types[field.name], ()):
            yield f"--{field.name}={value}"


CHOSEN = os.environ.get("MINIRLHF_FLAGS")


@pytest.mark.skipif(not CHOSEN, reason="a quarter of an hour: MINIRLHF_FLAGS=all does it")
@pytest.mark.parametrize("name", SCRIPTS if CHOSEN in (None, "all") else CHOSEN.split(","))
def test_every_number_runs_or_is_refused(folder, name, monkeypatch):
    script = importlib.import_module(name.split()[0])
    monkeypatch.chdir(folder)
    base = SCRIPTS[name].split()
    wrong = {}
    assert outcome(script, base) == "ran", Path("output.txt").read_text()
    for flag in cases(script):
        try:
            cli.parse(script.Settings, [*base, flag])
        except UserError as error:
            assert "\n" not in str(error)
            continue
        for path in ("run", "loop", "labels.jsonl", "chat.jsonl", "evaluation.json"):
            shutil.rmtree(path, ignore_errors=True)
            Path(path).unlink(missing_ok=True)
        result = outcome(script, [*base, flag])
        if result not in ("ran", "refused"):
            wrong[flag] = result
    assert not wrong, "\n".join(f"{flag}: {result}" for flag, result in wrong.items())
