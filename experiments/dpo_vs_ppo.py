"""DPO, IPO, online DPO and PPO from the same comparisons: gold against KL.

Each method gets the same rankings, directly (DPO, IPO) or through one reward model (PPO, online
DPO), and several strengths of its KL penalty (Rafailov 2023, figure 2; Xu 2024; Guo 2024). DPO's
chosen responses may become less likely while it wins: their log-probs are reported. Null control:
DPO on the same comparisons with coin flips for labels.

    python experiments/dpo_vs_ppo.py
"""

import random

from lab import arms, figures, start, training
from lab.intervals import column, estimate, where

import train_dpo
from minirlhf.files import read_jsonl

LEARNING = ("DPO", "IPO", "online DPO", "PPO")
CONTROL = "DPO on coin flips"


def train(L, folder, method, beta, data, steps, seed) -> str:
    """The policy's folder."""
    out = f"{folder}/policy"
    common = {"init": L.sft, "out": out, "seed": seed, "device": L.device, "beta": beta}
    if method in ("PPO", "online DPO"):
        reward = L.arm(arms.reward_model, data=data, seed=seed)["rm"]
        episodes = steps * training.EPISODES
        training.train(method, episodes=episodes, reward=reward, feedback="", **common)
        return out
    rows = read_jsonl(data)
    if method == CONTROL:
        rng = random.Random(seed)
        for row in rows:
            row["ranks"] = rng.sample((1, 2, 3, 4), 4)
    data = arms.write(f"{folder}/train.jsonl", rows)
    common |= {"loss": "ipo" if method == "IPO" else "sigmoid", "resume": True}
    train_dpo.main(train_dpo.Settings(data=data, batch_size=16, epochs=2.0, **common))
    return out


def arm(L, folder, *, method, beta, labels, steps, prompts, seed):
    """A policy by that method: gold and KL on held-out prompts, log-probs before and after."""
    data = L.arm(arms.rankings, count=labels, samples=4, seed=seed + 1)["data"]
    policy = train(L, folder, method, beta, data, steps, seed)
    return {
        "chosen_change": arms.change(policy, "chosen_logp"),
        "rejected_change": arms.change(policy, "rejected_logp"),
        **arms.evaluation(L, folder, policy=policy, count=prompts, seed=seed),
    }


def best_beta(rows: list[dict]) -> list[dict]:
    """The rows of the beta with the most gold."""
    candidates = [where(rows, beta=beta) for beta in sorted(set(column(rows, "beta")))]
    return max(candidates, key=lambda same: estimate(same, "gold").mean)


def main(L):
    labels, steps, prompts = L.pick(quick=(300, 15, 100), default=(600, 40, 150))
    betas = L.pick(quick=(0.1,), default=(0.02, 0.1, 0.5))
    variants = [{"method": method, "beta": beta} for method in LEARNING for beta in betas]
    variants.append({"method": CONTROL, "beta": betas[len(betas) // 2]})
    rows = L.run(arm, variants, labels=labels, steps=steps, prompts=prompts)
    sft = L.run(arms.evaluation, policy=L.sft, count=prompts)
    noise = estimate(sft, "gold_interval").mean

    title = f"{labels} rankings of four responses"
    kl = "KL to the SFT model, nats per response"
    fig, [ax] = figures.new((title, kl, "gold, held-out prompts"))
    ax.axhline(estimate(sft, "gold").mean, color="grey", linestyle="--", label="SFT")
    gains = {}
    found = []
    for method in (*LEARNING, CONTROL):
        same = where(rows, method=method)
        figures.runs(ax, same, "kl", "gold", method)
        best = best_beta(same)
        gains[method] = estimate(best, "gold", minus=sft)
        found.append(f"{method}: gold gained {gains[method]:+.2f} with beta {best[0]['beta']:g}")
    dpo = where(rows, method="DPO")
    found += [
        f"SFT's gold over prompts: ± {noise:.2f}",
        f"log-prob of the chosen responses under DPO: {estimate(dpo, 'chosen_change'):+.2f} nats",
        f"of the rejected ones: {estimate(dpo, 'rejected_change'):+.2f} nats",
    ]
    least = min(gains[method].mean for method in LEARNING)
    L.finish(
        fig,
        rows,
        expected="all methods gain gold, from coin flips none does, and DPO's chosen responses may "
        "grow less likely.",
        found=found,
        agrees=least > noise > gains[CONTROL].mean,
    )


if __name__ == "__main__":
    start(main)
