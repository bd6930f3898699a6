"""Reward models that differ in their seed alone, and what they choose together."""

import random

from torch import Tensor

from lab import arms
from minirlhf import losses

COMBINED = ("mean", "min", "uwo")
HOW = ("single", *COMBINED)
FLIPPED, BLIND = "25 % flipped", "shared blind spot"
LABELS = {  # name -> share of labels that are flipped, the annotators' bias
    "no error": (0.0, ""),
    FLIPPED: (0.25, ""),
    BLIND: (0.0, "length=0.2"),
}


def labels(L, folder, *, labelled, count, seed):
    """Pairs ranked by gold and a bias, a share of them the wrong way round. An arm."""
    flip, bias = LABELS[labelled]
    rows = arms.ranked(L, count=count, noise=0.0, bias=bias, seed=seed)
    rng = random.Random(seed)
    for row in rows:
        if rng.random() < flip:
            row["ranks"] = [3 - rank for rank in row["ranks"]]
    return {"data": arms.write(f"{folder}/rankings.jsonl", rows)}


def train_members(L, labelled, count, members, seed) -> list[str]:
    """The reward models' folders."""
    data = L.arm(labels, labelled=labelled, count=count, seed=seed)["data"]
    seeds = range(100 * seed, 100 * seed + members)
    return [L.arm(arms.reward_model, data=data, seed=member)["rm"] for member in seeds]


def of_best(how: str, scores: Tensor, values: Tensor, n: int) -> Tensor:
    """(P,) the value of the best of n; single: the mean over members.

    scores: (M, P, S) by each member; values: (P, S) gold or another
    """
    if how != "single":
        scores = losses.combine_scores(scores.flatten(1), how).view(1, *values.shape)
    return losses.best_of_n(scores, values.expand_as(scores), n).mean(0)
