"""Best of n: proxy and gold against the KL it costs (Gao 2022, figure 1a; Stiennon 2020, figure 5).

The proxy rises about linearly in sqrt(KL). log n - (n-1)/n is the KL only while no two responses are the same; otherwise it is an
upper bound. Measured here exactly on the N responses drawn to a prompt, taken as the reference's distribution: a response with the
share p of them, F of them scored below it, comes out best of n with (F + p)^n - F^n. Null control: chosen by a coin, not the proxy.

    python experiments/best_of_n_kl.py
"""
import math
from collections import Counter

import lab
import torch

from minirlhf import losses, rewards, rollout, stats
from minirlhf.data import read_prompts
from minirlhf.model import GPT
from toyworld import reward as gold_scores


def measured_kl(responses: list[str], scores: list[float], n: int) -> float:
    """KL in nats of best-of-n from the distribution of `responses` (equal texts have equal scores; tied texts share)."""
    counts, N = Counter(responses), len(responses)
    score = dict(zip(responses, scores))
    kl, below = 0.0, 0
    for level in sorted(set(score.values())):
        tied = sum(counts[x] for x in counts if score[x] == level)
        q = ((below + tied) / N) ** n - (below / N) ** n                  # of the level; its texts share it as before
        kl += q * math.log(q / (tied / N)) if q else 0.0
        below += tied
    return kl


def arm(L, folder, *, labels, prompts, samples, ns, coin, seed):
    """Per n: proxy, gold, the measured KL and the formula, means over held-out prompts; sampled once."""
    policy = GPT.from_pretrained(L.sft).to(L.device)
    questions = read_prompts("toyworld", split="test", count=prompts, seed=seed + 1000)[:prompts]
    batch = rollout.sample(policy, questions, 64, torch.Generator(L.device).manual_seed(seed), temperature=0.7,
                           samples_per_prompt=samples)
    if coin:
        proxy = torch.rand(len(questions), samples, generator=torch.Generator().manual_seed(seed))
    else:
        data = L.arm(lab.rankings, count=labels, noise=0.5, seed=seed + 1)["data"]
        rm = rewards.load(L.arm(lab.reward_model, data=data, seed=seed)["rm"], L.device)
        proxy = torch.tensor(rm(batch.prompts, batch.responses)).view(len(questions), samples)
        proxy = (1e4 * proxy).round() / 1e4                                # equal texts in other batches: equal scores
    gold = torch.tensor(gold_scores([p.source for p in batch.prompts], batch.responses)).view(len(questions), samples)
    groups = [batch.responses[i : i + samples] for i in range(0, len(batch.responses), samples)]
    points = []
    for n in ns:
        kls = [0.0 if coin else measured_kl(g, p, n) for g, p in zip(groups, proxy.tolist())]    # a coin changes no distribution
        points.append({"n": n, "bound": losses.best_of_n_kl_bound(n), "kl": sum(kls) / len(kls), "kl_highest": max(kls),
                       "kl_lowest": min(kls), "proxy": float(losses.best_of_n(proxy, proxy, n).mean()),
                       "gold": float(losses.best_of_n(proxy, gold, n).mean())})
    distinct = sum(len(set(g)) for g in groups) / len(groups) / samples
    return {"points": points, "distinct": distinct}


def main(L):
    sizes = L.pick({"labels": 300, "prompts": 60, "samples": 128}, {"labels": 300, "prompts": 200, "samples": 256},
                   {"labels": 2000, "prompts": 400, "samples": 1024})
    ns = [2**i for i in range(int(math.log2(sizes["samples"])))]          # up to half of the samples
    rows = L.run(arm, [sizes | {"ns": ns, "coin": coin, "seed": s} for s in L.seeds for coin in (False, True)])
    flat = [p | {"seed": r["seed"], "coin": r["coin"], "root": math.sqrt(p["kl"]), "root_bound": math.sqrt(p["bound"])}
            for r in rows for p in r["points"]]
    mine, coin = ([p for p in flat if p["coin"] == c] for c in (False, True))
    fig, (ax, right) = L.figure("Best of n", "sqrt of log n - (n-1)/n", "score", columns=2)
    lab.curve(ax, mine, "root_bound", "proxy", "proxy")
    lab.curve(ax, mine, "root_bound", "gold", "gold")
    lab.curve(ax, coin, "root_bound", "gold", "gold, chosen by a coin")
    right.set(title="What it costs", xlabel="n", ylabel="nats", xscale="log")
    lab.curve(right, mine, "n", "bound", "log n - (n-1)/n")
    lab.curve(right, mine, "n", "kl", "measured, mean over prompts", linestyle="--")
    lab.curve(right, mine, "n", "kl_lowest", "measured, prompt with the lowest")
    fits = [stats.correlation(*(torch.tensor([p[k] for p in mine if p["seed"] == s]) for k in ("root_bound", "proxy"))) ** 2
            for s in L.seeds]
    excess = max(p["kl_highest"] - p["bound"] for p in mine)
    share = [next(p["kl"] / p["bound"] for p in mine if p["seed"] == s and p["n"] == ns[-1]) for s in L.seeds]
    rise, null = ([next(p["gold"] for p in part if p["seed"] == s and p["n"] == ns[-1])
                   - next(p["gold"] for p in part if p["seed"] == s and p["n"] == 1) for s in L.seeds] for part in (mine, coin))
    L.finish(fig, rows, "the proxy is about linear in sqrt(KL), and the formula is an upper bound on the measured KL.",
             f"a line through the proxy in sqrt of the formula has R2 = {lab.said(fits)}; the largest difference of a prompt's "
             f"KL from the formula is {excess:+.4f} nats, at n = {ns[-1]} the mean KL is {lab.said(share)} of it, as "
             f"{rows[0]['distinct']:.0%} of the responses to a prompt are distinct; up to there gold rises by {lab.said(rise)}, "
             f"chosen by a coin by {lab.said(null)}.",
             agrees=min(fits) > 0.9 and excess < 1e-6)


if __name__ == "__main__":
    lab.start(main)
