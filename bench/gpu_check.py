"""Whether all of this works on a fresh GPU machine, and how fast: a table for docs/speed.md.

    python bench/gpu_check.py        # about five minutes

It runs the tests that need a GPU and the quick loop in bfloat16, compares sampling with and without
CUDA graphs, memory with its estimate, and times the benchmark's rows at GPT-2's size.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # minirlhf and the scripts

import train_sft
from bench import run
from bench.measure import seconds
from bench.shapes import PRESETS, Row, Task, make_models
from minirlhf import cuda, memory, rollout
from minirlhf.cli import start
from minirlhf.device import open_model, pick_autocast, pick_device, place
from minirlhf.files import read_json, read_jsonl, write_jsonl
from minirlhf.model import GPT, Config

ROOT = Path(__file__).parents[1]
ROWS, PROMPT, RESPONSE = 64, 32, 128  # of a batch that is sampled
TIMED = "sample,score,sft,dpo,grpo,ppo"  # rows of the benchmark


@dataclass
class Settings:
    preset: str = "gpt2"  # the models' shape: tiny, small, gpt2
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: str = "bfloat16"  # of matrix products
    tests: bool = True  # run the tests that need a GPU
    loop: bool = True  # run the quick loop
    out: str = "out/gpu_check"  # a folder for all that is written


@dataclass
class Check:
    what: str
    result: str
    wanted: str = ""


def tests(settings: Settings) -> Check:
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    last_line = done.stdout.strip().splitlines()[-1]
    return Check("tests that need a GPU", last_line.strip("= "), "all passed")


def loop(settings: Settings) -> Iterator[Check]:
    out = Path(settings.out, "loop")
    flags = ["--quick", "--device", settings.device, "--dtype", settings.dtype, "--out", str(out)]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "run_rlhf.py", *flags], cwd=ROOT)
    finished = f"exit code {done.returncode}, {time.monotonic() - began:.0f} s"
    yield Check("run_rlhf.py --quick", finished, "exit code 0")
    ratios = []
    for metrics in out.glob("round*/ppo/metrics.jsonl"):
        ratios += [row["first_ratio_off"] for row in read_jsonl(metrics)]
    yield Check("log ratio before the first update", f"{max(ratios, default=1):.1e}", "0 to 3e-2")


def sampling(settings: Settings, model: GPT, copy_speed: float) -> Iterator[Check]:
    """Beside what the memory's speed allows: a step reads all weights, and the cache so far."""
    dice = torch.Generator().manual_seed(0)
    size = (ROWS, PROMPT)
    prompts = torch.randint(model.config.vocab_size - 1, size, generator=dice).tolist()

    def step() -> None:
        generator = torch.Generator(model.device).manual_seed(0)
        with model.cast_once():
            rollout.generate(model, prompts, RESPONSE, generator)

    rate = ROWS * RESPONSE / median(seconds(step))
    captures = rollout.CAPTURES
    rollout.CAPTURES = ()
    eager = ROWS * RESPONSE / median(seconds(step))
    rollout.CAPTURES = captures
    number_bytes = 2 if settings.dtype == "bfloat16" else 4
    config = model.config
    cached = 2 * config.n_layer * config.kv_heads * config.head_width * (PROMPT + RESPONSE / 2)
    parameters = sum(p.numel() for p in model.parameters())
    bound = ROWS * copy_speed / (number_bytes * (parameters + ROWS * cached))
    yield Check("sampling, tokens/s", f"{rate:.0f}")
    yield Check("sampling, of the bandwidth's bound", f"{rate / bound:.0%}", "35 % or more")
    yield Check("graphs over single kernels", f"{rate / eager:.1f} times", "above 1")


def sft_memory(settings: Settings, folder: Path, config: Config) -> Check:
    """Of an SFT step, beside what a run says that it takes."""
    data = folder / "data.jsonl"
    row = Row("sft", "sft", "tokens", 16, 1, config.n_positions - 1)
    task = Task(row, config, settings.device, settings.dtype, folder)
    write_jsonl(data, task.demonstrations())
    sft = train_sft.Settings(
        init=str(folder / "lm"),
        data=str(data),
        out=str(folder / "run"),
        template="raw",
        optimizer="adamw",
        steps=2,
        batch_size=16,
        validation=0.0,
        overwrite=True,
        device=settings.device,
        dtype=settings.dtype,
        token_budget=8192,
    )
    train_sft.main(sft)
    measured = memory.peak(pick_device(settings.device))
    dtype = pick_autocast(settings.dtype, pick_device(settings.device))
    model = place(GPT(config), torch.device("cpu"), dtype, trained=True)
    estimate, _ = memory.estimate([model], sft.token_budget)
    return Check("memory of SFT, GiB", f"{measured:.1f}", f"{estimate:.1f} estimated")


def speed(settings: Settings) -> Iterator[Check]:
    """The benchmark's rows, as shares of the rate of one large matrix product."""
    file = Path(settings.out, "bench.json")
    options = {"device": settings.device, "dtype": settings.dtype, "out": str(file)}
    run.main(run.Settings(preset=settings.preset, only=TIMED, peers=False, turns=1, **options))
    for row in read_json(file)["rows"]:
        took = median(row["seconds"]["ours"])
        result = f"{row['ours']:.0f} {row['unit']}, {row['of_ceiling']:.0%} of a product's rate"
        wanted = {"sft full": "45 % or more", "ppo fixed": "under 2 s a step"}.get(row["name"], "")
        yield Check(row["name"], f"{result}, {took:.2f} s", wanted)


def main(settings: Settings) -> None:
    device = pick_device(settings.device)
    settings.device = device.type
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = cuda.name()
    config = PRESETS[settings.preset]
    folder = Path(settings.out, "models")
    folder.mkdir(parents=True, exist_ok=True)
    make_models(folder, config, eos_rate=0.0)
    machine = run.ceilings(device, getattr(torch, settings.dtype))
    checks = [
        Check("one large matrix product", f"{machine['flops'] / 1e12:.3g} TFLOP/s"),
        Check("a copy", f"{machine['copy'] / 1e9:.0f} GB/s"),
        sft_memory(settings, folder, config),  # first: the peak is this process's
    ]
    model = open_model(GPT, folder / "lm", device, settings.dtype)
    checks += sampling(settings, model, machine["copy"])
    del model
    checks += speed(settings)
    if settings.loop:
        checks += loop(settings)
    if settings.tests:
        checks.append(tests(settings))
    print(f"\n{name}, torch {torch.__version__}, {settings.dtype}, {settings.preset}\n")
    print("| check | result | wanted |\n|---|---|---|")
    for check in checks:
        print(f"| {check.what} | {check.result} | {check.wanted} |")


if __name__ == "__main__":
    start(main, Settings)
