"""A run's folder: settings, metrics, samples, checkpoint and exact resume; device, precision, optimiser.

An older run is deleted (--overwrite) only when the new one's first step has gone through, with all that it loads.
A run is a function of (settings, seed, step): whatever is random draws from `generator(name, step)`, so a run that was
killed and resumed from its last checkpoint ends as if it had never stopped, bit for bit on a CPU.

    out/ppo/run.json          all settings, parent, versions, "finished"
    out/ppo/metrics.jsonl     a line per logged step
    out/ppo/samples.jsonl     responses to look at
    out/ppo/resume.safetensors   weights and optimiser of the last checkpoint; gone when the run is finished
    out/ppo/config.json, model.safetensors, vocab.json, merges.txt   the model, once finished
"""
import ctypes
import hashlib
import json
import math
import os
import platform
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from minirlhf import UserError, atomically, hub, rewards, write_atomically
from minirlhf.json_text import to_json, to_json_lines
from minirlhf.model import LOGITS_AT_ONCE, checksum
from minirlhf.muon import Muon

LOGS = ("metrics.jsonl", "samples.jsonl")
RESULTS = ("resume.safetensors", *LOGS, "model.safetensors")
MAY_CHANGE_ON_RESUME = {"resume", "overwrite", "device", "out", "show_batch", "log_every", "save_every", "token_budget",
                        "checkpointing", "compile"}


class Stopped(UserError):
    """The run cannot go on; the last checkpoint is whole."""


def seed_of(*key) -> int:
    """A 63-bit seed from anything printable: (seed, "sample", step)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def pick_device(name: str = "auto") -> torch.device:
    """auto takes the first of cuda, mps, cpu that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable CUDA device; take --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; take auto, cuda, mps or cpu") from None


def pick_autocast(name: str, device: torch.device) -> torch.dtype | None:
    """auto: bfloat16 matrix products where the GPU has them; weights and logits stay float32.

    Where the rest is bfloat16, a GPU makes its float32 products, the head's above all, from TF32: eight
    times the precision of bfloat16, several times the speed of float32.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--dtype {name}: unknown; take auto, float32 or bfloat16")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = name == "bfloat16"
    return torch.bfloat16 if name == "bfloat16" else None


def keep_pages(keep: bool = True) -> None:
    """glibc: freed memory stays with the process. To give the pages of large temporaries back and to fault them in again,
    one by one, costs an eighth of a CPU's training step. Where there is no glibc, nothing happens."""
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0 if keep else 2**16)       # M_MMAP_MAX: how many blocks are mapped each by itself
        libc.mallopt(-1, -1 if keep else 2**17)      # M_TRIM_THRESHOLD: what may lie free at the heap's end; -1: all


def linear_decay(step: int, steps: int, warmup: int = 0) -> float:
    """Factor on the learning rate: up from 0 over `warmup` steps, then down to 0 at the end."""
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def cosine_decay(step: int, steps: int, warmup: int = 0) -> float:
    """The same with half a cosine, ending at a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def describe_result(folder: str | Path) -> dict:
    """run.json of a folder; {} where there is none."""
    path = Path(folder) / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_jsonl(path: str | Path) -> list[dict]:
    """The whole lines of one of our own logs."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []     # a torn last line is left out
    return [json.loads(line) for line in lines]


def inputs(settings: Any) -> list[tuple[str, Path]]:
    """(flag, path) of everything that a run reads: model folders and files."""
    found = []

    def add_model(flag: str, name: str) -> None:
        cached = name in hub.MODELS and not Path(name).exists()
        found.append((flag, hub.cache() / name if cached else Path(name)))

    for flag in ("init", "reference", "normalize_on"):
        if name := getattr(settings, flag, ""):
            add_model(flag, name)
    rewards_of = {"reward": [getattr(settings, "reward", "")], "watch": getattr(settings, "watch", "").split(",")}
    for flag, specs in rewards_of.items():
        for names, _ in [term for spec in specs if spec for term in rewards.parse(spec)]:
            for name in names:
                file = name.rpartition(":")[0]
                if file.endswith(".py"):
                    found.append((flag, Path(file)))
                elif name != "toy":
                    add_model(flag, name)
    for flag in ("data", "ptx_data"):
        for name in getattr(settings, flag, "").split(","):
            name = name.strip()
            if name in hub.DATA:
                found.append((flag, hub.cache() / name))
            elif name and name not in ("toy", "toy+judge"):
                found.append((flag, Path(name)))
    return found


def check_out(settings: Any) -> None:
    """UserError if what the run writes would lie in, around or in the place of something that it reads."""
    out = Path(settings.out).resolve()
    for flag, path in inputs(settings):
        files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else []     # they may be links
        for place in [path.resolve(), *(file.resolve() for file in files)]:
            if place.is_relative_to(out) or out.is_relative_to(place):
                raise UserError(f"--out {settings.out} is, holds or lies in --{flag} {path}, which the run reads and would damage: "
                                "choose another --out")


class Run:
    def __init__(self, settings: Any, script: str):
        self.settings, self.folder = settings, Path(settings.out)
        self.script, self.seed = script, settings.seed
        self.device = pick_device(settings.device)
        self.autocast_dtype = pick_autocast(settings.dtype, self.device)
        if self.device.type == "cpu":
            keep_pages()
        self.started = time.time()
        self.seconds_before = 0.0             # spent by the runs that this one resumes
        self.first_step = 0
        self.stop_signal: int | None = None
        self.placed: list[nn.Module] = []
        self.tracked: dict[str, nn.Module] = {}
        self.extra: dict[str, float] = {}     # small numbers that belong to a checkpoint: a KL coefficient
        self.row: dict = {}                   # what was logged last
        self.begun = False                    # the folder holds this run, and nothing of an older one
        self.continues = False                # the folder holds this run's earlier life
        self.replaces = False                 # the folder holds a run whose place this one may take
        self.finished = self._open_folder()

    # ------------------------------------------------------------------------------------------ folder and settings

    def _open_folder(self) -> bool:
        """Checks the folder. True if it holds the finished run of these very settings."""
        check_out(self.settings)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.folder} cannot be made ({error.strerror}): choose a folder you may write") from None
        if self.settings.overwrite and not self.settings.resume:
            self.replaces = True
            self._check_writable()
            return False
        if not (self.folder / "run.json").exists():
            for name in ("config.json", "model.safetensors"):
                if (self.folder / name).exists():
                    raise UserError(f"{self.folder} holds a {name} that is no run's: --overwrite replaces it, or choose another "
                                    "--out")
            self._check_writable()
            return False
        if not self.settings.resume:
            raise UserError(f"{self.folder} already holds a run: --resume goes on with it, --overwrite replaces it, "
                            "or choose another --out")
        return self._check_earlier_life(describe_result(self.folder))

    def _check_writable(self) -> None:
        if not os.access(self.folder, os.W_OK):
            raise UserError(f"--out {self.folder} cannot be written: choose a folder you may write")

    def _check_earlier_life(self, theirs: dict) -> bool:
        """What is resumed must have the same settings. True if it is finished."""
        mine = asdict(self.settings)
        free = MAY_CHANGE_ON_RESUME | ({"lr"} if not theirs.get("finished") else set())      # it may have led to NaN
        changed = sorted(k for k in mine.keys() - free if theirs.get("settings", {}).get(k) != mine[k])
        if changed:
            raise UserError(f"{self.folder} was started with other settings ({', '.join(changed)}): resume with the "
                            "same ones, or take --overwrite or another --out")
        self.replaces = True
        if theirs.get("beginning"):                    # killed in _begin(): what lies there may be of another run
            return False
        self.continues = True
        self.seconds_before = theirs.get("seconds", 0.0)
        for name in ("run.json", *RESULTS):            # of a save that was killed
            (self.folder / f"{name}.partial").unlink(missing_ok=True)
        if theirs.get("finished"):                     # killed before the last line of finish()
            (self.folder / "resume.safetensors").unlink(missing_ok=True)
        return bool(theirs.get("finished"))

    def _begin(self) -> None:
        """Makes the folder this run's, before the first thing that it writes there. The new run.json is the moment of change:
        before it the old run is whole; after it the mark "beginning" says that old files may still lie there."""
        if self.begun:
            return
        if (self.folder / "run.json").exists() and not self.replaces:
            raise UserError(f"another run has begun in {self.folder} meanwhile: choose another --out")
        self._write_run_json(finished=False, beginning=True)
        for name in RESULTS:                           # and nothing else that may lie there
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / f"{name}.partial").unlink(missing_ok=True)
        self._write_run_json(finished=False)
        self.begun = True

    def _write_run_json(self, **more) -> None:
        parent = getattr(self.settings, "init", "")
        content = {"script": self.script, "settings": asdict(self.settings), "parent": parent, "seed": self.seed,
                   "device": str(self.device), "torch": torch.__version__, "python": platform.python_version(),
                   "seconds": round(self.seconds_before + time.time() - self.started, 2)} | more
        write_atomically(self.folder / "run.json", to_json(content, indent=1).encode())

    def generator(self, *key) -> torch.Generator:
        """A generator that depends on (seed, key) alone: run.generator("sample", step)."""
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, *key))

    def place(self, model: nn.Module, frozen: bool = False) -> nn.Module:
        """To the run's device and precision. Frozen models keep no gradients, and of their blocks' matrices only what autocast
        would round them to at every use: the same numbers from half the memory."""
        model.autocast_dtype = self.autocast_dtype
        model.checkpointing = getattr(self.settings, "checkpointing", False)
        model.to(self.device).requires_grad_(not frozen)
        for layer in model.h.modules():
            if frozen and self.autocast_dtype and isinstance(layer, nn.Linear):
                layer.to(self.autocast_dtype)
        if getattr(self.settings, "compile", False):
            for block in model.h:
                block.compile(dynamic=True)
        self.placed.append(model)
        return model

    def memory(self, cached_tokens: int = 0) -> dict[str, float]:
        """GiB that the placed models will take in a step, by purpose; their sum at the peak is printed with the flags that lower
        it. cached_tokens: those whose keys and values sampling keeps; that and the activations are never there at one time.
        A block's activations are counted as autograd saves them."""
        trained, tokens = [m for m in self.placed if any(p.requires_grad for p in m.parameters())], self.settings.token_budget
        cast = 2 if self.autocast_dtype else 0      # bytes of a block's weight, as autocast keeps it
        first = self.placed[0].config
        parts = {"weights": sum(p.numel() * p.element_size() for m in self.placed for p in m.parameters()), "activations": 0,
                 "gradients and AdamW": 12 * sum(p.numel() for m in trained for p in m.parameters() if p.requires_grad)
                 + cast * sum(p.numel() for m in trained for p in m.h.parameters() if p.dtype == torch.float32),
                 "sampling": cached_tokens * (4 if cast else 8) * first.n_layer * first.n_embd}
        for m in trained:
            D, inner = m.config.n_embd, m.config.n_inner or 4 * m.config.n_embd
            block = 22 * D + 4 * inner if self.autocast_dtype else 34 * D + 8 * inner           # bytes per token
            parts["activations"] += tokens * (block + 4 * D * m.config.n_layer if m.checkpointing else block * m.config.n_layer)
            parts["activations"] += 12 * min(LOGITS_AT_ONCE, tokens * m.config.vocab_size) * hasattr(m, "token_logprobs")
        parts = {name: size / 2**30 for name, size in parts.items()}
        there = f" of {torch.cuda.mem_get_info(self.device)[1] / 2**30:.1f}" if self.device.type == "cuda" else ""
        peak = sum(parts.values()) - min(parts["activations"], parts["sampling"])
        print(f"memory: about {peak:.2g}{there} GiB: {', '.join(f'{k} {v:.2g}' for k, v in parts.items() if v)}; "
              f"--token_budget {tokens // 2} or --checkpointing would lower the activations, a smaller --init the rest")
        return parts

    # ------------------------------------------------------------------------------------------ checkpoints

    def track(self, optimizer: torch.optim.Optimizer, **models: nn.Module) -> None:
        """Says what a checkpoint holds; loads the last one if the run is resumed."""
        self.optimizer, self.tracked = optimizer, models
        path = self.folder / "resume.safetensors"
        if not (self.continues and path.exists()):
            return
        try:
            with safe_open(path, "pt") as f:
                tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()           # noqa: SIM118 (no dict)
            if meta["crc32"] != checksum(tensors, meta["state"] + str(sorted(tensors))):
                raise ValueError("its checksum is wrong")
            meta = json.loads(meta["state"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): put back a copy, or delete it to begin again at step 0") from None
        for name, model in models.items():
            model.load_state_dict({k: tensors[f"{name}.{k}"] for k in model.state_dict()})
        state = {}
        for key in tensors:
            if key.startswith("optimizer."):
                _, i, field = key.split(".", 2)
                state.setdefault(int(i), {})[field] = tensors[key].clone()       # else it is the file, which must be replaced
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.first_step, self.extra, self.begun = meta["step"], meta["extra"], True
        for name in (x for x in LOGS if (self.folder / x).exists()):     # what the dead run logged after its last checkpoint goes
            kept = [r for r in read_jsonl(self.folder / name) if r["step"] < self.first_step]
            write_atomically(self.folder / name, to_json_lines(kept).encode())
        self.row = (read_jsonl(self.folder / LOGS[0]) or [{}])[-1]
        print(f"resuming {self.folder} at step {self.first_step}")

    def checkpoint(self, step: int) -> None:
        """Everything needed to go on at `step`, in one file that appears whole or not at all."""
        self._begin()
        tensors = {f"{name}.{k}": v for name, model in self.tracked.items() for k, v in model.state_dict().items()}
        for i, fields in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in fields.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        state = json.dumps({"step": step, "extra": self.extra})
        with atomically(self.folder / "resume.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"state": state, "crc32": checksum(tensors, state + str(sorted(tensors)))})
            for name in LOGS:                                     # after a power cut they must not lack a step before this one
                with suppress(FileNotFoundError), (self.folder / name).open("r+b") as f:
                    os.fsync(f.fileno())
        self._write_run_json(finished=False)

    @contextmanager
    def _signals(self):
        """Ctrl-C and SIGTERM let the step finish; a second one stops at once."""
        def note(number, frame):
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = number

        before = {}
        with suppress(ValueError):       # not the main thread: whoever runs us handles signals
            before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def steps(self, total: int):
        """The steps still to do, with a progress bar; checkpoints every save_every steps and when told to stop."""
        bar = tqdm(total=total, initial=self.first_step, desc=self.folder.name, unit="step", mininterval=1,
                   disable=not sys.stderr.isatty())
        self.total = total
        with self._signals(), bar:
            for step in range(self.first_step, total):
                yield step
                bar.update()
                done = step + 1
                if self.stop_signal is not None:
                    self.checkpoint(done)
                    bar.close()
                    alone = Path(sys.argv[0]).name == self.script             # run_rlhf.py resumes unasked
                    print(f"stopped at step {done}; the same command{' with --resume' * alone} goes on from here", flush=True)
                    raise KeyboardInterrupt
                if done % self.settings.save_every == 0 and done < total:
                    self.checkpoint(done)

    def finish(self, model, **more) -> None:
        """Writes the model folder, then marks the run finished."""
        self._begin()
        model.save_pretrained(self.folder)
        self._write_run_json(finished=True, **more)
        (self.folder / "resume.safetensors").unlink(missing_ok=True)
        print(f"wrote {self.folder}")

    # ------------------------------------------------------------------------------------------ optimisation

    def adamw(self, models: list[nn.Module], lr: float, eps: float = 1e-8, weight_decay: float = 0.0) -> torch.optim.AdamW:
        """AdamW (fused); matrices decay, biases and LayerNorm gains do not."""
        parameters = [p for m in models for p in m.parameters() if p.requires_grad]
        groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, eps=eps, betas=(0.9, 0.95), fused=self.device.type in ("cuda", "cpu"))

    def muon(self, model: nn.Module, lr: float, weight_decay: float = 0.0) -> Muon:
        """Muon for the blocks' matrices at four times `lr`; AdamW for embeddings, biases and gains, which do not decay."""
        blocks = {id(p) for p in model.h.parameters() if p.dim() == 2}
        groups = [{"params": [p for p in model.parameters() if (id(p) in blocks) == matrix], "orthogonal": matrix,
                   "lr_factor": 4.0 if matrix else 1.0, "weight_decay": weight_decay * matrix} for matrix in (True, False)]
        return Muon(groups, lr=lr, betas=(0.9, 0.95), fused=self.device.type in ("cuda", "cpu"))

    def update(self, optimizer, models: list[nn.Module], lr: float, loss: float, step: int, clip: float = 1.0) -> float:
        """Clips each model's gradient norm, steps, clears; returns the norm of the first model before clipping.

        A loss or gradient that is not finite stops the run before the step: the last checkpoint stays good.
        """
        norms = [float(nn.utils.clip_grad_norm_(m.parameters(), clip)) for m in models]
        if not (math.isfinite(loss) and all(map(math.isfinite, norms))):
            raise Stopped(f"step {step}: loss {loss}, gradient norms {norms} are not finite. Nothing was updated; try a "
                          f"lower --lr (now {lr:g}) and --resume from the last checkpoint in {self.folder}")
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norms[0]

    # ------------------------------------------------------------------------------------------ what the user sees

    def log(self, step: int, show: tuple[str, ...] = (), **metrics) -> dict:
        """A line of metrics.jsonl (tensors become their means); every log_every steps, one on the console with an ETA."""
        self._begin()
        row = {"step": step} | {k: float(v.float().mean()) if isinstance(v, Tensor) else v for k, v in metrics.items()}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(to_json(row) + "\n")
        self.row = row
        if step % self.settings.log_every == 0 or step == self.total - 1:
            gone = time.time() - self.started
            eta = gone / (step + 1 - self.first_step) * (self.total - step - 1)
            numbers = "  ".join(f"{k} {row[k]:>7.3g}" if abs(row[k]) < 1e4 else f"{k} {row[k]:>7.0f}" for k in show or metrics
                                if isinstance(row.get(k), int | float))
            tqdm.write(f"step {step:>5}/{self.total}  {numbers}  left {eta // 60:.0f}:{eta % 60:02.0f}")
        return row

    def samples(self, step: int, rows: list[dict], show: int = 0) -> None:
        """Responses to samples.jsonl; the first `show` to the console."""
        self._begin()
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as f:
            f.write(to_json_lines(({"step": step} | row for row in rows), ensure_ascii=False))
        for row in rows[:show]:
            score = f"{row['score']:+.2f} " if "score" in row else ""
            tqdm.write(f"    {score}{row['prompt'].strip()[-100:]!r} -> {row['response'][:140]!r}")

    def peak_memory(self) -> float:
        """GiB: of the GPU where there is one, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        try:
            import resource  # not on Windows
        except ImportError:
            return float("nan")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)
