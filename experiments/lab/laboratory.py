"""One experiment's folder: its arms, each computed once, and what it writes at the end."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

import train_sft
from lab import workers
from minirlhf import UserError, cli
from minirlhf.device import pick_device
from minirlhf.files import read_json, write_atomically, write_json

VERDICTS = {True: "They agree", False: "They do not agree", None: "This does not decide it"}


@dataclass
class Settings:
    quick: bool = False  # one seed, everything small: some three minutes
    seeds: int = 0  # repetitions; 0: one for --quick, else three
    sft: str = ""  # SFT model of the toy world; empty: trained once into OUT/sft, for all
    data: str = ""  # where an experiment has a part on real comparisons: their files
    out: str = "out/experiments"  # everything is written to OUT/<name of the experiment>
    device: str = "auto"  # auto, cuda, mps, cpu
    workers: int = 0  # arms computed at a time; 0: a CPU's cores, up to 4; one on a GPU


@contextmanager
def locked(folder: Path):
    """No other process computes this arm meanwhile. The lock ends with its process."""
    with (folder / "lock").open("w") as file:
        with suppress(ImportError):  # Windows has no such lock; there Lab takes one worker
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lab:
    """sft: the SFT model's folder; seeds: to iterate over; data: --data; device: cuda, mps, cpu."""

    def __init__(self, settings: Settings, name: str):
        self.settings = settings
        self.name = name
        self.folder = Path(settings.out) / name
        self.data = settings.data
        self.device = str(pick_device(settings.device))
        self.began = time.time()
        self.seeds = range(settings.seeds or self.pick(quick=1, default=3))
        self.workers = settings.workers
        if not self.workers:
            several = self.device == "cpu" and os.name == "posix"
            self.workers = min(4, os.cpu_count() or 1) if several else 1
        self.sft = settings.sft or f"{settings.out}/sft"
        if not settings.sft:
            train_sft.main(train_sft.Settings(out=self.sft, device=self.device, resume=True))
        weights = Path(self.sft) / "model.safetensors"
        if not weights.exists():
            raise UserError(
                f"--sft {self.sft} is no model folder: name one that train_sft.py wrote, or leave "
                "--sft away to train one"
            )
        self.sft_hash = hashlib.sha256(weights.read_bytes()).hexdigest()

    def pick(self, quick, default):
        """The value for this size of the experiment."""
        return quick if self.settings.quick else default

    # ---- arms

    def arm_folder(self, function: Callable, key: dict) -> Path:
        name = function.__name__
        identity = repr((name, sorted(key.items()), self.sft_hash, self.data))
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return self.folder / "arms" / f"{name}-{digest[:12]}"

    def is_done(self, function: Callable, key: dict) -> bool:
        return (self.arm_folder(function, key) / "arm.json").exists()

    def arm(self, function: Callable, **key) -> dict:
        """key | {"folder"} | function(L, folder, **key), from its file if it is there."""
        folder = self.arm_folder(function, key)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "arm.json"
        with locked(folder):
            if not file.exists():
                began = time.time()
                with (folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):
                    result = function(self, str(folder), **key)
                seconds = round(time.time() - began, 1)
                write_json(file, {"key": key, "result": result, "seconds": seconds})
            result = read_json(file)["result"]
        return {**key, "folder": str(folder), **result}

    def run(
        self, function: Callable, variants: list[dict] | None = None, most_seeds=99, **common
    ) -> list[dict]:
        """The arms of all variants, for each seed: arm(function, **common, **variant, seed=...).

        Prints a line as each one ends, with the time left.
        most_seeds: for arms that are dear and decide nothing
        """
        keys = []
        for seed in self.seeds[:most_seeds]:
            for variant in variants or [{}]:
                keys.append({**common, **variant, "seed": seed})
        missing = [key for key in keys if not self.is_done(function, key)]
        began = time.time()
        for done, key in enumerate(workers.compute(self, function, missing), start=1):
            left = (time.time() - began) / done * (len(missing) - done)
            number = len(keys) - len(missing) + done
            values = [f"{k}={v}" for k, v in key.items() if len(str(v)) < 24]
            line = f"{self.name} {number:>3}/{len(keys)}  {' '.join(values)}"
            print(f"{line}  left {left // 60:.0f}:{left % 60:02.0f}", flush=True)
        return [self.arm(function, **key) for key in keys]

    # ---- results

    def finish(
        self,
        fig: Figure,
        rows: list[dict],
        expected: str,
        found: list[str],
        agrees: bool,
        decided: bool = True,
        **more,
    ) -> None:
        """Write figure.png, results.json and summary.md.

        decided: False if the result decides nothing, as an interval that holds both answers.
        more: further entries of results.json.
        """
        if not decided:
            agrees = None
        for ax in fig.axes:
            if len(ax.get_legend_handles_labels()[1]) > 1:
                ax.legend()
        fig.savefig(self.folder / "figure.png", dpi=110)
        size = self.pick(quick="--quick", default="default")
        minutes = (time.time() - self.began) / 60
        seeds = len(self.seeds)
        lines = [f"Expected: {expected}", "", "Found:", *(f"- {line}" for line in found), ""]
        lines += [f"{VERDICTS[agrees]}.", "", f"({size}, {seeds} seed(s), {minutes:.1f} minutes)"]
        summary = "\n".join(lines) + "\n"
        write_atomically(self.folder / "summary.md", summary.encode())
        report = {
            "experiment": self.name,
            "size": size,
            "seeds": seeds,
            "sft": self.sft_hash,
            "minutes": round(minutes, 2),
            "agrees": agrees,
            "found": found,
            **more,
            "rows": rows,
        }
        write_json(self.folder / "results.json", report)
        print(f"\n{summary}\nwrote {self.folder}/figure.png, results.json, summary.md")


def start(main: Callable) -> None:
    """Run main(L) as a script; the experiment is named after its file."""
    # --help shows the docstring of the module that defines Settings: let it be the experiment's
    sys.modules[__name__].__doc__ = sys.modules[main.__module__].__doc__
    name = Path(main.__code__.co_filename).stem
    cli.start(lambda settings: main(Lab(settings, name)), Settings)
