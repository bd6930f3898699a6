"""Nothing is lost: killed at any moment, on a full disk, out of memory, with NaN, the last whole checkpoint goes on bit for bit.

Scripts run through their command lines, in forks of one process that has imported everything; a fork is killed by the kernel,
either after a random time or at a random one of its file operations, some of them half done. MINIRLHF_SLOW=1: 20 kills a script
and 5,000 steps of PPO instead of a few.
"""
import ast
import functools
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import label
import run_rlhf
import sample
import train_dpo  # noqa: F401 (by its name in sys.modules)
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, cli, model, run
from minirlhf.model import GPT, ScalarGPT
from minirlhf.run import Run, read_jsonl

ROOT = Path(__file__).parents[1]
SLOW = bool(os.environ.get("MINIRLHF_SLOW"))
KILLS = 20 if SLOW else 2
SCRIPTS = ["train_sft", "train_rm", "train_ppo", "train_dpo"]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# ---------------------------------------------------------------------------------------------- lives of a script

def live(job: dict) -> int:
    """In a fork: the script of job["argv"], on job["out"]. What is to happen to it: `die`, the number of its file operation (or
    of the line that it appends to `log`) before which it gets the signal `by`; `nan`, the step at which a gradient is NaN; `file`
    and `memory`, limits in bytes."""
    moments, save = 0, run.save_file

    def moment(name, mode=None) -> None:
        nonlocal moments
        if str(name).startswith(job["out"]) and ("log" not in job or (Path(name).name, mode) == (job["log"], "a")):
            moments += 1
            if moments == job.get("die"):
                os.kill(os.getpid(), job.get("by", signal.SIGKILL))

    def save_by_halves(tensors, path, **more) -> None:
        save(tensors, path, **more)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: int(len(whole) * job.get("half", 0.5))])
        moment(path)
        Path(path).write_bytes(whole)

    def poisoned(self, optimizer, models, lr, loss, step) -> float:
        if step == job.get("nan"):
            next(p for p in models[-1].parameters() if p.grad is not None).grad.view(-1)[0] = math.nan
        return update(self, optimizer, models, lr, loss, step)

    def keep_optimizer(self, trained, **more) -> None:
        self.checkpoint(self.total)
        shutil.copy(self.folder / "resume.safetensors", self.folder / "last.safetensors")
        finish(self, trained, **more)

    update, finish, Run.update, Run.finish = Run.update, Run.finish, poisoned, keep_optimizer
    if "file" not in job:
        run.save_file = model.save_file = save_by_halves
    sys.addaudithook(lambda event, args: moment(*args[:2]) if event in ("open", "os.rename", "os.remove") else None)
    for name, limit in (("file", "RLIMIT_FSIZE"), ("memory", "RLIMIT_AS")):
        if name in job:
            import resource
            more = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if name == "memory" else 0
            resource.setrlimit(getattr(resource, limit), (more + job[name], more + job[name]))
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = job["argv"]
    script = sys.modules[Path(sys.argv[0]).stem]
    if script is run_rlhf:                             # a loop of seconds
        for module, smaller in SMALLER.items():
            module.Settings = functools.partial(module.Settings, **smaller)
    try:
        cli.start(script.main, script.Settings)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    print(f"{moments} moments")
    return code


def serve() -> None:
    """Reads jobs, a line each, and lives them: answers with the exit status, negative for a signal."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        if "before" in job:
            subprocess.run(job["before"], shell=True, check=True)
        if (pid := os.fork()) == 0:
            with open(job["console"], "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = live(job)
            sys.stdout.flush()
            os._exit(code)
        end, status = time.monotonic() + job.get("seconds", 300), (0, 0)
        while not status[0] and time.monotonic() < end:
            status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)
        if not status[0]:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)
        if "after" in job:
            subprocess.run(job["after"], shell=True, check=True)
        print(os.waitstatus_to_exitcode(status[1]), flush=True)


class Lives:
    def __init__(self, folder: Path):
        self.console, self.wholes = folder / "console.txt", {}
        own = ["unshare", "-rm"] if shutil.which("unshare") else []          # mounts of our own, for full and read-only disks
        self.can_mount = bool(own) and subprocess.run([*own, "true"], capture_output=True).returncode == 0
        self.server = subprocess.Popen([*own * self.can_mount, sys.executable, __file__], cwd=ROOT, text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])})

    def __call__(self, argv: list[str], **job) -> tuple[int, str]:
        """Exit status, negative for a signal, and what was printed."""
        out = argv[argv.index("--out") + 1]
        print(json.dumps({"argv": argv, "out": out, "console": str(self.console)} | job), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline()), self.console.read_text()


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    lives = Lives(tmp_path_factory.mktemp("lives"))
    yield lives
    lives.server.stdin.close()
    lives.server.wait()


TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 290, "count": 60, "batch_size": 4}
SMALLER = {train_sft: TINY | {"steps": 6, "save_every": 2}, sample: {"max_tokens": 8}, evaluate: {"samples": 2, "max_tokens": 8},
           train_rm: {"normalize_samples": 8, "max_tokens": 8, "save_every": 4, "batch_size": 32},
           train_ppo: {"max_tokens": 8, "prompts_per_step": 4, "count": 30, "save_every": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An SFT model, candidates, rankings and a reward model."""
    out = tmp_path_factory.mktemp("made")
    train_sft.main(train_sft.Settings(out=f"{out}/sft", steps=30, **TINY))
    sample.main(sample.Settings(init=f"{out}/sft", data="toy", count=24, samples=3, max_tokens=8, candidates_out=f"{out}/c.jsonl"))
    label.main(label.Settings(candidates=f"{out}/c.jsonl", out=f"{out}/r.jsonl", annotator="toy"))
    train_rm.main(train_rm.Settings(init=f"{out}/sft", data=f"{out}/r.jsonl", out=f"{out}/rm", max_tokens=8, batch_size=4))
    return out


def words(script: str, made: Path, out: Path) -> list[str]:
    flags = {"train_sft": {**TINY, "steps": 8},
             "train_rm": {"init": made / "sft", "data": made / "r.jsonl", "batch_size": 4, "steps": 8, "max_tokens": 8},
             "train_ppo": {"init": made / "sft", "reward": made / "rm", "steps": 8, "prompts_per_step": 4, "max_tokens": 8,
                           "count": 40, "kl_target": 3.0, "log_every": 2},
             "train_dpo": {"init": made / "sft", "data": made / "r.jsonl", "batch_size": 4, "steps": 8, "max_tokens": 8,
                           "eval_every": 3},
             "label": {"candidates": made / "c.jsonl", "annotator": "toy", "noise": "0.1,0.5", "out": out / "r.jsonl"},
             "run_rlhf": {"rounds": 1, "sft_steps": 6, "ppo_steps": 3}}[script]
    flags = {"out": out} | flags | ({"save_every": 2} if script.startswith("train") else {})
    flags = [str(x) for name, value in flags.items() for x in (f"--{name}", value)]
    return [f"{script}.py", *flags, *["--quick"] * (script == "run_rlhf")]


def again(argv: list[str]) -> list[str]:
    return argv + ["--resume"] * argv[0].startswith("train")


CLOCK = ("seconds", "tokens_per_second", "peak_gib", "time")


def timeless(x, out: str):
    """Without what depends on the clock or is the folder's name."""
    if isinstance(x, dict):
        return {timeless(k, out): timeless(v, out) for k, v in x.items() if not k.startswith(CLOCK) and k != "resume"}
    if isinstance(x, list):
        return [timeless(v, out) for v in x]
    return x.replace(out, "OUT").replace(" --resume", "") if isinstance(x, str) else x


def result(out: Path) -> dict:
    """Everything that a run left, to be compared: tensors as they are, bytes as they are, logs and settings without times."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith("report.")):
        name = str(path.relative_to(out))
        if path.name == "last.safetensors":                # the library writes its header in any order
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        elif path.suffix == ".jsonl":
            assert path.read_bytes().endswith(b"\n")
            found[name] = [timeless(row, str(out)) for row in read_jsonl(path)]
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()), str(out))
        else:
            found[name] = path.read_bytes()
    return found


def whole(script: str, lives: Lives, made: Path) -> tuple[dict, float, int]:
    """What an undisturbed run leaves, the seconds it took, its moments; lived once."""
    if script not in lives.wholes:
        began = time.monotonic()
        code, said = lives(words(script, made, made / f"whole_{script}"))
        assert code == 0, said
        lives.wholes[script] = result(made / f"whole_{script}"), time.monotonic() - began, int(said.split()[-2])
    return lives.wholes[script]


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys() and not any(name.endswith((".partial", "resume.safetensors")) for name in a)
    assert [name for name in a if a[name] != b[name]] == []


@forks
@pytest.mark.parametrize("script", [*SCRIPTS, "label", "run_rlhf"])
def test_killed_at_any_moment_it_ends_bit_for_bit_the_same(script, lives, made, tmp_path):
    dice, cut, (good, seconds, moments) = random.Random(script), tmp_path / "cut", whole(script, lives, made)
    argv, kills, at = words(script, made, cut), [], []
    while len(kills) < KILLS:                              # ever new lives, of which each may get about so far
        if len(kills) % 3 == 1:
            code, said = lives(again(argv), seconds=dice.uniform(0.02, seconds * 0.7))
        else:
            code, said = lives(again(argv), die=dice.randint(1, moments // 3), half=dice.random())
        assert code in (0, -signal.SIGKILL), said
        kills.append(code)
        at.append(said.rpartition("resuming ")[2].split("\n")[0][-3:] if "resuming" in said else "")
        if code == 0:                                      # it got through: from the beginning
            same(good, result(cut))
            shutil.rmtree(cut)
    code, said = lives(again(argv))
    assert code == 0, said
    same(good, result(cut))
    assert kills.count(-signal.SIGKILL) >= KILLS // 2
    print(f"{script}: {kills.count(-signal.SIGKILL)} kills, {kills.count(0)} came too late; resumed at {at}")
    if script.startswith("train"):
        assert [row["step"] for row in read_jsonl(cut / "metrics.jsonl")] == list(range(8))


@forks
@pytest.mark.parametrize("script", SCRIPTS if SLOW else SCRIPTS[:1])
def test_killed_while_it_replaces_a_run_it_leaves_the_old_one_or_the_new(script, lives, made, tmp_path):
    """Killed at each file operation from the start on, until what is left of the old run is gone."""
    argv, old, cut = words(script, made, tmp_path / "cut"), tmp_path / "old", tmp_path / "cut"
    code, said = lives([*words(script, made, old), "--steps", "3", "--seed", "1"], die=3, log="metrics.jsonl")
    assert code == -signal.SIGKILL, said                   # a checkpoint, two logged steps, and in the end a model
    shutil.copy(made / "sft" / "model.safetensors", old)
    before, states = {p.name: p.read_bytes() for p in old.iterdir()}, []
    for moment in range(1, 100):
        shutil.copytree(old, cut)
        code, said = lives([*argv, "--overwrite"], die=moment, half=0.5)
        assert code == -signal.SIGKILL, said
        now = {p.name: p.read_bytes() for p in cut.iterdir() if p.suffix != ".partial"}
        states.append("new" if now["run.json"] != before["run.json"] else "old")
        if states[-1] == "old":
            assert now == before
        elif states.count("new") % 4 == 1:                 # the old run's checkpoint is not taken for the new one's
            code, said = lives(again(argv))
            assert code == 0, said
            same(whole(script, lives, made)[0], result(cut))
        shutil.rmtree(cut)
        if states.count("new") == 9:
            break
    print(f"{script}: {states}")
    assert states == sorted(states, reverse=True) and states.count("old") >= 1


@forks
@pytest.mark.parametrize(("script", "by"), [(script, (signal.SIGINT, signal.SIGTERM)[(i + j) % 2])
                                            for i, script in enumerate(SCRIPTS) for j in range(1 + SLOW)])
def test_a_signal_saves_and_stops_also_at_the_last_step(script, by, lives, made, tmp_path):
    argv = words(script, made, tmp_path / "cut")
    for lines, step in ((3, 3), (5, 8)):                   # of 8
        code, said = lives(again(argv), die=lines, by=by, log="metrics.jsonl")
        assert code == 130 and f"stopped at step {step}; the same command with --resume goes on" in said, said
        assert (tmp_path / "cut" / "resume.safetensors").exists()
    code, said = lives(again(argv))
    assert code == 0 and "resuming" in said, said
    same(whole(script, lives, made)[0], result(tmp_path / "cut"))


# ---------------------------------------------------------------------------------------------- what an injected fault leaves

def stopped_at_4(lives: Lives, argv: list[str]) -> tuple[Path, bytes]:
    """A run with a checkpoint at step 4 and a step more in its log."""
    code, said = lives(argv, die=6, log="metrics.jsonl")
    assert code == -signal.SIGKILL, said
    path = Path(argv[argv.index("--out") + 1], "resume.safetensors")
    return path, path.read_bytes()


def goes_on(lives: Lives, script: str, made: Path, tmp_path: Path) -> None:
    """The damaged run ends as one to which nothing happened."""
    code, said = lives(again(words(script, made, tmp_path / "cut")))
    assert code == 0 and "at step 4" in said, said
    same(whole(script, lives, made)[0], result(tmp_path / "cut"))


def one_sentence(said: str, *parts: str) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said and all(part in errors[0] for part in parts), said


@forks
@pytest.mark.parametrize(("name", "share"), [("resume.safetensors", 0.6), ("metrics.jsonl", 0.9)])
def test_a_file_that_cannot_grow(name, share, lives, made, tmp_path):
    """The kernel refuses what goes beyond a size, in the middle of the file, as a full disk does."""
    argv = words("train_ppo", made, tmp_path / "cut")
    path, before = stopped_at_4(lives, argv)
    code, said = lives(again(argv), file=int((path.parent / name).stat().st_size * share))
    assert code == 2
    one_sentence(said, str(tmp_path / "cut"), "too large", "make room", "--resume goes on")
    assert path.read_bytes() == before and not list(path.parent.glob("*.partial"))
    goes_on(lives, "train_ppo", made, tmp_path)


@forks
def test_a_full_and_a_read_only_disk(lives, made, tmp_path):
    if not lives.can_mount:
        pytest.skip("no mounts here")
    (tmp_path / "cut").mkdir()
    argv, disk, copy = words("train_sft", made, tmp_path / "cut"), tmp_path / "cut", f"cp -r {tmp_path / 'cut'} {tmp_path}/"
    code, said = lives(argv, before=f"mount -t tmpfs -o size=40m none {disk}", die=6, log="metrics.jsonl", after=f"{copy}copy0")
    assert code == -signal.SIGKILL, said
    pages = sum(-(-p.stat().st_size // 4096) for p in (tmp_path / "copy0").iterdir())
    full = lives(again(argv), before=f"mount -o remount,size={4 * pages + 40}k {disk}", after=f"{copy}copy1")
    shut = lives(again(argv), before=f"mount -o remount,ro {disk}", after=f"{copy}copy2")
    assert full[0] == shut[0] == 2
    one_sentence(full[1], "resume.safetensors", "No space left", "make room", "--resume goes on")
    one_sentence(shut[1], "Read-only", "choose a place", "--resume goes on")
    good = (tmp_path / "copy0" / "resume.safetensors").read_bytes()
    assert all((tmp_path / f"copy{i}" / "resume.safetensors").read_bytes() == good for i in (1, 2))
    code, said = lives(again(argv), before=f"mount -o remount,rw,size=40m {disk}",
                       after=f"{copy}end; umount {disk}; cp -r {tmp_path}/end/. {disk}")
    assert code == 0 and "at step 4" in said, said
    same(whole("train_sft", lives, made)[0], result(tmp_path / "cut"))


@forks
@pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory here")
def test_out_of_memory(lives, made, tmp_path):
    argv = [*words("train_sft", made, tmp_path / "cut"), "--batch_size", "400"]
    path, before = stopped_at_4(lives, argv)
    code, said = lives([*again(argv), "--token_budget", str(10**6)], memory=40 * 2**20)
    assert code == 2
    one_sentence(said, "out of memory", "--token_budget", "--resume")
    assert path.read_bytes() == before
    code, said = lives([*again(argv), "--token_budget", "2048"])
    assert code == 0 and "at step 4" in said, said


@forks
@pytest.mark.parametrize("script", SCRIPTS if SLOW else ["train_ppo", "train_dpo"])
def test_nan_stops_before_the_step_and_a_lower_rate_goes_on(script, lives, made, tmp_path):
    argv = words(script, made, tmp_path / "cut")
    code, said = lives(argv, nan=5)
    assert code == 2
    one_sentence(said, "step 5", "not finite", "lower --lr", "--resume")
    code, said = lives([*again(argv), "--lr", "1e-5"])
    assert code == 0 and "at step 4" in said, said
    assert all(x.isfinite().all() for x in load_file(tmp_path / "cut" / "model.safetensors").values())


@forks
def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(lives, made, tmp_path):
    argv, dice = words("train_ppo", made, tmp_path / "cut"), random.Random(0)
    path, good = stopped_at_4(lives, argv)
    settings = train_ppo.Settings(**json.loads((tmp_path / "cut" / "run.json").read_text())["settings"] | {"resume": True})
    metrics = (tmp_path / "cut" / "metrics.jsonl").read_bytes()
    wrong = [good[: dice.randrange(len(good))] for _ in range(20)] + [good[:-500] + bytes(500)]
    wrong.append(good.replace(b'"step\\": 4', b'"step\\": 5'))                    # in the JSON within the header's JSON
    for _ in range(20):                                             # a bit of a number, or of a name
        at = dice.randrange(len(good))
        wrong.append(good[:at] + bytes([good[at] ^ 1 << dice.randrange(8)]) + good[at + 1 :])
    assert all(x != good for x in wrong)
    for bad in wrong:
        path.write_bytes(bad)
        policy, value = GPT.from_pretrained(made / "sft"), ScalarGPT.from_pretrained(made / "rm")
        this = Run(settings, "train_ppo.py")
        with pytest.raises(UserError, match=r"resume\.safetensors is damaged.*delete it to begin again"):
            this.track(this.adamw([policy, value], 1e-3), policy=policy, value=value)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == metrics
    path.write_bytes(good)
    goes_on(lives, "train_ppo", made, tmp_path)


def test_a_console_without_the_letters_of_a_sample(monkeypatch, tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["train_rm.py"])
    cli.start(lambda settings: print("0.6 ± 0.1 “日本”"), train_rm.Settings)
    stream.flush()
    assert stream.buffer.getvalue() == b"0.6 \\xb1 0.1 \\u201c\\u65e5\\u672c\\u201d\n"


# ---------------------------------------------------------------------------------------------- determinism, numbers, long runs

@forks
@pytest.mark.parametrize("script", [*SCRIPTS, "run_rlhf"] if SLOW else ["train_ppo"])
def test_one_seed_is_one_run(script, lives, made, tmp_path):
    for name, seed in (("b", "0"), ("c", "4")):
        code, said = lives([*words(script, made, tmp_path / name), "--seed", seed])
        assert code == 0, said
    a, b, c = whole(script, lives, made)[0], *(result(tmp_path / name) for name in "bc")
    same(a, b)
    assert {k for k in a if k.endswith("model.safetensors") and a[k] == c[k]} == set()


def changed(folder: Path, out: Path, change, cls=GPT) -> str:
    model = cls.from_pretrained(folder)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out)
    return str(out)


def ends(model: GPT, push: float) -> None:
    """EOS's logit + push, wherever."""
    direction = torch.nn.functional.normalize(torch.randn(model.config.n_embd, generator=torch.Generator().manual_seed(0)), dim=0)
    model.ln_f.bias += 30 * direction
    model.wte.weight[model.tokenizer.eos_id] += push / 30 * direction


def far_away(model: GPT) -> None:
    for p in model.h.parameters():
        p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    model.wte.weight *= 200


REWARDS = """import math
def huge(prompts, responses): return [1e6] * (len(responses) // 2) + [-1e6] * (len(responses) - len(responses) // 2)
def same(prompts, responses): return [3.0] * len(responses)
def tiny(prompts, responses): return [1e-30 * i for i in range(len(responses))]
def beyond(prompts, responses): return [1e30 * i for i in range(len(responses))]
"""
GROUPS = [{"advantage": "gae"}, {"advantage": "gae", "whiten_rewards": True}, {"advantage": "grpo", "samples_per_prompt": 2},
          {"advantage": "rloo", "samples_per_prompt": 2}]


@pytest.mark.parametrize("kind", GROUPS if SLOW else GROUPS[:1] + GROUPS[2:], ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("case", ["huge", "same", "tiny", "beyond", "one token", "no token", "one episode", "never ends", "far",
                                  "fp16"])
def test_numbers(case, kind, made, tmp_path):
    """Finite weights and losses, or a sentence that stops the run; nothing in between."""
    (tmp_path / "my.py").write_text(REWARDS)
    reward = f"{tmp_path / 'my.py'}:{case if case in REWARDS else 'tiny'}"
    sft = changed(made / "sft", tmp_path / "soon", lambda m: ends(m, 5.0))
    more = {"one token": {"max_tokens": 1}, "no token": {"max_tokens": 0}, "one episode": {"prompts_per_step": 1, "minibatches": 4},
            "never ends": {"init": changed(sft, tmp_path / "never", lambda m: ends(m, -90.0))},
            "far": {"reference": changed(sft, tmp_path / "far", far_away)},
            "fp16": {"init": changed(sft, tmp_path / "half", lambda m: m.half())}}.get(case, {})
    settings = replace(train_ppo.Settings(
        init=str(sft), reward=reward, data="toy", out=str(tmp_path / "out"), steps=3, prompts_per_step=4, max_tokens=8, count=20,
        minibatches=2), **kind | more)
    if case == "beyond":
        with nullcontext() if kind["advantage"] == "grpo" else pytest.raises(UserError, match="not finite"):
            train_ppo.main(settings)                                 # the square of 1e30 is no float32
        return
    train_ppo.main(settings)
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    after, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", Path(settings.init)))
    assert len(rows) == 3 and all(x.isfinite().all() and x.dtype == torch.float32 for x in after.values())
    assert all(math.isfinite(x) for row in rows for name, x in row.items() if name != "kl_k3"), rows      # k3 may overflow: e^KL
    moved = any(not torch.equal(after[k], before[k].float()) for k in after)
    assert moved or case in ("no token", "same", "one token", "one episode", "never ends")     # no difference: nothing to learn
    if case == "never ends":
        assert all(row["finished"] == 0 and row["length"] == 8 for row in rows)
    if case == "far":
        assert rows[0]["kl"] > 100
    if case in ("one token", "no token"):
        assert rows[0]["length"] == settings.max_tokens


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
def test_a_long_run_takes_no_more_and_its_log_can_be_read(made, tmp_path):
    steps = 5000 if SLOW else 120
    (tmp_path / "my.py").write_text(f"""
import json, os
page, seen = os.sysconf("SC_PAGE_SIZE"), []
def f(prompts, responses):
    seen.append((int(open("/proc/self/statm").read().split()[1]) * page / 2**20, len(os.listdir("/proc/self/fd"))))
    if len(seen) % 20 == 0:
        with open({str(tmp_path / "out" / "metrics.jsonl")!r}) as log:          # line by line: all rows at once are 20 MiB
            assert all(json.loads(line)["step"] == i for i, line in enumerate(log))
    with open({str(tmp_path / "seen.txt")!r}, "w") as file:
        file.write(repr(seen[{steps // 25 if not SLOW else 200} - 1 :: {steps // 10}] + seen[-1:]))
    return [len(r) % 7 / 7 for r in responses]
""")
    train_ppo.main(train_ppo.Settings(init=str(made / "sft"), reward=f"{tmp_path / 'my.py'}:f", steps=steps, prompts_per_step=4,
                                      max_tokens=8, count=200, save_every=50, log_every=1000, out=str(tmp_path / "out")))
    seen = ast.literal_eval((tmp_path / "seen.txt").read_text())
    print(f"MiB, handles: {seen}")
    assert seen[-1][0] < 1.05 * seen[0][0] and len({handles for _, handles in seen}) == 1
    assert len(read_jsonl(tmp_path / "out" / "metrics.jsonl")) == steps


# ---------------------------------------------------------------------------------------------- Windows, macOS

MAIN_PATH = sorted({*(ROOT / "minirlhf").glob("*.py"), *ROOT.glob("*.py"), *(ROOT / "examples").glob("*.py")}
                   - {ROOT / "bench.py", ROOT / "peers.py"})                            # they measure memory where Linux tells it


@pytest.mark.parametrize("path", MAIN_PATH, ids=lambda path: path.name)
def test_nothing_that_only_posix_has(path):
    """No name of a module, function or signal that Windows lacks, no text file without UTF-8, no path put together by hand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {id(x) for node in ast.walk(tree) if isinstance(node, ast.Try) for x in ast.walk(node)}
    for node in ast.walk(tree):
        where = f"{path.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in guarded:
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "posix", "readline", "curses"}, where
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in {"os.fork", "os.kill", "os.killpg", "os.getuid", "os.geteuid", "os.chown", "os.mkfifo", "os.sysconf",
                                "os.rename", "os.system", "os.nice", "os.setsid", "os.sync", "signal.SIGKILL", "signal.SIGHUP",
                                "signal.SIGALRM", "signal.SIGUSR1", "signal.alarm", "signal.setitimer", "signal.pause"}, where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            said = {keyword.arg for keyword in node.keywords}
            binary = any(isinstance(x, ast.Constant) and x.value in ("rb", "wb", "ab", "r+b", "ab+")
                         for a in node.args for x in ast.walk(a))
            if name in ("read_text", "write_text") or (name == "open" and not binary):
                assert "encoding" in said or ast.unparse(node.func).startswith(("urllib.", "webbrowser.", "self.opener.")), where
            assert "shell" not in said and name not in ("symlink_to", "chmod", "rename"), where
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith(("/tmp", "/dev/", "/proc/", "/home/", "C:")), where


if __name__ == "__main__":
    serve()
