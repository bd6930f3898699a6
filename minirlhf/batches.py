"""Which rows come when: a validation split, epochs, micro-batches of similar length, padding."""

import functools
import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minirlhf import UserError

MOST_PASSES = 1000  # over the records, in one batch


def held_out(
    items: list, key: Callable[[Any], Hashable], fraction: float = 0.1, seed: int = 0
) -> tuple[list, list]:
    """Split into (train, validation), both in the order of items.

    A hash of key(item), usually what a conversation begins with, decides, so that none is on both
    sides.
    With two keys or more neither side is empty, unless the fraction is 0. One key is trained on.
    """
    if fraction >= 1:
        raise UserError(f"--validation {fraction}: must be below 1, or nothing is left to train on")
    keys = [key(item) for item in items]
    distinct = list(dict.fromkeys(keys))
    draws = {k: _uniform(f"{seed}\n{k}") for k in distinct}
    size = sum(draw < fraction for draw in draws.values())
    if fraction > 0 and distinct:
        size = min(max(size, 1), len(distinct) - 1)
    held = set(sorted(distinct, key=draws.get)[:size])
    train = [item for item, k in zip(items, keys) if k not in held]
    validation = [item for item, k in zip(items, keys) if k in held]
    return train, validation


def draw(items: list, count: int, seed: int) -> list:
    """`count` of the items by chance, in their order; all of them if there are no more."""
    chosen = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:12], 16) / 16**12


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> list[int]:
    """The step's batch, of an endless stream of epochs, each a fresh permutation of n items."""
    if batch_size > MOST_PASSES * n:
        raise UserError(
            f"a batch of {batch_size} takes each of {n} records more than {MOST_PASSES} times: use "
            "a smaller one"
        )
    first = step * batch_size
    stream = range(first, first + batch_size)
    return [_permutation(n, seed, position // n)[position % n] for position in stream]


def steps_of(epochs: float, count: int, batch_size: int) -> int:
    """Steps that so many passes over the records take."""
    return max(1, round(epochs * count / batch_size))


def micro_batches(lengths: list[int], token_budget: int, alike: float = 2 / 3) -> list[list[int]]:
    """Indices of all rows, longest first, cut where rows * longest would exceed the budget.

    Also cut where a row's length is under `alike` of the longest: in training more padding costs
    more than another micro-batch.
    A row that is longer than the budget is a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batches = []
    for i in order:
        if batches:
            longest = lengths[batches[-1][0]]
            fits = (len(batches[-1]) + 1) * longest <= token_budget
            if fits and lengths[i] >= alike * longest:
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> tokens (B, T), right-padded with 0, and lengths (B,)."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)  # (B, T)
    return tokens, torch.tensor([len(row) for row in rows])


def fit(
    rows: list,
    limit: int,
    what: str,
    length: Callable[[Any], int] = len,
    limit_is: str = "the model's context",
) -> list:
    """The rows of at most `limit` tokens; prints how many are longer.

    what: the rows' name in messages, such as "demonstrations".
    limit_is: where the limit comes from.
    Raises UserError if there are rows and none fits.
    """
    if limit < 1:
        raise UserError(f"{limit_is} leaves {limit} tokens for {what}: use a smaller --max_tokens")
    fitting = [row for row in rows if length(row) <= limit]
    if rows and not fitting:
        shortest = min(length(row) for row in rows)
        raise UserError(
            f"none of the {what} has at most {limit} tokens ({limit_is}): the shortest has "
            f"{shortest}; --truncate cuts what it can, or choose a model with a longer context"
        )
    skipped = len(rows) - len(fitting)
    if skipped:
        print(
            f"data: {skipped} of {len(rows)} {what} skipped: longer than {limit} tokens "
            f"({limit_is}); --truncate cuts what it can"
        )
    return fitting
