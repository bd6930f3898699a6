"""Over-optimisation of a learnt reward: the proxy rises, gold rises and then falls (Gao 2022, figure 1b; Stiennon 2020, figure 5).

RLOO against reward models from few noisy comparisons, with KL coefficient 0 and others; gold is only watched. So is a reward model
from the other half of the labels, which should notice before anybody looks at gold. More labels should move the peak out, and runs
that differ in the KL coefficient share one curve of gold against KL. Null control: gold as its own proxy must not turn down.

    python experiments/overoptimization.py
"""
import json
import math
from pathlib import Path

import lab
import numpy as np

import train_ppo
from minirlhf.files import read_jsonl, write_atomically


def halves(L, folder, *, labels, seed):
    """Two reward models, each from its own half of 2 * labels comparisons; how often the first agrees with gold at first."""
    rows = read_jsonl(L.arm(lab.rankings, count=2 * labels, noise=0.5, seed=seed + 1)["data"])
    found = []
    for i in (0, 1):
        file = Path(folder, f"half{i}.jsonl")
        lines = [r for r in rows[i::2] if r["responses"][0] != r["responses"][1]]
        write_atomically(file, "".join(json.dumps(r) + "\n" for r in lines).encode())
        epochs = max(2.0, 320 / len(lines))                             # 40 steps at least, so that few labels are learnt at all
        found.append(L.arm(lab.reward_model, data=str(file), seed=seed + i, epochs=epochs))
    right = L.arm(lab.judge, policy=L.sft, reward=found[0]["rm"], count=150)["reward_accuracy"]["mean"]
    return {"rm": [f["rm"] for f in found], "accuracy": right}


def arm(L, folder, *, labels, kl_coef, steps, lr, seed):
    """labels 0: gold as its own proxy. Means over two steps (128 episodes): proxy, the other half's reward, gold, KL ..."""
    proxy, other = L.arm(halves, labels=labels, seed=seed)["rm"] if labels else ("toyworld", "toyworld")
    train_ppo.main(train_ppo.Settings(
        init=L.sft, reward=proxy, watch=f"toyworld,{other}", out=f"{folder}/ppo", steps=steps, lr=lr, kl_coef=kl_coef, seed=seed,
        advantage="rloo", samples_per_prompt=4, prompts_per_step=16, device=L.device, resume=True))
    names = {"proxy": "score", "other": f"watch_{other}", "gold": "watch_toyworld", "kl": "kl", "kl_k3": "kl_k3",
             "length": "length", "entropy": "entropy", "distinct": "distinct", "finished": "finished"}
    found = lab.path(f"{folder}/ppo", tuple(names.values()), window=2)
    return {name: found[column] for name, column in names.items()} | {
        "accuracy": L.arm(halves, labels=labels, seed=seed)["accuracy"] if labels else 1.0}


def fit(d, gold):
    """Gao 2022: gold(d) = gold(0) + d (a - b log d), by least squares: (gold(0), a, b)."""
    d = np.maximum(d, 1e-3)
    return np.linalg.lstsq(np.stack([np.ones_like(d), d, -d * np.log(d)], 1), gold, rcond=None)[0].tolist()


def main(L):
    few, many = L.pick((100, 1000), (100, 2000), (100, 10000))
    steps, lr = L.pick(50, 80, 400), 5e-4                              # at 2e-3 two steps are enough to pass the peak
    coefs = L.pick((0.0,), (0.0, 0.05, 0.2), (0.0, 0.02, 0.05, 0.2))
    arms = [{"labels": n, "kl_coef": c} for n in (few, many) for c in coefs if n == few or c == 0] + [{"labels": 0, "kl_coef": 0.0}]
    rows = L.run(arm, [a | {"steps": steps, "lr": lr, "seed": s} for s in L.seeds for a in arms])
    fig, (left, right) = L.figure(f"A proxy from {few} comparisons", "sqrt(KL)", "score, each in its own units", columns=2)
    right.set(title="Gold, by what was maximised", xlabel="sqrt(KL)", ylabel="gold")
    for r in rows:
        r["d"] = [math.sqrt(max(0.0, k)) for k in r["kl"]]
        smooth = np.convolve(r["gold"], [1 / 3] * 3, "valid")                                   # six steps, 384 episodes
        r["fall"], r["peak_at"] = float(smooth.max() - smooth[-1]), r["d"][int(smooth.argmax()) + 1]
        r["fit"] = fit(np.array(r["d"]), np.array(r["gold"]))
        r["rise"], r["proxy_rise"] = float(smooth.max() - r["gold"][0]), r["proxy"][-1] - r["proxy"][0]
    for i, r in enumerate(r for r in rows if r["labels"] == few and r["kl_coef"] == 0):
        for k, name in (("proxy", "proxy"), ("other", "reward model of the other half"), ("gold", "gold")):
            left.plot(r["d"], r[k], color=lab.COLOURS[("proxy", "other", "gold").index(k)], alpha=0.85, linewidth=1.2,
                      label=name if i == 0 else None)
    names = {0: "gold itself"} | {n: f"{n} comparisons" for n in (few, many)}
    for i, a in enumerate(arms):
        mine = [r for r in rows if (r["labels"], r["kl_coef"]) == (a["labels"], a["kl_coef"])]
        for j, r in enumerate(mine):
            label = names[a["labels"]] + (f", KL coefficient {a['kl_coef']:g}" if len(coefs) > 1 else "")
            right.plot(r["d"], r["gold"], ".", color=lab.COLOURS[i], markersize=3, label=label if j == 0 else None)
        start, a_, b_ = np.mean([r["fit"] for r in mine], 0)
        d = np.linspace(0.01, max(max(r["d"]) for r in mine), 60)
        right.plot(d, start + d * (a_ - b_ * np.log(d)), color=lab.COLOURS[i], linewidth=1.2)

    def of(labels, key):
        return [r[key] for r in rows if r["labels"] == labels and r["kl_coef"] == 0]
    fall, half = lab.over_seeds(of(few, "fall"))
    L.finish(fig, rows, "the proxy keeps rising while gold rises and falls, later with more labels, and never with gold as proxy.",
             f"with {few} comparisons (agreement with gold {lab.said(of(few, 'accuracy'))}) the proxy rose by "
             f"{lab.said(of(few, 'proxy_rise'))}, gold rose by {lab.said(of(few, 'rise'))} until sqrt(KL) = "
             f"{lab.said(of(few, 'peak_at'))} and then fell by {lab.said(of(few, 'fall'))}; with {many} (agreement "
             f"{lab.said(of(many, 'accuracy'))}) it rose by {lab.said(of(many, 'rise'))} until {lab.said(of(many, 'peak_at'))} "
             f"and fell by {lab.said(of(many, 'fall'))}; with gold as its own proxy it rose by {lab.said(of(0, 'rise'))} and "
             f"fell by {lab.said(of(0, 'fall'))}; fitted d (a - b log d) has b = "
             + ", ".join(lab.said([f[2] for f in of(n, "fit")]) for n in (few, many, 0)) + ".",
             agrees=min(of(few, "proxy_rise")) > 0 and fall - (half if half == half else 0) > max(of(0, "fall")) + 0.1)


if __name__ == "__main__":
    lab.start(main)
