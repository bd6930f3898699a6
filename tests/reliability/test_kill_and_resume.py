"""A run that is killed at any moment, or meets a full disk or too little memory, ends bit for bit
as one to which nothing happened.

MINIRLHF_KILLS says how often each script is killed.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import KILLS
from safetensors.torch import load_file

import label
import sample
import train_rm
import train_sft
from minirlhf.files import read_json, read_jsonl

if not hasattr(os, "fork") or sys.platform != "linux":
    pytest.skip("needs fork and Linux's limits", allow_module_level=True)

from lives import Lives

MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 290, "count": 60, "batch_size": 4}
SMALL = {"steps": 8, "save_every": 2, "max_tokens": 8, "batch_size": 4}
CLOCK = ("seconds", "tokens_per_second", "peak_gib", "time")


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    lives = Lives(tmp_path_factory.mktemp("lives"))
    yield lives
    lives.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A small SFT model, rankings and a reward model."""
    folder = tmp_path_factory.mktemp("made")
    sft, rankings = f"{folder}/sft", f"{folder}/rankings.jsonl"
    candidates = f"{folder}/candidates.jsonl"
    train_sft.main(train_sft.Settings(out=sft, steps=30, **MODEL))
    options = {"init": sft, "count": 24, "samples": 3, "max_tokens": 8}
    sample.main(sample.Settings(data="toyworld", candidates_out=candidates, **options))
    label.main(label.Settings(candidates=candidates, out=rankings, annotator="toyworld"))
    options = {"init": sft, "data": rankings, "out": f"{folder}/rm"}
    train_rm.main(train_rm.Settings(max_tokens=8, batch_size=4, **options))
    return folder


def command(script: str, made: Path, out: Path, **more) -> list[str]:
    settings = {
        "train_sft": MODEL | {"steps": 8, "save_every": 2},
        "train_rm": SMALL | {"data": f"{made}/rankings.jsonl"},
        "train_ppo": {"steps": 8, "save_every": 2, "max_tokens": 8, "reward": f"{made}/rm"}
        | {"prompts_per_step": 4, "count": 40, "kl_target": 3.0, "log_every": 2},
        "train_dpo": SMALL | {"data": f"{made}/rankings.jsonl", "eval_every": 3},
    }[script]
    if script != "train_sft":
        settings["init"] = f"{made}/sft"
    words = [f"{script}.py", "--resume", "--out", str(out)]
    for name, value in (settings | more).items():
        words += [f"--{name}", str(value)]
    return words


def without_clock(value, out: str):
    """A log or run.json without what depends on the clock or the folder's name."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not key.startswith(CLOCK)}
        return {key: without_clock(item, out) for key, item in kept.items()}
    if isinstance(value, list):
        return [without_clock(item, out) for item in value]
    if isinstance(value, str):
        return value.replace(out, "OUT")
    return value


def results(out: Path) -> dict:
    """All that a run left, to be compared."""
    contents = {}
    for path in sorted(out.iterdir()):
        if path.suffix == ".jsonl":
            contents[path.name] = without_clock(read_jsonl(path), str(out))
        elif path.name == "run.json":
            contents[path.name] = without_clock(read_json(path), str(out))
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
            contents[path.name] = {name: x.numpy().tobytes() for name, x in tensors.items()}
        else:
            contents[path.name] = path.read_bytes()
    return contents


@pytest.fixture(scope="module")
def undisturbed(lives, made):
    """undisturbed(script) -> what it leaves, its seconds, the number of its file operations."""
    known = {}

    def run(script: str) -> tuple[dict, float, int]:
        if script not in known:
            out = made / f"whole_{script}"
            began = time.monotonic()
            code, printed = lives(command(script, made, out))
            assert code == 0, printed
            operations = int(printed.split()[-2])
            known[script] = results(out), time.monotonic() - began, operations
        return known[script]

    return run


@pytest.mark.parametrize("script", ["train_sft", "train_rm", "train_ppo", "train_dpo"])
def test_killed_at_any_moment_it_ends_the_same(script, lives, made, undisturbed, tmp_path):
    expected, seconds, operations = undisturbed(script)
    out = tmp_path / "cut"
    argv = command(script, made, out)
    dice = random.Random(script)
    ends = []
    for number in range(KILLS):
        kind = number % 4
        if kind == 0:  # in the middle of a file operation
            job = {"die": dice.randint(1, operations // 2), "half": dice.random()}
        elif kind == 1:  # between two steps, with a checkpoint and the exit code of Ctrl-C
            by = dice.choice((signal.SIGINT, signal.SIGTERM))
            job = {"die": 2, "log": "metrics.jsonl", "by": by}
        elif kind == 2:
            job = {"seconds": dice.uniform(0.02, 0.7 * seconds)}
        else:  # in its last files, if it comes so far
            job = {"die": max(1, operations - dice.randint(0, 30)), "half": dice.random()}
        code, printed = lives(argv, **job)
        assert code in (0, 130, -signal.SIGKILL), printed
        ends.append(code)
        if code == 0:
            assert results(out) == expected
            shutil.rmtree(out)
    code, printed = lives(argv)
    assert code == 0, printed
    assert results(out) == expected
    assert [row["step"] for row in read_jsonl(out / "metrics.jsonl")] == list(range(8))
    assert ends.count(0) <= KILLS // 2, ends


@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_a_script_that_is_killed_leaves_the_old_file_or_the_new_one(script, lives, made, tmp_path):
    path = tmp_path / "x.json"
    words = {
        "sample": f"--init {made}/sft --data toyworld --count 40 --candidates_out {path}",
        "evaluate": f"--policies {made}/sft --reward {made}/rm --count 12 --out {path}",
    }
    argv = [f"{script}.py", "--max_tokens", "8", *words[script].split()]
    began = time.monotonic()
    code, printed = lives(argv)
    assert code == 0, printed
    seconds = time.monotonic() - began
    operations = int(printed.split()[-2])
    expected = path.read_bytes()
    dice = random.Random(script)
    ends = []
    for number in range(KILLS):
        path.write_bytes(b"old")
        job = {"die": dice.randint(1, operations)}
        if number % 2:
            job = {"seconds": dice.uniform(0.02, seconds)}
        if number % 4 > 1:
            job["by"] = signal.SIGINT
        code, printed = lives(argv, **job)
        assert code in (0, 130, -signal.SIGKILL) and "Traceback" not in printed, printed
        assert path.read_bytes() in ((expected,) if code == 0 else (b"old", expected))
        ends.append(code)
    assert ends.count(0) <= KILLS // 2, ends
    code, printed = lives(argv)
    assert (code, path.read_bytes()) == (0, expected)


LOOP = {"rounds": 1, "sft_steps": 12, "ppo_steps": 2, "samples": 2, "evaluation": 4}


def loop_results(out: Path) -> dict:
    """All that a loop left, to be compared. loop.json: which stages are done."""
    found = {}
    for name in ("sft", "round1/rm", "round1/ppo"):
        found[name] = results(out / name)
        del found[name]["run.json"]  # it holds names of folders
    rankings = read_jsonl(out / "round1" / "rankings.jsonl")
    evaluation = read_json(out / "evaluation.json")["results"]
    for result in evaluation:
        result["policy"] = Path(result["policy"]).name
    stages = read_json(out / "loop.json")["stages"]
    assert all(stage["finished"] for stage in stages.values())
    return found | {"rankings": without_clock(rankings, ""), "evaluation": evaluation}


def test_a_loop_that_is_killed_and_moved_ends_the_same(lives, tmp_path):
    def argv(out: Path) -> list[str]:
        words = ["run_rlhf.py", "--quick", "--out", str(out)]
        for name, value in LOOP.items():
            words += [f"--{name}", str(value)]
        return words

    began = time.monotonic()
    code, printed = lives(argv(tmp_path / "whole"))
    assert code == 0, printed
    seconds = time.monotonic() - began
    operations = int(printed.split()[-2])
    dice = random.Random("loop")
    for number in range(KILLS):
        job = {"seconds": dice.uniform(0.02, 0.7 * seconds)}
        if number % 2:
            job = {"die": dice.randint(1, operations // 2), "half": dice.random()}
        if number % 4 > 1:
            job["by"] = signal.SIGINT
        code, printed = lives(argv(tmp_path / f"x{number}"), **job)
        assert code in (0, 130, -signal.SIGKILL), printed
        (tmp_path / f"x{number}").mkdir(exist_ok=True)  # it may have been killed before
        (tmp_path / f"x{number}").rename(tmp_path / f"x{number + 1}")
    code, printed = lives(argv(tmp_path / f"x{KILLS}"))
    assert code == 0, printed
    assert loop_results(tmp_path / f"x{KILLS}") == loop_results(tmp_path / "whole")


def stopped_at_4(lives, argv: list[str], **job) -> Path:
    """Leaves a run with a checkpoint at step 4 and a row more in its log; the checkpoint's path."""
    code, printed = lives(argv, die=6, log="metrics.jsonl", **job)
    assert code == -signal.SIGKILL, printed
    return Path(argv[argv.index("--out") + 1], "resume.safetensors")


def one_sentence(printed: str, *parts: str) -> None:
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in printed, printed
    assert all(part in errors[0] for part in parts), printed


@pytest.mark.parametrize(("name", "share"), [("resume.safetensors", 0.6), ("metrics.jsonl", 0.9)])
def test_a_file_that_cannot_grow(name, share, lives, made, undisturbed, tmp_path):
    argv = command("train_ppo", made, tmp_path / "cut")
    path = stopped_at_4(lives, argv)
    before = path.read_bytes()
    code, printed = lives(argv, file=int((path.parent / name).stat().st_size * share))
    assert code == 2, printed
    one_sentence(printed, str(tmp_path / "cut"), "too large", "--resume")
    assert path.read_bytes() == before and not list(path.parent.glob("*.partial"))
    code, printed = lives(argv)
    assert code == 0 and "at step 4" in printed, printed
    assert results(tmp_path / "cut") == undisturbed("train_ppo")[0]


def test_a_full_and_a_read_only_disk(lives, made, undisturbed, tmp_path):
    if not lives.can_mount:
        pytest.skip("no mounts here")
    disk = tmp_path / "disk"
    disk.mkdir()
    argv = command("train_sft", made, disk)
    copy = f"cp -r {disk} {tmp_path}/"
    mount = f"mount -t tmpfs -o size=40m none {disk}"
    stopped_at_4(lives, argv, before=mount, after=f"{copy}0")
    sizes = [path.stat().st_size for path in (tmp_path / "0").iterdir()]
    full = sum(-(-size // 4096) * 4 for size in sizes) + 40  # KiB: a little more than is there
    remount = f"mount -o remount,size={full}k {disk}"
    code, printed = lives(argv, before=remount, after=f"{copy}1")
    assert code == 2, printed
    one_sentence(printed, "resume.safetensors", "No space left", "--resume")
    code, printed = lives(argv, before=f"mount -o remount,ro {disk}", after=f"{copy}2")
    assert code == 2, printed
    one_sentence(printed, "Read-only", "--resume")
    before, *after = [(tmp_path / name / "resume.safetensors").read_bytes() for name in "012"]
    assert after == [before, before]
    unmount = f"{copy}3; umount {disk}; cp -r {tmp_path}/3/. {disk}"
    code, printed = lives(argv, before=f"mount -o remount,rw,size=40m {disk}", after=unmount)
    assert code == 0 and "at step 4" in printed, printed
    assert results(disk) == undisturbed("train_sft")[0]


def test_out_of_memory(lives, made, tmp_path):
    argv = command("train_sft", made, tmp_path / "cut", batch_size=400)
    path = stopped_at_4(lives, argv)
    before = path.read_bytes()
    code, printed = lives([*argv, "--token_budget", "1000000"], memory=40 * 2**20)
    assert code == 2, printed
    one_sentence(printed, "out of memory", "--token_budget", "--resume")
    assert path.read_bytes() == before
    code, printed = lives([*argv, "--token_budget", "2048"])
    assert code == 0 and "at step 4" in printed, printed


REWARD = """
import os
seen = []
def score(prompts, responses):
    pages = int(open("/proc/self/statm").read().split()[1])
    seen.append(f"{pages * os.sysconf('SC_PAGE_SIZE')} {len(os.listdir('/proc/self/fd'))}")
    open(__file__ + ".seen", "w").write("\\n".join(seen))
    return [len(response) % 7 / 7 for response in responses]
"""


def test_a_long_run_takes_no_more_memory_and_no_more_files(lives, made, tmp_path):
    (tmp_path / "my.py").write_text(REWARD)
    argv = command("train_ppo", made, tmp_path / "x", reward=f"{tmp_path}/my.py:score", steps=150)
    code, printed = lives(argv)
    assert code == 0, printed
    seen = [line.split() for line in (tmp_path / "my.py.seen").read_text().splitlines()]
    memory, handles = [int(row[0]) for row in seen], [row[1] for row in seen]
    assert len(seen) >= 150 and len(set(handles[20:])) == 1  # logged steps score more
    assert max(memory[100:]) < 1.05 * max(memory[20:50])
