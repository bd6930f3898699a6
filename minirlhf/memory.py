"""How much memory a step takes: an estimate before it, the peak after it."""

import math
import sys

import torch
from torch import nn

from minirlhf import cuda
from minirlhf.model import LOGITS_AT_ONCE


def activation_bytes(model: nn.Module, tokens: int) -> int:
    """About what autograd keeps of a forward pass over that many tokens.

    Bytes of a token in a block, as torch.autograd.graph.saved_tensors_hooks counts them.
    """
    config = model.config
    if config.model_type == "gpt2":
        block = 34 * config.n_embd + 8 * config.inner
    else:  # the gated MLP's two halves, and queries and keys before and after rotation
        heads = (4 * config.n_head + 3 * config.kv_heads) * config.head_width
        block = 24 * config.n_embd + 4 * heads + 16 * config.inner
    copies = 0  # of a block's matrices, in the dtype of its products
    if model.autocast_dtype:
        copies = 2 * sum(p.numel() for p in model.h[0].parameters() if p.dim() == 2)
        block = block // 2
        if model.device.type == "cpu":
            block += 16 * config.n_embd  # attention to short rows is in float32
    blocks = 1 if model.checkpointing else config.n_layer
    logits = min(LOGITS_AT_ONCE, tokens * config.vocab_size)
    return (tokens * block + copies) * blocks + 12 * logits


def estimate(
    models: list[nn.Module], token_budget: int, cached_tokens: int = 0
) -> tuple[float, float]:
    """GiB of a step with these models, and how many of them are weights and optimiser.

    cached_tokens: tokens whose keys and values the first model's sampling keeps. They and the
        activations of an update are not there at the same time.
    """
    weights, activations = 0, 0
    for model in models:
        trained = [p for p in model.parameters() if p.requires_grad]
        weights += sum(p.numel() * p.element_size() for p in model.parameters())
        weights += 12 * sum(p.numel() for p in trained)  # gradients and two moments
        if trained:
            activations += activation_bytes(model, token_budget)
    config = models[0].config
    numbers = 2 * config.n_layer * config.kv_heads * config.head_width  # of a cached token
    cache = models[0].cache_dtype.itemsize * cached_tokens * numbers
    return (weights + max(activations, cache)) / 2**30, weights / 2**30


def peak(device: torch.device) -> float:
    """GiB so far: of the GPU if there is one, else of this process."""
    if device.type == "cuda":
        return cuda.peak_memory()
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan
    peak_size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_size / (2**30 if sys.platform == "darwin" else 2**20)
