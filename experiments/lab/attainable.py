"""What can be had for how much KL: the sampled optimum, and best-of-n by its measured KL."""

import math
from collections import Counter

from torch import Tensor

from minirlhf import losses

BETAS = (10, 5, 3, 2, 1.5, 1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)
TRUSTED = 50  # effective sample size


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
