"""Statistics with intervals: what logs, reports and probes say about samples. Knows only torch."""

import math
from collections.abc import Callable, Hashable, Iterable
from operator import truediv

import torch
from torch import Tensor


def nan_std(x: Tensor) -> Tensor:
    """Biased std of each row of x (P, G), which leaves out NaN; 0 where a row has nothing else."""
    deviation = x - x.nanmean(1, keepdim=True)  # (P, G)
    return deviation.square().nanmean(1).sqrt().nan_to_num(0.0)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's r of two (N,) tensors; 0 where one of them does not vary."""
    x = x - x.mean()
    y = y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 1e-8 else 0.0


def numbered(things: Iterable[Hashable]) -> Tensor:
    """(N,) int64: equal things have the same number, from 0 on in the order of their coming."""
    number_of: dict = {}
    numbers = [number_of.setdefault(thing, len(number_of)) for thing in things]
    return torch.tensor(numbers, dtype=torch.long)


def estimate(
    prompt: Tensor,
    numerators: list[Tensor],
    denominators: list[Tensor],
    statistic: Callable = truediv,
    share: bool = False,
) -> dict:
    """A statistic of sums with its 95 % jackknife interval over prompts (Miller 1974).

    Entries with NaN are left out.

    prompt: (N,) the prompt that each entry belongs to; prompts are the independent units
    numerators, denominators: (N,) tensors; statistic gets their sums, in this order
    share: the statistic is a share: where it is 0 or 1, by the "rule of three" (Hanley 1983)

    Returns "mean", "interval" (its half width, NaN for one prompt) and "prompts" (how many have a
    say: where a denominator is 0 they have none).
    """
    columns = torch.stack([*numerators, *denominators]).double()  # (k, N)
    known = ~columns.isnan().any(0)  # (N,)
    columns = columns[:, known]
    index = prompt[known].unique(return_inverse=True)[1]
    prompts = int(index.max()) + 1 if len(index) else 0
    sums = torch.zeros(len(columns), prompts, dtype=torch.double)  # (k, P)
    sums.index_add_(1, index, columns)
    total = sums.sum(1, keepdim=True)  # (k, 1)

    interval = math.nan
    if prompts > 1:
        without_one = statistic(*(total - sums))  # (P,)
        squares = (without_one - without_one.mean()).square().sum()
        interval = 1.96 * math.sqrt(float(squares) * (prompts - 1) / prompts)
    informative = int((sums[len(numerators) :] != 0).sum(1).min()) if prompts else 0
    mean = float(statistic(*total))
    if share and interval < 1e-9 and not 0 < mean < 1:
        interval = min(1.0, 3 / informative)
    return {"mean": mean, "interval": interval, "prompts": informative}


def mean_of(x: Tensor, share: bool = False) -> dict:
    """Mean over prompts with its interval, as in `estimate`; x is (P,), or (P, S) for S samples."""
    x = x.double()
    if x.dim() > 1 and len(x) > 0:
        x = x.nanmean(1)
    x = x.flatten()
    return estimate(torch.arange(len(x)), [x], [torch.ones_like(x)], share=share)


def right(margin: Tensor) -> Tensor:
    """1 where the better response is preferred (margin above 0), 1/2 for a tie, else 0.

    NaN stays NaN.
    """
    share = (margin.sign() + 1) / 2
    return share.masked_fill(margin.isnan(), math.nan)


def accuracy(prompt: Tensor, margin: Tensor) -> dict:
    """Share of pairs that are ranked right, with its interval and the number of "pairs".

    prompt: (N,) the prompt of each pair
    margin: (N,) score of the better response minus that of the worse one
    """
    share = estimate(prompt, [right(margin)], [torch.ones_like(margin)], share=True)
    return share | {"pairs": len(margin)}


def beside_length(prompt: Tensor, margin: Tensor, length: Tensor) -> dict:
    """The accuracy of pairs beside what length alone would have.

    prompt, margin: (N,) as in `accuracy`
    length: (N,) how much longer the better response is

    Returns dicts as in `accuracy`: "accuracy"; "longer_wins", that of choosing the longer response;
    "lead", the first less the second; "where_longer" and "where_shorter", the accuracy where the
    better response is longer, and where it is shorter.
    """
    ahead = right(margin) - right(length)  # (N,)
    return {
        "accuracy": accuracy(prompt, margin),
        "longer_wins": accuracy(prompt, length),
        "lead": estimate(prompt, [ahead], [torch.ones_like(ahead)]),
        "where_longer": accuracy(prompt[length > 0], margin[length > 0]),
        "where_shorter": accuracy(prompt[length < 0], margin[length < 0]),
    }


def calibration(prompt: Tensor, margin: Tensor, count: int = 6) -> list[dict]:
    """Claimed and real accuracy of pairs, in `count` equal parts by the size of their margin.

    margin: (N,) in nats of log odds, as a Bradley-Terry model learns them
    """
    curve = []
    for rows in margin.abs().argsort(stable=True).tensor_split(count):
        if len(rows) == 0:
            continue
        size = margin[rows].abs()
        real = accuracy(prompt[rows], margin[rows])
        curve.append(
            {
                "difference": float(size.mean()),
                "predicted": float(size.sigmoid().mean()),
                "accuracy": real["mean"],
                "interval": real["interval"],
                "pairs": real["pairs"],
            }
        )
    return curve
