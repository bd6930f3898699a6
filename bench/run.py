"""How fast every stage is, beside the machine's own ceiling, and beside transformers and TRL.

The peers need bench/requirements.txt; without it, or with --no-peers, only our side runs. Each
side has its own process. The two take turns, on equal weights, inputs and threads. A turn's time
is the median over its steps; the table shows the median over turns, and of each turn's ratio.
"fixed": responses run to the limit; "varied": they end with EOS anywhere, at half the limit on
average. MiB is the peak of a side's process above what it held before the row.

    python bench/run.py                            # about ten minutes with the peers
    python bench/run.py --only sft,dpo --no-peers  # rows whose names begin so
    python bench/run.py --preset gpt2              # on a GPU
"""

import importlib
import importlib.util
import multiprocessing
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # minirlhf and the scripts

from bench.measure import seconds, with_memory
from bench.shapes import PRESETS, Row, Task, make_models, rows
from minirlhf import UserError
from minirlhf.cli import at_least, start
from minirlhf.device import pick_device
from minirlhf.files import write_json
from minirlhf.model import Config


@dataclass
class Settings:
    preset: Literal["tiny", "small", "gpt2", "smollm2"] = "small"  # tiny: as run_rlhf.py's models
    only: str = ""  # rows to measure, by how their names begin, comma-separated; empty: all
    peers: bool = True  # also measure transformers and TRL, where they are installed
    turns: int = 3  # how often ours and the peer's alternate
    threads: int = 0  # of the CPU; 0: as many as torch uses by itself
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products, on both sides
    out: str = "out/bench.json"  # the results


def chosen_rows(config: Config, only: str) -> list[Row]:
    """Those whose names begin with one of `only`'s, or all."""
    everything = rows(config)
    for name in only.split(","):
        if not any(row.name.startswith(name) for row in everything):
            names = ", ".join(row.name for row in everything)
            raise UserError(f"--only {name}: no row's name begins so; there are {names}")
    return [row for row in everything if row.name.startswith(tuple(only.split(",")))]


def measure(side: str, task: Task) -> tuple[list[float], float]:
    """A row on one side, "ours" or "peers": seconds of each step, MiB. Runs in that process."""
    module = importlib.import_module(f"bench.{side}")
    function = getattr(module, task.row.kind, None)
    if function is None:  # TRL does not score
        return [], 0.0
    return with_memory(function, task)


def compare(task: Task, processes: dict[str, ProcessPoolExecutor], turns: int) -> dict:
    """A row's results: what each side does in a second, its memory, the ratio of the two."""
    row = task.row
    times = {side: [] for side in processes}  # the median of each turn
    memory = {side: [] for side in processes}
    for _ in range(turns):
        for side, process in processes.items():
            steps, mib = process.submit(measure, side, task).result()
            if steps:
                times[side].append(median(steps))
                memory[side].append(mib)
    result = {"name": row.name, "unit": f"{row.unit}/s", "seconds": times}
    for side in processes:
        if times[side]:
            result[side] = row.units() / median(times[side])
            result[f"{side}_mib"] = min(memory[side])  # a first turn also warms up
    if "peers" in result:
        result["ratio"] = median(peer / our for our, peer in zip(times["ours"], times["peers"]))
    return result


def show(result: dict) -> None:
    line = (
        f"{result['name']:22}{result['ours']:9.1f} {result['unit']:10}"
        f"{result['of_ceiling']:9.0%}{result['ours_mib']:6.0f}"
    )
    if "ratio" in result:
        line += f"{result['peers']:9.1f}{result['peers_mib']:6.0f}{result['ratio']:7.2f}"
    print(line, flush=True)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The machine's FLOP/s in a large matrix product, and bytes/s in a copy."""
    size = 4096 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    x = torch.randn(2**25, device=device)
    y = torch.empty_like(x)
    product = min(seconds(lambda: a @ a, count=5))
    copy = min(seconds(lambda: y.copy_(x), count=5))
    return {"flops": 2 * size**3 / product, "copy": 2 * x.nbytes / copy}


def side_process(threads: int) -> ProcessPoolExecutor:
    """One process that stays: a side's allocator settings do not reach the other."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(threads,))


def main(settings: Settings) -> None:
    at_least(1, settings, "turns")
    config = PRESETS[settings.preset]
    chosen = chosen_rows(config, settings.only)
    device = pick_device(settings.device)
    threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    machine = ceilings(device, getattr(torch, settings.dtype))
    libraries = [
        name for name in ("torch", "transformers", "trl") if importlib.util.find_spec(name)
    ]
    versions = {name: version(name) for name in libraries}
    print(f"{versions}, {platform.machine()}, {device}, {threads} threads")
    print(f"{settings.preset}, {settings.dtype}")
    print("matrix product {flops:.3g} FLOP/s, copy {copy:.3g} bytes/s\n".format(**machine))
    print(f"{'':22}{'ours':>9}{'':11}{'ceiling':>9}{'MiB':>6}{'peer':>9}{'MiB':>6}{'ratio':>7}")

    processes = {"ours": side_process(threads)}
    if settings.peers and "trl" in libraries:
        processes["peers"] = side_process(threads)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for row in chosen:
            make_models(Path(folder), config, row.eos_rate)
            task = Task(row, config, device.type, settings.dtype, Path(folder))
            result = compare(task, processes, settings.turns)
            speed = row.flops(config) / median(result["seconds"]["ours"])
            result["of_ceiling"] = speed / machine["flops"]
            results.append(result)
            show(result)
    for process in processes.values():
        process.shutdown()

    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    report = {"settings": asdict(settings), "versions": versions, "machine": machine}
    write_json(Path(settings.out), report | {"rows": results})
    print(f"\nwrote {settings.out}")


if __name__ == "__main__":
    start(main, Settings)
