"""Does gold peak where the reward model stops ordering the policy's own responses?

A policy gradient compares a policy's own responses, so a reward model should help as long as it
orders those as gold does, whatever its validation on the SFT model's responses was. RL in legs,
without a KL penalty. Before each: how many pairs of the policy's responses to a prompt are ordered
right, and how much gold does the leg gain? Null control: the share that the model claims is right.

    python experiments/own_samples.py
"""

import math
from statistics import correlation

from lab import arms, figures, start
from lab.intervals import column, estimate, over_seeds, where

from minirlhf import rewards, winrate
from minirlhf.files import read_json


def measure(L, folder, policy, rm, questions, seed) -> dict:
    """Of a policy's responses to held-out prompts: gold, proxy, and how the proxy orders them."""
    answers = arms.answer(L, folder, policy, questions, samples=8, seed=1000 + seed)
    gold = answers.each(arms.gold)  # (P, 8)
    proxy = answers.scores(rewards.load(rm, L.device))  # (P, 8)
    _, (better, worse) = winrate.pairs(gold, proxy)  # (N,) pairs that gold tells apart
    log_odds = read_json(f"{rm}/config.json")["score_std"] * (better - worse)
    return {
        "gold": float(gold.mean()),
        "proxy": float(proxy.mean()),
        "right": winrate.ranked_right(proxy, gold)["mean"],
        "claimed": float(log_odds.abs().sigmoid().mean()),
    }


def arm(L, folder, *, labels, legs, steps, questions, seed):
    """The path of a policy: what `measure` finds before the first leg and after each."""
    data = L.arm(arms.rankings, count=labels, noise=0.5, seed=seed + 1)["data"]
    rm = L.arm(arms.reward_model, data=data, seed=seed, epochs=3.0)["rm"]
    policy = L.sft
    path = [{"distance": 0.0, **measure(L, folder, policy, rm, questions, seed)}]
    settings = {"reward": rm, "reference": L.sft, "kl_coef": 0.0, "lr": 5e-4, "steps": steps}
    for leg in range(legs):
        out = f"{folder}/leg{leg}"
        policy = arms.train_policy(L, out, init=policy, seed=seed + 100 * leg, **settings)
        kl = arms.metrics(policy, ["kl"], window=2)["kl"][-1]
        point = {"distance": math.sqrt(max(0.0, kl))}
        path.append({**point, **measure(L, out, policy, rm, questions, seed)})
    return {name: column(path, name) for name in path[0]}


def main(L):
    legs, steps, questions = L.pick(quick=(5, 6, 50), default=(8, 8, 100))
    rows = L.run(arm, labels=100, legs=legs, steps=steps, questions=questions)
    legs_gone = []  # for each leg what was known before it, and what gold gained in it
    for row in rows:
        for leg in range(legs):
            before = {name: row[name][leg] for name in ("right", "claimed")}
            gain = row["gold"][leg + 1] - row["gold"][leg]
            legs_gone.append({"seed": row["seed"], "gain": gain, **before})

    distance = "sqrt(KL) to the SFT model"
    fig, (left, middle, right) = figures.new(
        ("Gold", distance, "gold, held-out prompts"),
        ("The policy's own responses", distance, "share of pairs ordered right"),
        ("What it tells", "ordered right before a leg of RL", "gold gained in the leg"),
    )
    figures.paths(left, rows, "distance", "gold", None, color="C2", marker=".")
    figures.paths(middle, rows, "distance", "right", "really", color="C0", marker=".")
    figures.paths(middle, rows, "distance", "claimed", "claimed", color="C1", linestyle="--")
    right.plot(column(legs_gone, "right"), column(legs_gone, "gain"), "o")
    right.axhline(0, color="grey", linewidth=0.8)

    ends, tells = [], {"right": [], "claimed": []}
    for row in rows:
        ends.append({name: row[name][-1] - row[name][0] for name in ("gold", "right", "claimed")})
        same = where(legs_gone, seed=row["seed"])
        for name, values in tells.items():  # each seed's correlation with what gold gains next
            values.append(correlation(column(same, name), column(same, "gain")))
    real, claimed = over_seeds(tells["right"]), over_seeds(tells["claimed"])
    more = over_seeds([r - c for r, c in zip(tells["right"], tells["claimed"])])
    L.finish(
        fig,
        rows,
        expected="the worse the reward model orders the policy's own responses, the less gold the "
        "next steps gain; what it claims tells nothing (null control).",
        found=[
            *[f"{name}, from SFT to the end: {estimate(ends, name):+.2f}" for name in ends[0]],
            f"correlation with gold's next gain: really {real:+.2f}, claimed {claimed:+.2f}",
        ],
        agrees=more.mean > 0,
        decided=more.sure,
    )


if __name__ == "__main__":
    start(main)
