"""All that happens on a CUDA GPU and nowhere else.

Callers look at the device first. Tests replace these functions on a CPU; bench/gpu_check.py tries
them on a real GPU.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

STEPS_UNTIL_COUNT = 8  # counting the rows that still decode waits for the GPU
LIVE_SHARE_TO_SHRINK = 0.75  # fewer rows need a new graph


def use(device: torch.device) -> None:
    """Make it the GPU that all functions here mean."""
    torch.cuda.set_device(device)


def has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported()


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products may be made from TF32: several times as fast, less precise."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def name() -> str:
    return torch.cuda.get_device_name()


def peak_memory() -> float:
    """GiB that tensors have taken at most."""
    return torch.cuda.max_memory_allocated() / 2**30


def capture(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record the kernels of step() -> a function that launches them all again, their output.

    step must read and write the same tensors every time. It runs once before it is recorded:
    libraries initialise at the first call, which cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    stream = _capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        graph.capture_begin()
        try:
            output = step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, output


@functools.cache
def _capture_stream() -> torch.cuda.Stream:
    """One stream for all captures: each stream keeps the memory that it has used."""
    return torch.cuda.Stream()
