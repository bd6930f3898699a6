"""Where a model lives and how precisely it computes. Every script opens its models here."""

import ctypes
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from minirlhf import UserError, cuda

SMALL = 30e6  # parameters
WIDE = 128  # from this width on, a CPU's training steps gain by bfloat16: docs/speed.md
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """auto: the first of cuda, mps and cpu that this machine has. cuda:1 is the second GPU."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "mps" if has_mps else "cpu"
        if torch.cuda.is_available():
            name = "cuda"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "mps", "cpu"):
        raise UserError(f"--device {name}: choose from auto, cuda, mps, cpu")
    numbers = {"cuda": torch.cuda.device_count(), "mps": int(has_mps), "cpu": 1}
    if (device.index or 0) >= numbers[device.type]:
        raise UserError(f"--device {name}: this machine has no such device; use --device cpu")
    if device.type == "cuda" and device.index is not None:
        cuda.use(device)
    return device


def pick_autocast(name: str, device: torch.device, width: int = 0) -> torch.dtype | None:
    """The dtype of matrix products; None is float32. Weights and logits stay float32.

    auto: bfloat16 on a GPU that has it. There the float32 products of such a run, the head's above
    all, are made from TF32: several times as fast, and eight times as precise as bfloat16. On a CPU
    that multiplies bfloat16 itself, for models of a certain width.
    """
    if name == "auto":
        gains = device.type == "cuda" and cuda.has_bfloat16()
        if device.type == "cpu" and width >= WIDE:
            gains = cpu_multiplies_bf16()
        name = "bfloat16" if gains else "float32"
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: choose from auto, float32, bfloat16")
    if device.type == "cuda":
        cuda.allow_tf32(name == "bfloat16")
    return DTYPES[name]


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has AVX512-BF16; PyTorch has no public name for this question."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def set_allocator(model: nn.Module) -> None:
    """How a CPU's freed memory is reused, where there is glibc.

    Getting new pages for every temporary costs a small model's training step a tenth of its time:
    its process keeps all memory. A large one's gains nothing by that, and would grow by the holes
    between blocks of many sizes: its large blocks go back at once.
    """
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        if sum(p.numel() for p in model.parameters()) < SMALL:
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no block outside the heap
            libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
        else:
            libc.mallopt(-3, 2**22)  # M_MMAP_THRESHOLD: blocks from 4 MiB on


def place(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    trained: bool = False,
    checkpointing: bool = False,
    compile: bool = False,
) -> nn.Module:
    """Move a model to its device and set its precision, in place.

    dtype: of matrix products, as pick_autocast returns it.
    trained: keep gradients. Without it, the blocks' matrices are stored in `dtype`: the same
        numbers from half the memory.
    checkpointing: recompute activations in the backward pass.
    compile: torch.compile the blocks.
    """
    if device.type == "cpu":
        set_allocator(model)
    model.autocast_dtype = dtype
    model.checkpointing = checkpointing
    model.to(device).requires_grad_(trained)
    if dtype and not trained:
        for layer in model.h.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)
    if compile:
        for block in model.h:
            block.compile(dynamic=True)
    return model


def open_model(
    cls, folder: str | Path, device: str | torch.device = "auto", dtype: str = "auto", **overrides
) -> nn.Module:
    """A model (cls: GPT or ScalarGPT) from a folder or by its name, ready for use without training.

    overrides: chat_format, or numbers of its config.json to replace.
    """
    device = pick_device(device)
    model = cls.from_pretrained(folder, **overrides)
    return place(model, device, pick_autocast(dtype, device, model.config.n_embd))
