"""Do several reward models withstand over-optimisation better than one (Coste et al. 2023)?

Reward models that differ in their seed alone (the order of the data) learn from one set of pairs: labels without error, labels of
which a quarter is flipped, and, the null control, labels of annotators who all like long responses: what every member believes
wrongly no ensemble can know. Best of n by one member, by the mean, the worst case (min) and the uncertainty-weighted mean (uwo);
then RL against each without and with a small KL penalty. Gold judges.

    python experiments/ensemble.py
"""
import random

import lab
import torch

import toyworld
from minirlhf import losses
from minirlhf.files import read_jsonl

HOW = ("single", "mean", "min", "uwo")
LABELS = {"no error": (0.0, ""), "25 % flipped": (0.25, ""), "shared blind spot": (0.0, "length=0.2")}


def labels(L, folder, *, count, flip, bias, seed):
    """Pairs ranked by gold (and bias), a share of them the wrong way round."""
    rows = read_jsonl(L.arm(lab.rankings, count=count, samples=2, noise=0.0, bias=bias, seed=seed)["data"])
    rng = random.Random(seed)
    rows = [r | {"ranks": [3 - x for x in r["ranks"]]} if rng.random() < flip else r for r in rows]
    return {"data": lab.write_lines(f"{folder}/rankings.jsonl", rows)}


def ensemble(L, labelled, count, members, seed):
    """The members' folders."""
    flip, bias = LABELS[labelled]
    data = L.arm(labels, count=count, flip=flip, bias=bias, seed=seed)["data"]
    return [L.arm(lab.reward_model, data=data, seed=100 * seed + i)["rm"] for i in range(members)]


def pool(L, folder, *, prompts, samples, seed):
    """SFT responses to held-out prompts, from which the best are chosen."""
    asked = lab.wanted("test", prompts, 1000 + seed, lambda p: True)
    texts, responses, shape = lab.answers(L, folder, L.sft, asked, samples, 1000 + seed)
    return {"texts": texts, "responses": responses, "shape": shape,
            "gold": lab.table(toyworld.reward, texts, responses, shape).tolist()}


def chosen(L, folder, *, labelled, count, members, prompts, samples, seed):
    """Gold of the best of n by each way to combine the members; `single` is the mean over members alone."""
    p = L.arm(pool, prompts=prompts, samples=samples, seed=seed)
    gold = torch.tensor(p["gold"], dtype=torch.float64)                                                     # (P, S)
    scores = torch.stack([lab.table(lab.reward_of(L, rm), p["texts"], p["responses"], p["shape"])
                          for rm in ensemble(L, labelled, count, members, seed)])                           # (M, P, S)
    ns = [2**i for i in range(samples.bit_length() - 1)]
    result, at_one = {"n": ns}, None
    for how in HOW:
        flat = [losses.combine_scores(scores.flatten(1), how).view(gold.shape)] if how != "single" else scores
        best = torch.stack([sum(losses.best_of_n(x, gold, n) for x in flat) / len(flat) for n in ns])       # (N, P)
        at_one = best[-1] if how == "single" else at_one
        result[f"{how}_curve"] = best.mean(1).tolist()
        result |= lab.means(**{how: best[-1], f"{how}_gain": best[-1] - at_one})
    return result


def trained(L, folder, *, how, kl_coef, labelled, count, members, steps, questions, seed):
    """RL against one member or all; the policy's gold and KL."""
    rms = ensemble(L, labelled, count, members, seed)
    reward, how = (rms[0], "mean") if how == "single" else (",".join(rms), how)
    policy = lab.improve(L, folder, reward=reward, ensemble=how, kl_coef=kl_coef, steps=steps, seed=seed, lr=5e-4)
    result = lab.judge(L, folder, policy=policy, count=questions)
    return {"gold": result["gold"]["mean"], "gold_interval": result["gold"]["interval"], "kl": result["kl"]["mean"],
            "words": result["words"]["mean"]}


def main(L):
    count, members, prompts, samples, steps, questions = L.pick(
        (200, 3, 40, 32, 16, 40), (400, 5, 80, 128, 30, 150), (1500, 5, 200, 256, 200, 400))
    common = {"count": count, "members": members}
    rows = L.run(chosen, [{"labelled": name, "prompts": prompts, "samples": samples, "seed": seed, **common}
                          for name in LABELS for seed in L.seeds])
    hows, coefs = L.pick(("single", "mean", "min"), HOW, HOW), L.pick((0.0,), (0.0, 0.05), (0.0, 0.02, 0.05))
    rl = L.run(trained, [{"how": how, "kl_coef": kl, "labelled": "25 % flipped", "steps": steps, "questions": questions,
                          "seed": seed, **common} for seed in L.seeds for how in hows for kl in coefs])

    fig, axes = L.figure("Best of n, a quarter of the labels flipped", "KL to SFT at most, nats", "gold", columns=3)
    by = {name: [r for r in rows if r["labelled"] == name] for name in LABELS}
    for how in HOW:
        curves = [r[f"{how}_curve"] for r in by["25 % flipped"]]
        axes[0].plot([losses.best_of_n_kl_bound(n) for n in rows[0]["n"]], [sum(x) / len(x) for x in zip(*curves)], "o-", label=how)
    gains = {(name, how): lab.estimate(by[name], f"{how}_gain") for name in LABELS for how in HOW[1:]}
    for i, how in enumerate(HOW[1:]):
        cells = [gains[name, how] for name in LABELS]
        axes[1].errorbar([x + 0.15 * (i - 1) for x in range(3)], [m for m, _ in cells], [h for _, h in cells], fmt="o", capsize=3,
                         label=how, color=lab.COLOURS[i + 1])
    axes[1].axhline(0, color="grey", linewidth=0.8)
    axes[1].set(title=f"Gained over one model, best of {samples}", ylabel="gold", xticks=range(3), xticklabels=LABELS)
    for i, how in enumerate(HOW):
        some = [r for r in rl if r["how"] == how]
        if some:
            axes[2].errorbar([r["kl"] for r in some], [r["gold"] for r in some], [r["gold_interval"] for r in some], fmt="o",
                             label=how, color=lab.COLOURS[i])
    axes[2].set(title="After RL, a quarter flipped", xlabel="KL to SFT, nats", ylabel="gold")
    mean, half = gains["25 % flipped", "mean"]
    blind, blind_half = gains["shared blind spot", "mean"]
    listed = "; ".join(f"{name}: " + ", ".join(f"{how} {gains[name, how][0]:+.2f} ± {gains[name, how][1]:.2f}" for how in HOW[1:])
                       for name in LABELS)
    after = ", ".join(f"{how} {lab.said([r['gold'] for r in rl if r['how'] == how and r['kl_coef'] == 0])}" for how in hows)
    L.finish(fig, [*rows, *rl],
             expected="with a quarter of the labels flipped an ensemble's choices are better by gold than one member's, also after "
                      "RL; a blind spot that all members share stays (null control: no gain).",
             found=f"at best of {samples} the gain over one member was, {listed}; gold after RL without KL penalty: {after}.",
             agrees=None if abs(mean) < half else mean > 0 and blind - blind_half < mean,
             why=f"the mean of {members} gained {mean:.2f} ± {half:.2f} with flipped labels and {blind:.2f} ± {blind_half:.2f} "
                 "with the shared blind spot")


if __name__ == "__main__":
    lab.start(main)
