"""What can be had for how much KL: the sampled optimum, and best-of-n by its measured KL."""

import math
from collections import Counter
from statistics import mean

import numpy as np
from torch import Tensor

from lab import arms
from minirlhf import losses

BETAS = (10, 5, 3, 2, 1.5, 1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)
TRUSTED = 50  # effective sample size
BEST_OF = (2, 4, 8, 16, 32)


def optimum(rewards: Tensor) -> list[tuple[float, float]]:
    """(KL, reward) of the best possible policies, means over prompts, at falling prices of KL.

    rewards: (P, M) of M samples of the reference to each prompt
    """
    curve = []
    for beta in BETAS:
        reward, kl, size = losses.sampled_optimum(rewards, beta)
        if float(size.median()) >= TRUSTED:
            curve.append((float(kl.mean()), float(reward.mean())))
    return curve


def measured_kl(scores: list[float], n: int) -> float:
    """KL in nats of best-of-n by `scores` from the uniform distribution over the N responses.

    Responses of equal score share their chance. With F of N responses below it, a score that T
    responses have is chosen with probability ((F + T) / N)^n - (F / N)^n.
    """
    counts = Counter(scores)
    N = len(scores)
    kl = 0.0
    below = 0
    for score in sorted(counts):
        up_to = below + counts[score]
        chosen = (up_to / N) ** n - (below / N) ** n
        if chosen:
            kl += chosen * math.log(chosen * N / counts[score])
        below = up_to
    return kl


def reference(L, folder, *, prompts, samples):
    """(KL, gold) of the optimum and of best-of-n, from the SFT model's own samples. An arm."""
    answers = arms.answer(L, folder, L.sft, prompts, samples=samples, seed=1000)
    gold = answers.each(arms.gold)  # (P, M)
    best_of_n = []
    for n in BEST_OF:
        kl = mean(measured_kl(row, n) for row in gold.tolist())
        best_of_n.append((kl, float(losses.best_of_n(gold, gold, n).mean())))
    curve = [(0.0, float(gold.mean())), *optimum(gold)]
    return {"optimum": curve, "best_of_n": best_of_n}


def compare(rows: list[dict], optimum: list[tuple[float, float]]) -> list[dict]:
    """The rows within the curve's KL, with how far their gold lies "above" the optimum at that KL.

    And with the "share" of its gain that they have, where they have moved at all.
    """
    kls, golds = zip(*optimum)
    inside = [row for row in rows if 0 <= row["kl"] <= kls[-1]]
    for row in inside:
        best = float(np.interp(row["kl"], kls, golds))
        row["above"] = row["gold"] - best
        if row["kl"] > 0.05:
            row["share"] = (row["gold"] - golds[0]) / (best - golds[0])
    return inside
