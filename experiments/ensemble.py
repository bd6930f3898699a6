"""Do several reward models withstand over-optimisation better than one (Coste et al. 2023)?

Reward models that differ in their seed alone (the order of the data) learn from one set of pairs:
labels without error; labels of which a quarter is flipped; and, the null control, labels of
annotators who all like long responses, an error that every member shares. Best of n by one member,
by the mean, the worst case (min) and the uncertainty-weighted mean (uwo); then RL against each,
without and with a small KL penalty. Gold judges.

    python experiments/ensemble.py
"""

import random

import torch
from lab import arms, figures, start
from lab.intervals import column, estimate, means, table, where

from minirlhf import losses, rewards

COMBINED = ("mean", "min", "uwo")
HOW = ("single", *COMBINED)
LABELS = {  # name -> share of labels that are flipped, the annotators' bias
    "no error": (0.0, ""),
    "25 % flipped": (0.25, ""),
    "shared blind spot": (0.0, "length=0.2"),
}


def labels(L, folder, *, count, flip, bias, seed):
    """Pairs ranked by gold and a bias, a share of them the wrong way round."""
    rows = arms.ranked(L, count=count, noise=0.0, bias=bias, seed=seed)
    rng = random.Random(seed)
    for row in rows:
        if rng.random() < flip:
            row["ranks"] = [3 - rank for rank in row["ranks"]]
    return {"data": arms.write(f"{folder}/rankings.jsonl", rows)}


def train_members(L, labelled, count, members, seed) -> list[str]:
    """The reward models' folders."""
    flip, bias = LABELS[labelled]
    data = L.arm(labels, count=count, flip=flip, bias=bias, seed=seed)["data"]
    seeds = range(100 * seed, 100 * seed + members)
    return [L.arm(arms.reward_model, data=data, seed=member)["rm"] for member in seeds]


def chosen(L, folder, *, labelled, count, members, prompts, samples, seed):
    """Gold of the best of n by each way to combine the members; single: the mean over members."""
    pool = L.arm(arms.responses, count=prompts, samples=samples, seed=seed)
    answers = arms.read_answers(pool["answers"])
    gold = answers.each(arms.gold)  # (P, S)
    scores = []
    for rm in train_members(L, labelled, count, members, seed):
        scores.append(answers.scores(rewards.load(rm, L.device)))
    scores = torch.stack(scores)  # (M, P, S)
    sizes = [2**i for i in range(samples.bit_length() - 1)]
    result = {"n": sizes}
    best = {}  # the best of `samples`, by each way: (P,)
    for how in HOW:
        choosers = scores  # (C, P, S): who chooses
        if how != "single":
            choosers = losses.combine_scores(scores.flatten(1), how).view(1, *gold.shape)
        curve = []
        for n in sizes:
            best[how] = losses.best_of_n(choosers, gold.expand_as(choosers), n).mean(0)
            curve.append(float(best[how].mean()))
        result[f"{how}_curve"] = curve
        gain = best[how] - best["single"]
        result |= means(**{how: best[how], f"{how}_gain": gain})
    return result


def trained(L, folder, *, how, kl_coef, labelled, count, members, steps, questions, seed):
    """RL against one member or all; the policy's gold and KL."""
    models = train_members(L, labelled, count, members, seed)
    reward = {"reward": models[0]}
    if how != "single":
        reward = {"reward": ",".join(models), "ensemble": how}
    settings = {"kl_coef": kl_coef, "steps": steps, "lr": 5e-4, "seed": seed}
    policy = arms.train_policy(L, folder, **reward, **settings)
    return arms.evaluation(L, folder, policy=policy, count=questions)


def main(L):
    count, members, prompts, samples, steps, questions = L.pick(
        quick=(200, 3, 40, 32, 16, 40),
        default=(400, 5, 80, 128, 30, 150),
        full=(1500, 5, 200, 256, 200, 400),
    )
    hows = L.pick(quick=("single", "mean", "min"), default=HOW, full=HOW)
    coefs = L.pick(quick=(0.0,), default=(0.0, 0.05), full=(0.0, 0.02, 0.05))
    common = {"count": count, "members": members}
    labelled = [{"labelled": name} for name in LABELS]
    rows = L.run(chosen, labelled, prompts=prompts, samples=samples, **common)
    variants = [{"how": how, "kl_coef": coef} for how in hows for coef in coefs]
    common |= {"labelled": "25 % flipped", "steps": steps, "questions": questions}
    rl = L.run(trained, variants, **common)

    title = "a quarter of the labels flipped"
    fig, axes = figures.new(
        (f"Best of n, {title}", "KL to SFT at most, nats", "gold"),
        (f"Gained over one model, best of {samples}", "labels", "gold"),
        (f"RL, {title}", "KL to SFT, nats", "gold"),
    )
    flipped = where(rows, labelled="25 % flipped")
    bounds = [losses.best_of_n_kl_bound(n) for n in rows[0]["n"]]
    for how in HOW:
        curve = torch.tensor(column(flipped, f"{how}_curve")).mean(0)
        axes[0].plot(bounds, curve, "o-", label=how)
    for how in hows:
        figures.runs(axes[2], where(rl, how=how), "kl", "gold", how)
    gains = {}
    for i, how in enumerate(COMBINED):
        for name in LABELS:
            gains[how, name] = estimate(where(rows, labelled=name), f"{how}_gain")
        xs = [x + 0.15 * i for x in range(len(LABELS))]
        cells = [gains[how, name] for name in LABELS]
        figures.points(axes[1], xs, cells, how, color=f"C{i + 1}")
    axes[1].axhline(0, color="grey", linewidth=0.8)
    axes[1].set_xticks(range(len(LABELS)), LABELS)

    gain = gains["mean", "25 % flipped"]
    blind = gains["mean", "shared blind spot"]
    agrees = None
    if gain.sure:
        agrees = gain.mean > 0 and blind.mean - blind.half < gain.mean
    L.finish(
        fig,
        [*rows, *rl],
        expected="with a quarter of the labels flipped an ensemble's choices are better by gold "
        "than one member's, also after RL; an error that all members share stays (null control: no "
        "gain).",
        found=[
            *table(rows, labelled, *[f"{how}_gain" for how in COMBINED]),
            *table(rl, variants, "gold", "kl"),
        ],
        agrees=agrees,
    )


if __name__ == "__main__":
    start(main)
