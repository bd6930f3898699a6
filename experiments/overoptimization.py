"""Over-optimisation of a learnt reward: the proxy rises, gold rises and then falls.

RLOO against reward models from few noisy comparisons, with KL coefficient 0 and others; gold is
only watched (Gao 2022, figure 1b; Stiennon 2020, figure 5). So is a reward model from the other
half of the labels, which should notice before anybody looks at gold. More labels should move the
peak out, and runs that differ in the KL coefficient share one curve of gold against KL. Null
control: gold as its own proxy must not turn down.

    python experiments/overoptimization.py
"""

import math

import numpy as np
from lab import arms, figures, start
from lab.intervals import column, describe, estimate, table, where

EXACT = 0  # labels: gold is its own proxy


def halves(L, folder, *, labels, seed):
    """Two reward models, each from its own half of 2 * labels comparisons."""
    rows = arms.ranked(L, count=2 * labels, noise=0.5, seed=seed + 1)
    models = []
    for i in (0, 1):
        half = [row for row in rows[i::2] if row["responses"][0] != row["responses"][1]]
        data = arms.write(f"{folder}/half{i}.jsonl", half)
        epochs = max(2.0, 320 / len(half))  # 40 steps or more, so that few labels are learnt too
        models.append(L.arm(arms.reward_model, data=data, seed=seed + i, epochs=epochs)["rm"])
    sft = L.arm(arms.evaluation, policy=L.sft, reward=models[0], count=150)
    return {"models": models, "accuracy": sft["reward_accuracy"]}


def arm(L, folder, *, labels, kl_coef, steps, lr, seed):
    """Proxy, gold and the square root of KL, means over two steps (128 episodes)."""
    proxy = other = "toyworld"
    accuracy = 1.0
    if labels != EXACT:
        trained = L.arm(halves, labels=labels, seed=seed)
        proxy, other = trained["models"]
        accuracy = trained["accuracy"]
    settings = {"watch": f"toyworld,{other}", "lr": lr, "kl_coef": kl_coef}
    policy = arms.train_policy(L, folder, reward=proxy, steps=steps, seed=seed, **settings)
    logged = arms.metrics(policy, ["score", "watch_toyworld", f"watch_{other}", "kl"], window=2)
    proxy_score, gold = logged["score"], logged["watch_toyworld"]
    distance = [math.sqrt(max(0.0, kl)) for kl in logged["kl"]]
    smooth = np.convolve(gold, [1 / 3] * 3, "valid")  # six steps, 384 episodes
    return {
        "proxy": proxy_score,
        "other": logged[f"watch_{other}"],
        "gold": gold,
        "distance": distance,
        "accuracy": accuracy,
        "proxy_rise": proxy_score[-1] - proxy_score[0],
        "rise": float(smooth.max() - gold[0]),
        "fall": float(smooth.max() - smooth[-1]),
        "peak_at": distance[int(smooth.argmax()) + 1],
    }


def main(L):
    few, many = L.pick(quick=(100, 1000), default=(100, 2000), full=(100, 10000))
    steps = L.pick(quick=50, default=80, full=400)
    coefs = L.pick(quick=(0.0,), default=(0.0, 0.05, 0.2), full=(0.0, 0.02, 0.05, 0.2))
    variants = [{"labels": few, "kl_coef": coef} for coef in coefs]
    variants += [{"labels": labels, "kl_coef": 0.0} for labels in (many, EXACT)]
    rows = L.run(arm, variants, steps=steps, lr=5e-4)  # at 2e-3 two steps pass the peak

    fig, (left, right) = figures.new(
        (f"A proxy from {few} comparisons", "sqrt(KL)", "score, each in its own units"),
        ("Gold (labels 0: it is its own proxy)", "sqrt(KL)", "gold"),
    )
    curves = {"proxy": "proxy", "other": "reward model of the other half", "gold": "gold"}
    for i, (name, label) in enumerate(curves.items()):
        for row in where(rows, **variants[0]):
            left.plot(row["distance"], row[name], color=f"C{i}", label=label)
            label = None  # once
    for i, variant in enumerate(variants):
        label = describe(variant)
        for row in where(rows, **variant):
            right.plot(row["distance"], row["gold"], ".-", color=f"C{i}", label=label)
            label = None  # once
    same = where(rows, **variants[0])
    fall = estimate(same, "fall")
    least = fall.mean if math.isnan(fall.half) else fall.mean - fall.half
    exact = max(column(where(rows, labels=EXACT), "fall"))
    L.finish(
        fig,
        rows,
        expected="the proxy keeps rising while gold rises and falls, later with more labels, and "
        "never with gold as proxy.",
        found=table(rows, variants, "accuracy", "proxy_rise", "rise", "peak_at", "fall"),
        agrees=min(column(same, "proxy_rise")) > 0 and least > exact + 0.1,
    )


if __name__ == "__main__":
    start(main)
