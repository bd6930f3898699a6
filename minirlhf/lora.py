"""LoRA: the weights stay as they are, each linear layer gets a low-rank correction that is trained (Hu et al. 2021).

W x becomes W x + alpha/r B A x (equation 3), with A (r, in) random and B (out, r) zero: training starts at the model
itself. Only A, B and a scalar head get gradients and optimiser moments, 12 bytes a parameter, and the KL's reference is
the same weights without the adapters: no second copy. A saved folder holds the merged weights, a plain GPT-2.
"""
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirlhf import UserError
from minirlhf.model import Block, Trunk


class LoRALinear(nn.Linear):
    """A linear layer over the very weight and bias of another, plus alpha/r B A; B starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        a = torch.randn(rank, self.in_features, generator=generator) / self.in_features**0.5     # A x is of x's size
        self.lora_a = nn.Parameter(a.to(self.weight.device))                                     # (r, in)
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, device=self.weight.device))   # (out, r)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def _replace(model: Trunk, kind: type[nn.Linear], new) -> Trunk:
    """Every linear layer of that kind in the blocks by new(layer)."""
    for block in (m for m in model.modules() if isinstance(m, Block)):
        for name, layer in list(block.named_children()):
            if type(layer) is kind:
                setattr(block, name, new(layer))
    return model


def add(model: Trunk, rank: int, alpha: float, seed: int) -> Trunk:
    """Freezes the model, but for a scalar head, and puts adapters on its linear layers, in place; after run.place: frozen
    matrices keep only what autocast would round them to at every use. rank 0 leaves it as it is. UserError for a rank that is none.
    """
    if rank == 0:
        return model
    if not 0 < rank <= model.config.n_embd:
        raise UserError(f"--lora_rank {rank}: take 1 to {model.config.n_embd} (the model's width), or 0 for no LoRA")
    for name, p in model.named_parameters():
        p.requires_grad_(name == "score.weight")
    _replace(model, nn.Linear, lambda layer: layer.to(model.autocast_dtype or layer.weight.dtype))
    generator = torch.Generator().manual_seed(seed)     # on the CPU: the same adapters on every device
    return _replace(model, nn.Linear, lambda layer: LoRALinear(layer, rank, alpha, generator))


def _plain(layer: LoRALinear) -> nn.Linear:
    """The layer without its adapter: the same tensors."""
    new = nn.Linear(layer.in_features, layer.out_features, device="meta")
    new.weight, new.bias = layer.weight, layer.bias
    return new


def base(model: Trunk) -> Trunk:
    """The model with its adapters off, as a second model over the same weights: a reference that takes no memory."""
    twin = copy.deepcopy(model, {id(x): x for x in (*model.parameters(), model.tokenizer)})    # what is in here is shared
    return _replace(twin, LoRALinear, _plain)


@torch.no_grad()
def merge(model: Trunk) -> Trunk:
    """Adds the adapters to the weights, in place, and takes them off: a plain model again, to be saved. `base(model)` has
    these weights too and is the reference no more. Without adapters nothing happens."""
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.to(torch.promote_types(layer.weight.dtype, torch.float32))
            layer.weight += layer.scale * layer.lora_b @ layer.lora_a
    return _replace(model, LoRALinear, _plain)
