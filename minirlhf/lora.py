"""LoRA: frozen weights, and a trained low-rank correction for each linear layer (Hu et al. 2021).

W x becomes W x + alpha/r B A x (equation 3) with A random and B zero: training starts at the model
itself. Only A, B and a scalar head have gradients and optimiser moments. The reference of the KL
is the same weights without adapters. A saved folder holds the merged weights, a plain model.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirlhf import UserError
from minirlhf.model import Trunk


class LoRALinear(nn.Linear):
    """Shares another linear layer's weight and bias, and adds alpha/r B A."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = alpha / rank
        device = linear.weight.device
        a = torch.randn(rank, self.in_features, generator=generator)
        a = a / self.in_features**0.5  # A x is as large as x
        self.lora_a = nn.Parameter(a.to(device))  # (r, in)
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, device=device))  # (out, r)

    def forward(self, x: Tensor) -> Tensor:
        correction = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * correction

    def plain(self) -> nn.Linear:
        """The layer without its adapter, on the same tensors."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = self.weight
        linear.bias = self.bias
        return linear


def add(model: Trunk, rank: int, alpha: float, seed: int) -> Trunk:
    """Freeze a model but for its scalar head, and put adapters on its linear layers, in place.

    The frozen weights stay float32, so that merging returns them unrounded. Rank 0: no LoRA.
    Raises UserError for a rank above the model's width.
    """
    if rank == 0:
        return model
    if not 0 < rank <= model.config.n_embd:
        raise UserError(
            f"--lora_rank {rank}: choose from 1 to {model.config.n_embd}, the model's width, "
            "or 0 for no LoRA"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "score.weight")
    generator = torch.Generator().manual_seed(seed)  # a CPU's, for equal adapters on every device
    return _replace(model, nn.Linear, lambda layer: LoRALinear(layer, rank, alpha, generator))


def base(model: Trunk) -> Trunk:
    """The model without its adapters: a second model on the same weights, to be the reference."""
    shared = {id(x): x for x in (*model.parameters(), model.tokenizer)}
    twin = copy.deepcopy(model, shared)  # copies what is not in `shared`
    return _replace(twin, LoRALinear, LoRALinear.plain)


@torch.no_grad()
def merge(model: Trunk) -> Trunk:
    """Add the adapters to the weights and take them off, in place; `base(model)` changes too."""
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.weight += layer.scale * layer.lora_b @ layer.lora_a
    return _replace(model, LoRALinear, LoRALinear.plain)


def _replace(model: Trunk, kind: type, new: Callable[[nn.Linear], nn.Linear]) -> Trunk:
    """Replace each layer of that very type in the blocks by new(layer)."""
    for block in model.h:
        for name, layer in list(block.named_children()):
            if type(layer) is kind:
                setattr(block, name, new(layer))
    return model
