"""Where a model lives and how precisely it computes. Every script opens its models here."""

from pathlib import Path

import torch
from torch import nn

from minirlhf import UserError


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """auto: the first of cuda, mps and cpu that this machine has."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: choose from auto, cuda, mps, cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    return device


def pick_autocast(name: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products; None is float32. Weights and log-softmax stay float32.

    auto: bfloat16 on a GPU that has it.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else None
    if name in ("bfloat16", torch.bfloat16):
        return torch.bfloat16
    if name in ("float32", torch.float32, None):
        return None
    raise UserError(f"--dtype {name}: choose from auto, float32, bfloat16")


def place(
    model: nn.Module,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    *,
    trained: bool = False,
    checkpointing: bool = False,
    compile: bool = False,
) -> nn.Module:
    """Move a model to its device and set its precision, in place.

    trained: keep gradients. Without it, the blocks' matrices are stored in the precision that
        products use: the same numbers from half the memory.
    checkpointing: recompute activations in the backward pass.
    compile: torch.compile the blocks.
    """
    device = pick_device(device)
    model.autocast_dtype = pick_autocast(dtype, device)
    model.checkpointing = checkpointing
    model.to(device).requires_grad_(trained)
    if model.autocast_dtype and not trained:
        for layer in model.h.modules():
            if isinstance(layer, nn.Linear):
                layer.to(model.autocast_dtype)
    if compile:
        for block in model.h:
            block.compile(dynamic=True)
    return model


def open_model(
    cls,
    folder: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    *,
    trained: bool = False,
    checkpointing: bool = False,
    compile: bool = False,
    **overrides,
) -> nn.Module:
    """Read a model (cls: GPT or ScalarGPT) from a folder or by its name, ready for use.

    overrides: numbers of config.json to replace. The other arguments are those of `place`.
    """
    device = pick_device(device)  # a wrong name costs no reading
    model = cls.from_pretrained(folder, **overrides)
    return place(
        model, device, dtype, trained=trained, checkpointing=checkpointing, compile=compile
    )
