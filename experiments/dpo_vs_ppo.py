"""DPO, IPO, online DPO and PPO from the same comparisons: gold against KL (Rafailov 2023, figure 2; Xu 2024; Guo 2024).

Each method gets the same rankings, directly (DPO, IPO) or through one reward model (PPO, online DPO), and several strengths of its
KL penalty. DPO's chosen responses may become less likely while it wins: their log-probs are reported. Null control: DPO on the same
comparisons with coin flips for labels.

    python experiments/dpo_vs_ppo.py
"""
import json
import random
from pathlib import Path

import lab

import train_dpo
import train_ppo
from minirlhf.files import read_jsonl, write_atomically

METHODS = ("DPO", "IPO", "online DPO", "PPO", "DPO on coin flips")


def arm(L, folder, *, method, beta, labels, samples, steps, prompts, seed):
    """A policy by that method; gold, win rate and KL on held-out prompts, log-probs of the chosen before and after."""
    data = L.arm(lab.rankings, count=labels, samples=samples, noise=0.2, seed=seed + 1)["data"]
    common = {"init": L.sft, "out": f"{folder}/policy", "seed": seed, "device": L.device, "resume": True}
    if method in ("PPO", "online DPO"):
        rm = L.arm(lab.reward_model, data=data, seed=seed)["rm"]
    if method == "PPO":
        train_ppo.main(train_ppo.Settings(reward=rm, steps=steps, kl_coef=beta, **common))
    elif method == "online DPO":                                        # 64 responses a step, as PPO has
        train_dpo.main(train_dpo.Settings(online=True, data="toyworld", reward=rm, beta=beta, batch_size=32, steps=steps, **common))
    else:
        rows = read_jsonl(data)
        if method == "DPO on coin flips":
            rng = random.Random(seed)
            rows = [r | {"ranks": rng.sample(range(1, samples + 1), samples)} for r in rows]
        write_atomically(Path(folder, "train.jsonl"), "".join(json.dumps(r) + "\n" for r in rows).encode())
        train_dpo.main(train_dpo.Settings(data=f"{folder}/train.jsonl", loss="ipo" if method == "IPO" else "sigmoid", beta=beta,
                                          batch_size=16, epochs=2.0, **common))
    log = read_jsonl(f"{folder}/policy/metrics.jsonl")
    found = lab.judge(L, folder, policy=f"{folder}/policy", count=prompts)
    logp = [sum(r[k] for r in part) / len(part) for k in ("chosen_logp", "rejected_logp") if k in log[0]
            for part in (log[:5], log[-5:])]
    return {"gold": found["gold"]["mean"], "interval": found["gold"]["interval"], "win_rate": found["win_rate"]["mean"],
            "kl": found["kl"]["mean"], "words": found["words"]["mean"], "chosen_and_rejected_logp": logp}


def main(L):
    size = L.pick({"labels": 300, "samples": 4, "steps": 15, "prompts": 100},
                  {"labels": 600, "samples": 4, "steps": 40, "prompts": 150},
                  {"labels": 6000, "samples": 6, "steps": 300, "prompts": 500})
    betas = L.pick((0.1,), (0.02, 0.1, 0.5), (0.01, 0.03, 0.1, 0.3, 1.0))
    rows = L.run(arm, [size | {"method": m, "beta": b, "seed": s} for s in L.seeds for m in METHODS for b in betas
                       if m != METHODS[-1] or b == betas[len(betas) // 2]])
    start = L.arm(lab.judge, policy=L.sft, count=size["prompts"])
    fig, ax = L.figure(f"{size['labels']} rankings of {size['samples']} responses", "KL to the SFT model, nats per response",
                       "gold, held-out prompts")
    ax.errorbar([0], [start["gold"]["mean"]], yerr=[start["gold"]["interval"]], fmt="s", color="black", capsize=2, label="SFT")
    for method in METHODS:
        mine = sorted((r for r in rows if r["method"] == method), key=lambda r: r["kl"])
        ax.errorbar([r["kl"] for r in mine], [r["gold"] for r in mine], yerr=[r["interval"] for r in mine], fmt="o", capsize=2,
                    label=method)
    golds = {(m, b): [r["gold"] for r in rows if (r["method"], r["beta"]) == (m, b)] for m in METHODS for b in betas}
    best = {m: max((sum(golds[m, b]) / len(golds[m, b]), b, golds[m, b]) for b in betas if golds[m, b]) for m in METHODS}
    fallen = [r["chosen_and_rejected_logp"][1] - r["chosen_and_rejected_logp"][0] for r in rows if r["method"] == "DPO"]
    gains = {m: [x - start["gold"]["mean"] for x in best[m][2]] for m in METHODS}
    half = start["gold"]["interval"]
    words = ", ".join(f"{m} {lab.said(gains[m])} (beta {best[m][1]:g})" for m in METHODS)
    means = [lab.over_seeds(gains[m])[0] for m in METHODS]
    L.finish(fig, rows, "all methods gain gold, from coin flips none does, and DPO's chosen responses may grow less likely.",
             f"gold gained at each one's best beta: {words}; the log-prob of chosen responses moved by {lab.said(fallen)} nats "
             f"under DPO; the interval of SFT's gold over prompts is ± {half:.2f}.", agrees=min(means[:4]) > half > means[4])


if __name__ == "__main__":
    lab.start(main)
