"""Best of n: proxy and gold against the KL it costs (Gao 2022, figure 1a; Stiennon 2020, figure 5).

The proxy rises about linearly in sqrt(KL). The formula log n - (n-1)/n is the KL where no two
responses are the same, otherwise an upper bound. Here the KL is measured exactly, with the samples
of a prompt as the reference's distribution. Null control: a coin chooses, not the proxy.

    python experiments/best_of_n_kl.py
"""

import math
import statistics

import torch
from lab import arms, figures, start
from lab.attainable import measured_kl
from lab.intervals import column, estimate, over_seeds, where

from minirlhf import losses, rewards


def arm(L, folder, *, labels, prompts, samples, sizes, coin, seed):
    """At each n: proxy, gold, the measured KL and the formula; means over held-out prompts."""
    answers = arms.answer(L, folder, L.sft, prompts, samples=samples, seed=1000 + seed)
    gold = answers.each(arms.gold)  # (P, S)
    if coin:
        proxy = torch.rand(gold.shape, generator=torch.Generator().manual_seed(seed)).double()
    else:
        data = L.arm(arms.rankings, count=labels, noise=0.5, seed=seed + 1)["data"]
        rm = L.arm(arms.reward_model, data=data, seed=seed)["rm"]
        scores = answers.scores(rewards.load(rm, L.device))
        proxy = scores.round(decimals=4)  # (P, S) equal texts have equal scores
    points = []
    for n in sizes:
        kls = [0.0] * prompts  # what a coin does: it changes no distribution
        if not coin:
            kls = [measured_kl(row, n) for row in proxy.tolist()]
        bound = losses.best_of_n_kl_bound(n)
        point = {
            "n": n,
            "coin": coin,
            "seed": seed,
            "bound": bound,
            "root_bound": math.sqrt(bound),
            "kl": sum(kls) / prompts,
            "kl_highest": max(kls),
            "proxy": float(losses.best_of_n(proxy, proxy, n).mean()),
            "gold": float(losses.best_of_n(proxy, gold, n).mean()),
        }
        points.append(point)
    distinct = sum(len(set(row)) for row in answers.responses) / (prompts * samples)
    return {"points": points, "distinct": distinct}


def main(L):
    prompts, samples = L.pick(quick=(60, 128), default=(200, 256))
    size = {"labels": 300, "prompts": prompts, "samples": samples}
    sizes = [2**i for i in range(int(math.log2(samples)))]  # up to half of the samples
    rows = L.run(arm, [{"coin": False}, {"coin": True}], **size, sizes=sizes)

    points = [point for row in rows for point in row["points"]]
    by_proxy, by_coin = where(points, coin=False), where(points, coin=True)
    fig, (left, right) = figures.new(
        ("Best of n", "sqrt of log n - (n-1)/n", "score"), ("What it costs", "n", "nats")
    )
    figures.curve(left, by_proxy, "root_bound", "proxy", "proxy")
    figures.curve(left, by_proxy, "root_bound", "gold", "gold")
    figures.curve(left, by_coin, "root_bound", "gold", "gold, chosen by a coin")
    right.set_xscale("log")
    figures.curve(right, by_proxy, "n", "bound", "log n - (n-1)/n")
    figures.curve(right, by_proxy, "n", "kl", "measured, mean over prompts", linestyle="--")

    fits = []  # R squared of each seed's line
    for seed in L.seeds:
        same = where(by_proxy, seed=seed)
        fits.append(statistics.correlation(column(same, "root_bound"), column(same, "proxy")) ** 2)
    excess = max(point["kl_highest"] - point["bound"] for point in by_proxy)
    largest = sizes[-1]
    last = where(by_proxy, n=largest)
    share = over_seeds([point["kl"] / point["bound"] for point in last])
    rise = estimate(last, "gold", minus=where(by_proxy, n=1))
    null = estimate(where(by_coin, n=largest), "gold", minus=where(by_coin, n=1))
    L.finish(
        fig,
        rows,
        expected="the proxy is about linear in sqrt(KL); the formula is an upper bound on the "
        "measured KL.",
        found=[
            f"R2 of a line through the proxy in sqrt of the formula: {over_seeds(fits)}",
            f"largest difference of a prompt's KL from the formula: {excess:+.4f} nats",
            f"mean KL at n = {largest}, as a share of the formula: {share}; "
            f"{rows[0]['distinct']:.0%} of the responses to a prompt are distinct",
            f"gold gained up to there: {rise:+.2f}; chosen by a coin: {null:+.2f}",
        ],
        agrees=min(fits) > 0.9 and excess < 1e-6,
    )


if __name__ == "__main__":
    start(main)
