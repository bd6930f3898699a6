"""PPO, RLOO, GRPO, DPO and best-of-n under the optimum of one exact reward.

The reward is the toy world's gold score, so nothing can be hacked: what is left is how much reward
a method buys for its KL (Ziegler 2019, figure 3; Rafailov 2023, figure 2). The dashed curve is the
best that any policy can do, SFT * exp(reward / beta), by importance weights over the SFT model's
own samples to the same prompts; a method above it by more than noise has a bug. Null control: RLOO
on a coin in place of the reward, which pays KL and gets nothing.

    python experiments/exact_frontier.py
"""

import zlib
from statistics import mean, median

from lab import arms, attainable, figures, start, training
from lab.intervals import over_seeds, where

from minirlhf import rewards

RATES = {"PPO": 5e-4, "RLOO": 5e-4, "GRPO": 5e-4, "DPO": 3e-4}
COIN = "RLOO on a coin"
LONGER = "RLOO, four times the episodes"


def coin(prompts: list, responses: list[str]) -> list[float]:
    """A reward that has nothing to do with anything: mean 0, std 1."""
    scores = []
    for prompt, response in zip(prompts, responses):
        uniform = zlib.crc32(f"{prompt}{response}".encode()) / 2**32
        scores.append((uniform - 0.5) * 12**0.5)
    return scores


def arm(L, folder, *, method, beta, episodes, prompts, seed):
    """One policy, trained on the exact reward, on held-out prompts."""
    reward = f"{__file__}:coin" if method == COIN else "toyworld"
    rl_method = "RLOO" if method in (COIN, LONGER) else method
    if method == LONGER:
        episodes *= 4
    if method == "DPO":
        options = {"count": episodes // 4, "samples": 4, "seed": seed}
        answers = training.draw(f"{folder}/candidates.jsonl", L.sft, L.device, **options)
        training.write_feedback(folder, answers, rewards.load(reward), seed)
    policy = f"{folder}/policy"
    common = {"init": L.sft, "out": policy, "lr": RATES[rl_method], "seed": seed}
    shared = {"episodes": episodes, "reward": reward, "beta": beta, "feedback": folder}
    training.train(rl_method, **shared, **common, device=L.device)
    # the optimum's prompts, whatever the seed: an interval over seeds is over training alone
    return arms.evaluation(L, folder, policy=policy, count=prompts, samples=8, seed=0)


def main(L):
    size = {"episodes": 2560, "prompts": L.pick(quick=60, default=100)}
    betas = L.pick(quick=(0.3,), default=(0.1, 0.3, 1.0))
    variants = [{"method": method, "beta": beta} for beta in betas for method in RATES]
    variants.append({"method": COIN, "beta": betas[0]})
    variants += L.pick(quick=[], default=[{"method": LONGER, "beta": 0.3}])
    ideal = L.arm(attainable.reference, prompts=size["prompts"], samples=512)
    rows = L.run(arm, variants, **size)
    inside = attainable.compare(rows, ideal["optimum"])

    title = f"One exact reward, {size['episodes']} episodes"
    label = "KL to the SFT model, nats per response"
    fig, [ax] = figures.new((title, label, "reward, held-out prompts"))
    ax.plot(*zip(*ideal["optimum"]), "k--", linewidth=1, label="sampled optimum")
    ax.plot(*zip(*ideal["best_of_n"]), ".-", label="best of 2, 4, ... 32")
    (_, sft_gold), *_, (limit, _) = ideal["optimum"]
    found = [f"{len(inside)} of {len(rows)} policies lie within {limit:.2f} nats: trusted"]
    for method in (*RATES, LONGER, COIN):
        same = where(rows, method=method)
        if same:
            figures.runs(ax, same, "kl", "gold", method)
        shares = [row["share"] for row in same if "share" in row]
        if shares:
            found.append(f"{method}: {mean(shares):.0%} of the optimum's gain at its own KL")
    highest = max((row["above"] - row["gold_interval"] for row in inside), default=0.0)
    lost = over_seeds([row["gold"] - sft_gold for row in where(rows, method=COIN)])
    found += [
        f"the highest lies {highest:+.2f} above the optimum, at the lower end of its interval",
        f"RLOO on a coin changed the reward by {lost:+.2f}",
    ]
    shares = [row["share"] for row in inside if "share" in row and row["method"] in RATES]
    come_near = bool(shares) and median(shares) > 0.5
    L.finish(
        fig,
        rows,
        expected="none lies above the sampled optimum by more than noise, most come near it.",
        found=found,
        agrees=highest <= 0,
        decided=highest > 0 or come_near,
        reference=ideal,
    )


if __name__ == "__main__":
    start(main)
