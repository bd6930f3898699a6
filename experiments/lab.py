"""What the experiments share: settings, cached arms with an ETA, statistics over seeds, one style of figure, the three files.

    import lab                                       # first: it puts the repository's root on the path
    import train_rm

    def arm(L, folder, *, labels, seed):             # one arm: trains below `folder`, returns what JSON can hold
        data = L.arm(lab.rankings, count=labels, samples=2, seed=seed)["data"]             # arms may use cached arms
        train_rm.main(train_rm.Settings(init=L.sft, data=data, out=f"{folder}/rm", seed=seed, resume=True, device=L.device))
        return {"accuracy": ...}

    def main(L):
        sizes = L.pick([50, 200], [50, 200, 800], [50, 200, 800, 3200])                     # --quick, default, --full
        rows = L.run(arm, [{"labels": n, "seed": seed} for seed in L.seeds for n in sizes])   # key and result in each row
        fig, ax = L.figure("Accuracy against labels", "comparisons", "accuracy")
        lab.curve(ax, rows, "labels", "accuracy", "1 M parameters")                        # mean and interval over seeds
        L.finish(fig, rows, expected="...", found="...", agrees=True)

    if __name__ == "__main__":
        lab.start(main)

An arm's result is a file named after its key (values, SFT model, --data): what is there is not computed again, so a killed
experiment goes on; training inside takes `resume=True`. After changing an arm's code delete its files. Output of the training
goes to log.txt. On a CPU as many arms are computed at a time as it has cores, up to four: small models gain little
from a second thread.
"""
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
import evaluate
import label
import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, cli, rewards, toyworld
from minirlhf.model import write_atomically
from minirlhf.run import describe_result, pick_device, read_jsonl

COLOURS = ("#5b82c0", "#1f9e89", "#e07b39", "#b5539c", "#8a6fd1", "#b3902f", "#4f9fc8", "#8b93a1")
STYLE = {"font.size": 8.5, "axes.grid": True, "grid.color": "#e3e5e8", "grid.linewidth": 0.6, "axes.axisbelow": True,
         "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5, "axes.titlelocation": "left",
         "axes.titleweight": "bold", "legend.frameon": False, "legend.fontsize": 7.5, "lines.markersize": 4,
         "axes.prop_cycle": matplotlib.cycler(color=COLOURS)}
T95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31)        # Student's t by degrees of freedom


@dataclass
class Settings:
    quick: bool = False           # one seed, everything small: some three minutes
    full: bool = False            # for a GPU, or a night
    seeds: int = 0                # repetitions; 0: one for --quick, five for --full, else three
    sft: str = ""                 # SFT model of the toy world; empty: trained once into OUT/sft, for all experiments
    data: str = ""                # where an experiment has a part on real comparisons: their files
    out: str = "out/experiments"  # everything is written to OUT/<name of the experiment>
    device: str = "auto"          # auto, cuda, mps, cpu
    workers: int = 0              # arms computed at a time; 0: as many as a CPU has cores (up to 4), one on a GPU


def alone(folder: Path):
    """Context: no other process computes this arm meanwhile. The lock ends with its process, however that ends."""
    file = (folder / "lock").open("w")
    with contextlib.suppress(ImportError):           # Windows has no such lock; there Lab takes one worker
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def prepare_worker(threads: int) -> None:
    """A worker lives no longer than the experiment, and shows no progress bars beside another's."""
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())                 # its own is a semaphore, which a worker that is stopped leaves behind
    sys.stderr = open(os.devnull, "w", encoding="utf-8")                                                        # noqa: SIM115
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def work(lab: "Lab", function, key: dict) -> None:
    try:
        lab.arm(function, **key)
    except KeyboardInterrupt:                        # its last checkpoint is written: take no other arm
        os._exit(130)


class Lab:
    """One experiment's folder. L.sft: the SFT model; L.seeds: to iterate over; L.data: --data; L.device: cuda, mps or cpu."""

    def __init__(self, settings: Settings, name: str):
        if settings.quick and settings.full:
            raise UserError("--quick and --full are opposites: take one")
        self.settings, self.name, self.folder = settings, name, Path(settings.out) / name
        self.device, self.data, self.seconds = str(pick_device(settings.device)), settings.data, {}        # of each arm
        self.inside = 0.0            # seconds that this process has spent in arms so far
        self.workers = settings.workers or (min(4, os.cpu_count() or 1) if self.device == "cpu" and os.name == "posix" else 1)
        self.seeds = range(settings.seeds or self.pick(1, 3, 5))
        self.sft = settings.sft or f"{settings.out}/sft"
        if not settings.sft:
            train_sft.main(train_sft.Settings(out=self.sft, device=self.device, resume=True))
        if not (Path(self.sft) / "model.safetensors").exists():
            raise UserError(f"--sft {self.sft} is no model folder: give one that train_sft.py wrote, or none, to train one here")
        self.id = hashlib.sha256((Path(self.sft) / "model.safetensors").read_bytes()).hexdigest()

    def pick(self, quick, default, full):
        return quick if self.settings.quick else full if self.settings.full else default

    def arm_folder(self, function, key: dict) -> Path:
        words = hashlib.sha256(repr((function.__name__, sorted(key.items()), self.id, self.data)).encode()).hexdigest()[:12]
        return self.folder / "arms" / f"{function.__name__}-{words}"

    def arm(self, function, **key) -> dict:
        """key | {"folder"} | function(L, folder, **key), from its file if it is there."""
        folder, called, inside = self.arm_folder(function, key), time.time(), self.inside
        path = folder / "arm.json"
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not path.exists():
                outer, self.seconds, began = self.seconds, {}, time.time()
                try:
                    with (folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                        result = function(self, str(folder), **key)
                finally:
                    seconds, self.seconds = self.seconds, outer
                seconds[str(folder)] = round(time.time() - began - (self.inside - inside), 1)        # without arms inside it
                write_atomically(path, json.dumps({"key": key, "result": result, "seconds": seconds}, indent=1).encode())
            content = json.loads(path.read_text(encoding="utf-8"))
        self.inside = inside + time.time() - called
        self.seconds |= content["seconds"]
        return key | {"folder": str(folder)} | content["result"]

    def run(self, function, keys: list[dict]) -> list[dict]:
        """All these arms, in the keys' order; a line for each as it ends, and an ETA."""
        missing = [key for key in keys if not (self.arm_folder(function, key) / "arm.json").exists()]
        began, done = time.time(), 0

        def show(key):
            nonlocal done
            done += 1
            words = " ".join(f"{k}={v}" for k, v in key.items() if len(str(v)) < 24)
            left = (time.time() - began) / done * (len(missing) - done)
            print(f"{self.name} {len(keys) - len(missing) + done:>3}/{len(keys)}  {words}  left {left // 60:.0f}:{left % 60:02.0f}",
                  flush=True)

        if min(self.workers, len(missing)) > 1:
            threads, context = max(1, (os.cpu_count() or 1) // self.workers), multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(self.workers, context, prepare_worker, (threads,)) as pool:
                futures = {pool.submit(work, self, function, key): key for key in missing}
                try:
                    for future in as_completed(futures):
                        future.result()
                        show(futures[future])
                except BaseException as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    if isinstance(error, KeyboardInterrupt):                              # the workers hear of it as well
                        print("stopped; the same command goes on from here", flush=True)
                    if isinstance(error, BrokenProcessPool):
                        raise UserError("a worker was killed, for want of memory perhaps: take --workers 1; finished arms are kept"
                                        ) from None
                    raise
        else:
            for key in missing:
                self.arm(function, **key)
                show(key)
        return [self.arm(function, **key) for key in keys]

    def figure(self, title: str, x: str = "", y: str = "", columns: int = 1):
        """(Figure, its axes): one, or a list with columns > 1, whose labels are the caller's to set."""
        matplotlib.rcParams.update(STYLE)
        fig = Figure(figsize=(5.2 if columns == 1 else 3.9 * columns, 3.5), layout="constrained")
        axes = [fig.add_subplot(1, columns, i + 1) for i in range(columns)]
        axes[0].set(title=title, xlabel=x, ylabel=y)
        return fig, axes[0] if columns == 1 else axes

    def finish(self, fig: Figure, rows, expected: str, found: str, agrees: bool | None, why: str = "", **more) -> None:
        """figure.png, results.json, summary.md. agrees None: undecided, e.g. an interval that holds both answers."""
        for ax in fig.axes:
            if len(ax.get_legend_handles_labels()[1]) > 1:
                ax.legend()
        fig.savefig(self.folder / "figure.png", dpi=110)
        minutes = sum(self.seconds.values()) / 60
        verdict = {True: "They agree", False: "They do not agree", None: "This does not decide it"}[agrees] + (why and f": {why}")
        size = self.pick("--quick", "default", "--full")
        summary = (f"Expected: {expected}\nFound: {found}\n{verdict}.\n\n({size}, {len(self.seeds)} seed(s), {minutes:.1f} minutes "
                   "of one worker)\n")
        write_atomically(self.folder / "summary.md", summary.encode())
        report = {"experiment": self.name, "size": size, "seeds": len(self.seeds), "sft": self.id,
                  "worker_minutes": round(minutes, 2), "agrees": agrees, **more, "rows": rows}
        write_atomically(self.folder / "results.json", json.dumps(report, indent=1).encode())
        print(f"\n{summary}\nwrote {self.folder}/figure.png, results.json, summary.md")


def start(main) -> None:
    """main(L) as a script, named after its file, --help showing its docstring."""
    global __doc__
    __doc__ = sys.modules[main.__module__].__doc__              # cli shows that of the module which defines Settings
    cli.start(lambda settings: main(Lab(settings, Path(main.__code__.co_filename).stem)), Settings)


# ---------------------------------------------------------------------------------------------------- arms that many use

def rankings(L: Lab, folder: str, *, count: int, samples: int = 2, noise: float = 0.2, bias: str = "", seed: int = 0,
             init: str = "", split: str = "train") -> dict:
    """`count` prompts with `samples` responses of the SFT model (or init), ranked by a simulated annotator: {"data": file}."""
    sample.main(sample.Settings(init=init or L.sft, data="toy", count=count, samples=samples, temperature=0.7, seed=seed,
                                split=split, candidates_out=f"{folder}/candidates.jsonl", device=L.device))
    label.main(label.Settings(candidates=f"{folder}/candidates.jsonl", out=f"{folder}/rankings.jsonl", annotator="toy",
                              noise=str(noise), bias=bias, seed=seed))
    return {"data": f"{folder}/rankings.jsonl"}


def reward_model(L: Lab, folder: str, *, data: str, seed: int = 0, **settings) -> dict:
    """train_rm.py on `data`: {"rm": its folder, "validation_accuracy", "validation_interval", "validation_loss", ...}."""
    train_rm.main(train_rm.Settings(**{"init": L.sft, "data": data, "out": f"{folder}/rm", "seed": seed, "device": L.device,
                                       "resume": True} | settings))
    return {"rm": f"{folder}/rm"} | {k: v for k, v in describe_result(f"{folder}/rm").items() if k.startswith("validation")}


def judge(L: Lab, folder: str, *, policy: str, reward: str = "", count: int = 200, samples: int = 4, seed: int = 1000) -> dict:
    """evaluate.py on held-out toy prompts, against the SFT model: gold, win_rate, kl, words ... of `policy`; an arm, or called."""
    report = evaluate.main(evaluate.Settings(policies=policy, baseline=L.sft, reward=reward, count=count, samples=samples,
                                             seed=seed, out=f"{folder}/evaluation.json", device=L.device))
    result = next(r for r in report["results"] if r["policy"] == policy)
    return {k: v for k, v in result.items() if k not in ("kinds", "parts", "policy")}

def means(**per_prompt) -> dict:
    """(P,) or (P, S) tensors -> {name: mean over prompts, name_interval: half width of its 95 % interval}."""
    found = {name: evaluate.mean_of(x) for name, x in per_prompt.items()}
    return {name: r["mean"] for name, r in found.items()} | {f"{name}_interval": r["interval"] for name, r in found.items()}


def estimate(rows: list[dict], name: str, minus: list[dict] = ()) -> tuple[float, float]:
    """Mean over seeds and its interval's half width, of `name` as `means` gives it; with one seed the interval is over prompts.
    minus: rows of the same seeds in the same order, whose value is subtracted."""
    if len(rows) > 1:
        return over_seeds([r[name] - m[name] for r, m in zip(rows, minus)] if minus else [r[name] for r in rows])
    return rows[0][name] - sum(m[name] for m in minus), math.hypot(*(r[f"{name}_interval"] for r in [*rows, *minus]))


def wanted(split: str, count: int, seed: int, keep) -> list[str]:
    """`count` different prompts of the toy world that keep(prompt) is true of, or as many as 60 times as many draws hold."""
    found, block = {}, 0
    while len(found) < count and block < 20:
        found |= dict.fromkeys(filter(keep, toyworld.prompts(split, 3 * count, seed + 100_000 * block)))
        block += 1
    return list(found)[:count]


def write_lines(file: str, records: list[dict]) -> str:
    """JSON lines; the file's name back."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(file), "".join(json.dumps(r) + "\n" for r in records).encode())
    return file


def answers(L: Lab, folder: str, policy: str, prompts: list[str], samples: int, seed: int = 1000, temperature: float = 0.7):
    """(B prompts, B responses, shape): a policy's responses to prompts, samples of a prompt side by side; kept in `folder`."""
    data, out = write_lines(f"{folder}/prompts.jsonl", [{"prompt": p} for p in prompts]), f"{folder}/answers.jsonl"
    sample.main(sample.Settings(init=policy, data=data, count=len(prompts), samples=samples, temperature=temperature, seed=seed,
                                candidates_out=out, device=L.device))
    rows = read_jsonl(out)
    return [r["prompt"] for r in rows for _ in r["responses"]], [x for r in rows for x in r["responses"]], (len(rows), samples)


def table(function, prompts: list[str], responses: list[str], shape: tuple[int, int]) -> torch.Tensor:
    """A reward function's scores of `answers`: (P, S)."""
    return torch.tensor(function(prompts, responses), dtype=torch.float64).view(shape)


def feature(name: str):
    """A feature of the toy world (toyworld.features) as a reward function."""
    return lambda prompts, responses: [toyworld.features(p, r)[name] for p, r in zip(prompts, responses)]


def reward_of(L: Lab, spec: str, ensemble: str = "mean"):
    """rewards.load on the experiment's device."""
    return rewards.load(spec, lambda model, frozen: model.to(pick_device(L.device)), ensemble)


def improve(L: Lab, folder: str, *, reward: str, steps: int, seed: int = 0, **settings) -> str:
    """A short run of RL against `reward`: RLOO, 16 prompts with four samples a step. The policy's folder."""
    train_ppo.main(train_ppo.Settings(**{
        "init": L.sft, "reward": reward, "out": f"{folder}/policy", "steps": steps, "seed": seed, "device": L.device,
        "resume": True, "advantage": "rloo", "samples_per_prompt": 4, "prompts_per_step": 16} | settings))
    return f"{folder}/policy"


# ---------------------------------------------------------------------------------------------------- statistics, curves

def over_seeds(values: list[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % interval (Student's t); NaN for one value."""
    n = len(values)
    half = T95[min(n - 1, 8)] * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return sum(values) / n, half


def said(values: list[float], digits: int = 2) -> str:
    """'0.61 ± 0.02', for summaries; '0.61 (one seed)'."""
    mean, half = over_seeds(values)
    return f"{mean:.{digits}f} (one seed)" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def slope(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """Least squares: slope and the half width of its 95 % interval (NaN for fewer than three points)."""
    n, mx = len(xs), sum(xs) / len(xs)
    spread = sum((x - mx) ** 2 for x in xs)
    b = sum((x - mx) * y for x, y in zip(xs, ys)) / spread
    a = sum(ys) / n - b * mx
    rest = sum((y - a - b * x) ** 2 for x, y in zip(xs, ys))
    return b, T95[min(n - 2, 8)] * math.sqrt(rest / (n - 2) / spread) if n > 2 else math.nan


def curve(ax, rows: list[dict], x: str, y: str, label: str, **style) -> None:
    """Mean of rows' y over those with equal x, with bars of its interval; seeds as faint dots."""
    groups = {k: [r[y] for r in rows if r[x] == k] for k in sorted({r[x] for r in rows})}
    means, halves = zip(*map(over_seeds, groups.values()))
    line = ax.errorbar(list(groups), means, yerr=[0 if math.isnan(h) else h for h in halves], marker="o", capsize=2, label=label,
                       **style)
    ax.plot([r[x] for r in rows], [r[y] for r in rows], ".", color=line[0].get_color(), alpha=0.35)


def path(folder: str, names: tuple[str, ...], window: int = 5) -> dict[str, list[float]]:
    """metrics.jsonl of a run, as means over windows of steps: {name: values}."""
    rows = read_jsonl(Path(folder) / "metrics.jsonl")
    parts = [rows[i : i + window] for i in range(0, len(rows), window)]
    def mean(part: list[dict], name: str) -> float:
        values = [math.nan if row[name] is None else row[name] for row in part]  # null: not finite
        return sum(values) / len(values)

    return {name: [mean(part, name) for part in parts] for name in names}
