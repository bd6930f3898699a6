"""PPO, RLOO, GRPO, DPO and best-of-n under the optimum of one exact reward (Ziegler 2019, figure 3; Rafailov 2023, figure 2).

The reward is the toy world's gold score, known exactly, so nothing can be hacked: what is left is how much reward a method buys
for its KL. The dashed curve is the best any policy can do, SFT * exp(reward / beta), by importance weights over the SFT model's
own samples to the same prompts; who lies above it by more than noise has a bug. Null control: RLOO on a coin instead of the
reward, which pays KL and gets nothing.

    python experiments/exact_frontier.py
"""
import zlib
from pathlib import Path
from statistics import median

import lab
import methods
import numpy as np
from best_of_n_kl import measured_kl

from minirlhf import losses, rewards

RATES = {"PPO": 5e-4, "RLOO": 5e-4, "GRPO": 5e-4, "DPO": 3e-4}
BETAS = (10, 5, 3, 2, 1.5, 1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)


def coin(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that has nothing to do with anything: mean 0, std 1."""
    return [(zlib.crc32((p + r).encode()) / 2**32 - 0.5) * 12**0.5 for p, r in zip(map(str, prompts), responses)]


def reference(L, folder, *, prompts, samples, ns):
    """What the SFT model's own samples allow: the optimum's (KL, reward), and best-of-n's with its measured KL."""
    s = methods.Settings(init=L.sft, out=folder, device=L.device)
    rows = methods.draw(s, "optimum", split="test", count=prompts, samples=samples, seed=1000)
    scores = methods.scored(rewards.load("toyworld"), rows)                                                       # (P, M)
    curve = [losses.sampled_optimum(scores, beta) for beta in BETAS]
    trusted = [(float(kl.mean()), float(r.mean())) for r, kl, size in curve if float(size.median()) >= 50]
    best = [(sum(measured_kl(r["responses"], x, n) for r, x in zip(rows, scores.tolist())) / prompts,
             float(losses.best_of_n(scores, scores, n).mean())) for n in ns]
    return {"optimum": [(0.0, float(scores.mean())), *trusted], "best_of_n": best}


def arm(L, folder, *, method, beta, episodes, prompts, seed):
    """One policy, trained on the exact reward, on held-out prompts."""
    reward = f"{Path(__file__)}:coin" if method == "coin" else "toyworld"
    s = methods.Settings(init=L.sft, reward=reward, out=folder, episodes=episodes, beta=beta, seed=seed, device=L.device)
    name = "RLOO" if method == "coin" else method
    if name == "DPO":
        methods.write_feedback(s, rewards.load("toyworld"))
    module, settings = methods.arm(s, name, RATES[name])
    module.main(settings)
    found = lab.judge(L, folder, policy=settings.out, count=prompts, samples=8)
    return {"reward": found["gold"]["mean"], "interval": found["gold"]["interval"], "kl": found["kl"]["mean"]}


def main(L):
    size = L.pick({"episodes": 2560, "prompts": 60}, {"episodes": 2560, "prompts": 100}, {"episodes": 19200, "prompts": 400})
    betas = L.pick((0.3,), (0.1, 0.3, 1.0), (0.03, 0.1, 0.3, 1.0))
    ideal = L.arm(reference, prompts=size["prompts"], samples=L.pick(512, 512, 2048), ns=[2, 4, 8, 16, 32])
    longer = 4 * size["episodes"]
    keys = [size | {"method": m, "beta": b, "seed": s} for s in L.seeds for b in betas for m in (*RATES, "coin")
            if m != "coin" or b == betas[0]]
    keys += [size | {"episodes": longer, "method": "RLOO", "beta": 0.3, "seed": s} for s in L.pick((), L.seeds, L.seeds)]
    rows = L.run(arm, keys)
    names = {m: m for m in RATES} | {"coin": "RLOO on a coin", "longer": f"RLOO, {longer} episodes"}
    for r in rows:
        r["name"] = names["longer" if r["episodes"] == longer else r["method"]]
    fig, ax = L.figure(f"One exact reward, {size['episodes']} episodes", "KL to the SFT model, nats per response",
                       "reward, held-out prompts")
    ax.plot(*zip(*ideal["optimum"]), "--", color="black", linewidth=1, label="sampled optimum")
    ax.plot(*zip(*ideal["best_of_n"]), ".-", label="best of 2, 4, ... 32")
    for name in names.values():
        if mine := [r for r in rows if r["name"] == name]:
            ax.errorbar([r["kl"] for r in mine], [r["reward"] for r in mine], yerr=[r["interval"] for r in mine], fmt="o",
                        capsize=2, label=name)
    kl, best = (np.array(x) for x in zip(*ideal["optimum"]))
    inside = [r for r in rows if 0 <= r["kl"] <= kl[-1]]
    for r in inside:
        r["above"] = r["reward"] - float(np.interp(r["kl"], kl, best))
    worst = max(inside, key=lambda r: r["above"] - r["interval"], default=None)
    start = best[0]
    shares = {n: [(r["reward"] - start) / (r["reward"] - r["above"] - start) for r in inside if r["name"] == n and r["kl"] > 0.05]
              for n in names.values()}
    said = ", ".join(f"{n} {sum(x) / len(x):.0%}" for n, x in shares.items() if x)
    typical = median([x for m in RATES for x in shares[m]] or [0.0])
    below = bool(inside) and all(r["above"] < r["interval"] for r in inside)
    L.finish(fig, rows, "no method lies above the sampled optimum by more than noise, and most come near it.",
             f"of {len(rows)} policies {len(inside)} lie where the optimum can be trusted (up to {kl[-1]:.2f} nats of KL); "
             + (f"the one most above it is {worst['name']} by {worst['above']:+.2f} ± {worst['interval']:.2f}; " if worst else "")
             + f"of the optimum's gain at their own KL they have {said or 'nothing'}; the coin changed the reward by "
             + lab.said([r["reward"] - start for r in rows if r["method"] == "coin"]) + ".",
             agrees=below and (True if typical > 0.5 else None), why=f"{'nobody' if below else 'somebody'} is above the optimum, "
             f"{'most' if typical > 0.5 else 'but most do not'} come near it: half of them have {typical:.0%} of its gain or more, "
             f"after {size['episodes']} episodes", reference=ideal)


if __name__ == "__main__":
    lab.start(main)
