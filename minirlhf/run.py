"""A run's folder: settings, metrics, samples, checkpoints, and resuming from them.

    out/ppo/run.json             settings, fingerprints of the inputs, versions, "finished"
    out/ppo/metrics.jsonl        a line per step
    out/ppo/samples.jsonl        responses to look at
    out/ppo/resume.safetensors   the last checkpoint, until the run is finished
    out/ppo/run.lock             while a process writes here: its number
    out/ppo/config.json, model.safetensors, ...   the finished model, a Hugging Face folder

A run is a function of (settings, inputs, seed, step): everything random draws from
`generator(name, step)`. On a CPU, a run that was killed and resumed ends bit for bit as one that
was not. A checkpoint is one file with all that it needs: weights, optimiser, the logs so far, a
tokenizer that was trained here, and what the run was made from, to be compared on --resume.
"""

import hashlib
import json
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minirlhf import UserError, device, files, inputs, lora, memory, tokenizer_files
from minirlhf.checkpoint import read_tensors, write_tensors
from minirlhf.cli import at_least
from minirlhf.console import Table, say, waiting
from minirlhf.files import append_jsonl, read_json, to_json, write_json
from minirlhf.model import GPT
from minirlhf.tokenizer import Tokenizer
from minirlhf.tokenizer_files import EOS, Spec

CHECKPOINT = "resume.safetensors"
LOGS = ("metrics.jsonl", "samples.jsonl")
FILES = (  # that a run writes, or deletes where an older one has left them
    "run.json",
    *LOGS,
    CHECKPOINT,
    "config.json",
    "model.safetensors",
    "generation_config.json",
    *tokenizer_files.NAMES,
)
MAY_CHANGE_ON_RESUME = {
    "resume",
    "overwrite",
    "device",
    "out",
    "candidates_out",
    "show_batch",
    "log_every",
    "save_every",
    "token_budget",
    "checkpointing",
    "compile",
}


def seed_of(*key) -> int:
    """A 63-bit seed from anything printable, as seed_of(0, "sample", step)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def read_run(folder: str | Path) -> dict:
    """run.json of a folder, {} if it has none."""
    kinds = {"script": str, "settings": dict, "inputs": dict, "finished": bool}
    return read_json(Path(folder) / "run.json", seconds=int | float, **kinds)


def read_loop(folder: str | Path) -> dict:
    """loop.json of a folder, {} if it has none: run_rlhf.py's "settings" and "stages"."""
    path = Path(folder) / "loop.json"
    state = read_json(path, settings=dict, stages=dict)
    kinds = {"finished": bool, "seconds": int | float, "settings": dict, "inputs": dict}
    for stage in state.get("stages", {}).values():
        files.check_fields(path, stage, kinds)
    return state


def check_out(settings: Any) -> None:
    """UserError unless --out can be a run's folder, and holds none of the run's inputs."""
    if not settings.out or "," in settings.out:
        raise UserError(
            f"--out {settings.out!r}: name a folder, without commas, which separate names"
        )
    out = Path(settings.out).resolve()
    for flag in inputs.INPUTS:
        for path in map(Path, inputs.parts(getattr(settings, flag, ""))):
            places = [path, *path.glob("*")]  # a folder's files may be links into --out
            if path.exists() and any(place.resolve().is_relative_to(out) for place in places):
                raise UserError(
                    f"--out {settings.out} would overwrite --{flag} {path}: choose another --out"
                )


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Its tensors, and its state: what `Run.checkpoint` wrote."""
    try:
        tensors, metadata = read_tensors(path)
        state = json.loads(metadata["state"])
        state["run"]  # earlier versions did not write it
    except (UserError, KeyError):
        raise UserError(
            f"{path} is damaged, or of another version: restore a copy, or delete it to begin "
            "again at step 0"
        ) from None
    return tensors, state


def resumed_tokenizer(settings: Any) -> Tokenizer | None:
    """The tokenizer that the run in --out trained, if there is a checkpoint to resume from."""
    path = Path(settings.out, CHECKPOINT)
    if not (settings.resume and path.exists()):
        return None
    content = read_checkpoint(path)[1].get("tokenizer")
    if content is None:
        return None
    merges = [tuple(pair) for pair in content["merges"]]
    return Tokenizer(Spec(content["vocab"], merges, special_tokens={EOS}))


class Run:
    """Making a Run only checks its folder: an older run stays there until `log` has a line."""

    def __init__(self, settings: Any, script: str):
        at_least(1, settings, "log_every", "save_every", "token_budget")
        check_out(settings)
        self.settings = settings
        self.script = script
        self.folder = Path(settings.out)
        self.seed = settings.seed
        self.device = device.pick_device(settings.device)
        device.pick_autocast(settings.dtype, self.device)  # a wrong name is an error at once
        self.inputs = inputs.fingerprints(settings)
        self.started = time.monotonic()
        self.seconds_before = 0.0  # spent before this run was resumed
        self.first_step, self.total = 0, 0  # of this run's steps
        self.first_logged: tuple[int, float] | None = None  # step and time, for the ETA
        self.stop_signal: int | None = None
        self.begun = False  # the folder holds nothing of an older run
        self.placed: list[nn.Module] = []
        self.tracked: dict[str, nn.Module] = {}
        self.extra: dict[str, float] = {}  # numbers that belong to a checkpoint: a KL coefficient
        self.row: dict = {}  # the last row of metrics.jsonl
        self.table = Table()
        self.finished = self._open_folder()

    # ---- folder and settings

    def _open_folder(self) -> bool:
        """Check the folder. True if it holds this very run, finished."""
        settings = self.settings
        try:
            files.make_folder(self.folder)
        except OSError as error:
            raise UserError(
                f"--out {self.folder} cannot be made ({error.strerror}): choose another folder"
            ) from None
        self.lock = self.folder / "run.lock"
        files.lock(self.lock, str(self.folder))
        earlier = read_run(self.folder) if settings.resume else {}
        if earlier:
            self._check_same_run(earlier, earlier.get("finished", False))
            self.seconds_before = earlier.get("seconds", 0.0)
        else:
            self._check_new()
        files.delete_parts(self.folder)
        if earlier.get("finished"):  # it may have been killed just after that was written
            self._delete_checkpoint()
            files.unlock(self.lock)
        return earlier.get("finished", False)

    def _check_new(self) -> None:
        """UserError if the folder holds a file of this run's names, perhaps the user's."""
        settings = self.settings
        resumes = settings.resume and (self.folder / CHECKPOINT).exists()  # but run.json is lost
        if settings.overwrite or resumes:
            return
        for name in FILES:
            if (self.folder / name).exists():
                continuing = "--resume to continue the run, " if name == "run.json" else ""
                raise UserError(
                    f"{self.folder} already holds {name}, of a run, a model or something else: use "
                    f"{continuing}--overwrite to replace it, or another --out"
                )

    def _check_same_run(self, earlier: dict, finished: bool) -> None:
        """UserError if the run to be resumed was another one.

        earlier: its "script", "settings" and "inputs"
        """
        may_change = set(MAY_CHANGE_ON_RESUME)
        if not finished:
            may_change.add("lr")  # a run that stopped at NaN goes on with a lower one
        changes = inputs.changes(earlier, self.settings, self.inputs, may_change)
        if earlier.get("script", self.script) != self.script:
            changes.insert(0, f"the script was {earlier['script']}")
        if changes:
            raise UserError(
                f"{self.folder} was started with other settings or inputs ({'; '.join(changes)}): "
                "resume it with what it was, use --overwrite to begin anew, or another --out"
            )

    def _begin(self) -> None:
        """Before the first line is written: replace an older run's run.json, delete its results."""
        if self.begun:
            return
        with files.atomically(self.folder / "run.json") as temporary:
            write_json(temporary, self._description(finished=False))
            self._delete_checkpoint()  # first: it must never meet the new settings
        for name in (*LOGS, "model.safetensors"):
            (self.folder / name).unlink(missing_ok=True)
        self.begun = True

    def _delete_checkpoint(self) -> None:
        (self.folder / CHECKPOINT).unlink(missing_ok=True)

    def _identity(self) -> dict:
        return {"script": self.script, "settings": asdict(self.settings), "inputs": self.inputs}

    def _description(self, **results) -> dict:
        seconds = self.seconds_before + time.monotonic() - self.started
        return {
            **self._identity(),
            "device": str(self.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seconds": round(seconds, 2),
            **results,
        }

    def generator(self, *key) -> torch.Generator:
        """A generator that depends on (seed, key) alone, as generator("sample", step)."""
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, *key))

    # ---- models and optimisers

    def place(self, model: nn.Module, *, trained: bool = False) -> nn.Module:
        """device.place with the run's settings."""
        self.placed.append(model)
        return device.place(
            model,
            self.device,
            device.pick_autocast(self.settings.dtype, self.device, model.config.n_embd),
            trained=trained,
            checkpointing=getattr(self.settings, "checkpointing", False),
            compile=getattr(self.settings, "compile", False),
        )

    def open(self, cls, folder: str | Path, *, trained: bool = False, **overrides) -> nn.Module:
        """device.open_model with the run's settings."""
        return self.place(cls.from_pretrained(folder, **overrides), trained=trained)

    def open_reference(self, policy: GPT) -> GPT:
        """What the KL is measured against: --reference, or the policy as it starts."""
        settings = self.settings
        if settings.lora_rank and settings.reference in ("", settings.init):
            return lora.base(policy)  # the same weights without the adapters
        reference = self.open(GPT, settings.reference or settings.init)
        if reference.tokenizer.vocab != policy.tokenizer.vocab:
            raise UserError(
                f"--reference {settings.reference} has other tokens than --init, whose tokens it "
                "would read: use a model of the same family"
            )
        if reference.config.n_positions < policy.config.n_positions:
            raise UserError(
                f"--reference {settings.reference} has a shorter context than --init: use a model "
                "that reads as much"
            )
        return reference

    def say_memory(self, cached_tokens: int = 0) -> float:
        """Estimate the GiB that a step takes; print them from 1 on, with the flags that lower them.

        cached_tokens: as in memory.estimate
        """
        total, weights = memory.estimate(self.placed, self.settings.token_budget, cached_tokens)
        if total >= 1:
            print(
                f"memory: about {total:.1f} GiB, {weights:.1f} of them weights and optimiser; "
                "lower --token_budget or use --checkpointing if that is too much"
            )
        return total

    # ---- checkpoints

    def restore(self, optimizer: torch.optim.Optimizer, **models: nn.Module) -> None:
        """Say what checkpoints hold. With --resume, load the last one, self.extra too."""
        self.optimizer = optimizer
        self.tracked = models
        path = self.folder / CHECKPOINT
        if not (self.settings.resume and path.exists()):
            return
        tensors, state = read_checkpoint(path)
        self._check_same_run(state["run"], finished=False)
        if self._is_fresh() and state.get("config") != asdict(models["model"].config):
            raise UserError(
                f"{path} holds a fresh model of another version, which this one would compute in "
                "another way: delete it to begin again at step 0"
            )
        for name, model in models.items():
            weights = {key: tensors[f"{name}.{key}"] for key in model.state_dict()}
            model.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                moments.setdefault(int(index), {})[name] = tensor.clone()  # the file is replaced
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.first_step = state["step"]
        self.extra = state["extra"]
        self.row = state["row"]
        for name in LOGS:  # as they were then: lost lines come back, later ones are logged again
            log = self.folder / name
            if f"log.{name}" in tensors:
                files.write_atomically(log, tensors[f"log.{name}"].numpy().tobytes())
            else:
                log.unlink(missing_ok=True)
        self.begun = True
        print(f"resuming {self.folder} at step {self.first_step}")

    def _is_fresh(self) -> bool:
        """Whether the model comes from the settings, and not from a folder."""
        return not getattr(self.settings, "init", "")

    def checkpoint(self, step: int) -> None:
        """Write all that is needed to go on at `step`, in one file."""
        self._begin()
        tensors = {}
        for name, model in self.tracked.items():
            for key, tensor in model.state_dict().items():
                tensors[f"{name}.{key}"] = tensor
        for index, moments in self.optimizer.state_dict()["state"].items():
            for key, tensor in moments.items():
                tensors[f"optimizer.{index}.{key}"] = tensor
        for name in LOGS:
            path = self.folder / name
            if path.exists():
                tensors[f"log.{name}"] = torch.from_numpy(np.fromfile(path, np.uint8))
        state = {"step": step, "extra": self.extra, "row": self.row, "run": self._identity()}
        if self._is_fresh():  # and so is its tokenizer
            model = self.tracked["model"]
            tokenizer = model.tokenizer
            state["config"] = asdict(model.config)
            state["tokenizer"] = {"vocab": tokenizer.vocab, "merges": tokenizer.merges}
        write_tensors(self.folder / CHECKPOINT, tensors, state=to_json(state))
        write_json(self.folder / "run.json", self._description(finished=False))

    @contextmanager
    def _signals(self):
        """Ctrl-C and SIGTERM let the step finish; a second one stops at once."""

        def note(number, frame):
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = number

        handlers = {}
        with suppress(ValueError):  # not the main thread, which handles signals itself
            for number in (signal.SIGINT, signal.SIGTERM):
                handlers[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to do; checkpoints every save_every steps and when told to stop."""
        self.total = total
        with self._signals(), waiting("training", total, "steps", self.first_step) as bar:
            for step in range(self.first_step, total):
                yield step
                bar.update()
                done = step + 1
                if self.stop_signal is not None:
                    self.checkpoint(done)
                    say(f"stopped at step {done}; {self.folder} can be resumed")
                    raise KeyboardInterrupt
                if done % self.settings.save_every == 0 and done < total:
                    self.checkpoint(done)

    def is_due(self, step: int, every: int) -> bool:
        """At every so many steps, and at the last one. 0: never."""
        return every > 0 and ((step + 1) % every == 0 or step + 1 == self.total)

    def say_finished(self) -> None:
        print(
            f"{self.folder} is finished already; to train it further, start another run from it: "
            f"--init {self.folder} --out another_folder"
        )

    def finish(self, model, **results) -> None:
        """Write the model's folder, then mark the run finished."""
        self._begin()
        model.save_pretrained(self.folder)
        write_json(self.folder / "run.json", self._description(finished=True, **results))
        self._delete_checkpoint()
        files.unlock(self.lock)
        print(f"wrote {self.folder}")

    # ---- what the user sees

    def _eta(self, step: int) -> str:
        """Minutes and seconds; from the second logged step on, as the first one warms up."""
        if self.first_logged is None:
            self.first_logged = step, time.monotonic()
            return "-"
        first, since = self.first_logged
        seconds = (time.monotonic() - since) / max(1, step - first) * (self.total - step - 1)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02}"

    def log(self, step: int, show: tuple[str, ...] = (), **metrics) -> dict:
        """Add a row to metrics.jsonl; every log_every steps, and with a validation, also to the
        table on the console.

        Tensors become their means. show: the metrics on the console, by default all.
        """
        self._begin()
        row = {"step": step}
        for name, value in metrics.items():
            row[name] = float(value.detach().float().mean()) if isinstance(value, Tensor) else value
        append_jsonl(self.folder / "metrics.jsonl", [row])
        self.row = row
        eta = self._eta(step)
        validated = any(name.startswith("validation") for name in metrics)
        if step % self.settings.log_every == 0 or step == self.total - 1 or validated:
            self.table.add(f"{step}/{self.total}", row, show or tuple(metrics), eta)
        return row

    def samples(self, step: int, rows: list[dict], show: int = 0) -> None:
        """Add responses to samples.jsonl; the first `show` are also a table on the console."""
        self._begin()
        append_jsonl(self.folder / "samples.jsonl", [{"step": step, **row} for row in rows])
        if rows[:show]:
            self.table.add_samples(rows[:show])
