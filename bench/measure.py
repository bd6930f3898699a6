"""The clock and the measure of memory that both sides are put to."""

import ctypes
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = 3  # timed in each turn, after one that warms up
STATUS = Path("/proc/self/status")  # Linux


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(step: Callable[[], Any], count: int = STEPS) -> list[float]:
    """Of each of `count` steps. One more warms up."""
    step()
    times = []
    for _ in range(count):
        start = now()
        step()
        times.append(now() - start)
    return times


def with_memory(function: Callable[..., Any], *args) -> tuple[Any, float]:
    """A function's result, and the MiB by which it raised the peak: the GPU's or the process's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function(*args)
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    if not STATUS.exists():
        return function(*args), math.nan
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = process_memory("VmRSS")
    result = function(*args)
    return result, process_memory("VmHWM") - before


def process_memory(name: str) -> float:
    """MiB, from a line such as "VmRSS:     1234 kB"."""
    _, _, rest = STATUS.read_text(encoding="utf-8").partition(f"{name}:")
    return int(rest.split()[0]) / 2**10
