"""Over-optimisation of a learnt reward: the proxy rises, and far from the start gold falls.

RLOO against reward models from few noisy comparisons, with KL coefficient 0 and others; gold is
only watched (Gao 2022, figure 1b; Stiennon 2020, figure 5). So is a reward model from the other
half of the labels. A run with a learning rate of 0 answers the same prompts: what gold gains is the
difference, step by step. It is read at fixed distances, since a peak is partly noise.
Null control: gold as its own proxy must not turn down.

    python experiments/overoptimization.py
"""

import math
from statistics import mean

from lab import arms, figures, start
from lab.intervals import describe, estimate, mean_between, table, where

EXACT = 0  # labels: gold is its own proxy


def halves(L, folder, *, labels, seed):
    """Two reward models, each from its own half of 2 * labels comparisons."""
    rows = arms.ranked(L, count=2 * labels, noise=0.5, seed=seed + 1)
    models = []
    for i in (0, 1):
        half = [row for row in rows[i::2] if row["responses"][0] != row["responses"][1]]
        data = arms.write(f"{folder}/half{i}.jsonl", half)
        epochs = max(2.0, 320 / len(half))  # 36 steps or more: few labels are learnt too
        models.append(L.arm(arms.reward_model, data=data, seed=seed + i, epochs=epochs)["rm"])
    on_sft = L.arm(arms.evaluation, policy=L.sft, reward=models[0], count=150, seed=seed)
    return {"models": models, "accuracy": on_sft["reward_accuracy"]}


def standstill(L, folder, *, steps, seed):
    """The SFT model's gold on the prompts of each two steps, which are those of all runs."""
    still = {"reward": "toyworld", "watch": "toyworld", "lr": 0.0}
    policy = arms.train_policy(L, folder, steps=steps, seed=seed, **still)
    return arms.metrics(policy, ["watch_toyworld"], window=2)


def arm(L, folder, *, labels, kl_coef, steps, lr, seed):
    """Proxy, gold and the square root of KL, means over two steps (128 episodes)."""
    trained = {"models": ["toyworld", "toyworld"], "accuracy": 1.0}
    if labels != EXACT:
        trained = L.arm(halves, labels=labels, seed=seed)
    proxy, other = trained["models"]
    settings = {"watch": f"toyworld,{other}", "lr": lr, "kl_coef": kl_coef}
    policy = arms.train_policy(L, folder, reward=proxy, steps=steps, seed=seed, **settings)
    logged = arms.metrics(policy, ["score", "watch_toyworld", f"watch_{other}", "kl"], window=2)
    score = logged["score"]
    distance = [math.sqrt(max(0.0, kl)) for kl in logged["kl"]]
    before = L.arm(standstill, steps=steps, seed=seed)["watch_toyworld"]
    gained = [after - still for after, still in zip(logged["watch_toyworld"], before)]
    return {
        "proxy": score,
        "other": logged[f"watch_{other}"],
        "gained": gained,
        "distance": distance,
        "accuracy": trained["accuracy"],
        "proxy_rise": score[-1] - score[0],
    }


def main(L):
    few, many, steps = L.pick(quick=(100, 1000, 50), default=(100, 2000, 80))
    coefs = L.pick(quick=(0.0,), default=(0.0, 0.2))
    variants = [{"labels": few, "kl_coef": coef} for coef in coefs]
    variants += [{"labels": labels, "kl_coef": 0.0} for labels in (many, EXACT)]
    rows = L.run(arm, variants, steps=steps, lr=5e-4)  # at 2e-3 two steps pass the peak
    farthest = L.pick(quick=3, default=4)  # square root of nats
    for row in rows:
        row["one_nat"] = mean_between(row, "gained", "distance", 0.7, 1.4)
        row["far"] = mean_between(row, "gained", "distance", farthest)
        row["end"] = mean(row["gained"][-3:])  # six steps, 384 episodes

    fig, (left, right) = figures.new(
        (f"A proxy from {few} comparisons", "sqrt(KL)", "score, each in its own units"),
        ("Gold (labels 0: it is its own proxy)", "sqrt(KL)", "gold gained on the same prompts"),
    )
    same = where(rows, **variants[0])
    curves = {"proxy": "proxy", "other": "reward model of the other half", "gained": "gold gained"}
    for i, (name, label) in enumerate(curves.items()):
        figures.paths(left, same, "distance", name, label, color=f"C{i}")
    for i, variant in enumerate(variants):
        style = {"label": describe(variant), "color": f"C{i}", "marker": "."}
        figures.paths(right, where(rows, **variant), "distance", "gained", **style)
    lost, exact = estimate(same, "far"), estimate(where(rows, labels=EXACT), "end")
    L.finish(
        fig,
        rows,
        expected="the proxy rises while gold falls, but not with gold as proxy.",
        found=table(rows, variants, "accuracy", "proxy_rise", "one_nat", "end", "far"),
        agrees=lost.mean < 0 < exact.mean,
        decided=lost.sure and exact.sure,
    )


if __name__ == "__main__":
    start(main)
