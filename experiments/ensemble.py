"""Do several reward models withstand over-optimisation better than one (Coste et al. 2023)?

Reward models that differ in their seed alone (the order of the data) learn from one set of pairs:
labels without error; labels of which a quarter is flipped; and, the null control, labels of
annotators who all like long responses, an error that every member shares. Best of n by one member,
by the mean, the worst case (min) and the uncertainty-weighted mean (uwo); then RL against each,
without and with a small KL penalty. Gold judges.

    python experiments/ensemble.py
"""

import torch
from lab import arms, figures, start
from lab.ensembles import BLIND, COMBINED, FLIPPED, HOW, LABELS, of_best, train_members
from lab.intervals import column, estimate, means, table, where

from minirlhf import losses, rewards


def chosen(L, folder, *, labelled, count, members, prompts, samples, seed):
    """Gold of the best of 1, 2, 4, ... up to half of the samples, by each way to choose."""
    pool = L.arm(arms.responses, count=prompts, samples=samples, seed=seed)
    answers = arms.read_answers(pool["answers"])
    gold = answers.each(arms.gold)  # (P, S)
    models = train_members(L, labelled, count, members, seed)
    scores = torch.stack([answers.scores(rewards.load(rm, L.device)) for rm in models])  # (M, P, S)
    sizes = [2**i for i in range(samples.bit_length() - 1)]
    words = answers.each(arms.words)  # (P, S)
    single = of_best("single", scores, gold, sizes[-1])
    result = {"n": sizes}
    for how in HOW:
        best = [of_best(how, scores, gold, n) for n in sizes]
        result[f"{how}_curve"] = [float(x.mean()) for x in best]
        longer = of_best(how, scores, words, sizes[-1]) - words.mean(1)
        result |= means(**{f"{how}_gain": best[-1] - single, f"{how}_longer": longer})
    return result


def trained(L, folder, *, how, kl_coef, labelled, count, members, steps, questions, seed):
    """RL against one member or all; the policy's gold and KL."""
    models = train_members(L, labelled, count, members, seed)
    reward = {"reward": models[0]}
    if how != "single":
        reward = {"reward": ",".join(models), "ensemble": how}
    settings = {"kl_coef": kl_coef, "steps": steps, "lr": 5e-4, "seed": seed}
    policy = arms.train_policy(L, folder, **reward, **settings)
    return arms.evaluation(L, folder, policy=policy, count=questions, seed=seed)


def main(L):
    choice, rl = L.pick(
        quick=({"prompts": 40, "samples": 32}, {"steps": 16, "questions": 40}),
        default=({"prompts": 150, "samples": 128}, {"steps": 30, "questions": 150}),
    )
    common = L.pick(quick={"count": 200, "members": 3}, default={"count": 400, "members": 5})
    coefs = L.pick(quick=(0.0,), default=(0.0, 0.05))
    labelled = [{"labelled": name} for name in LABELS]
    rows = L.run(chosen, labelled, **choice, **common)
    variants = [{"how": how, "kl_coef": coef} for how in HOW for coef in coefs]
    policies = L.run(trained, variants, most_seeds=3, labelled=FLIPPED, **rl, **common)

    title = "a quarter of the labels flipped"
    fig, (left, middle, right) = figures.new(
        (f"Best of n, {title}", "KL to SFT at most, nats", "gold"),
        (f"Gained over one model, best of {rows[0]['n'][-1]}", "labels", "gold"),
        (f"RL, {title}", "KL to SFT, nats", "gold"),
    )
    flipped = where(rows, labelled=FLIPPED)
    bounds = [losses.best_of_n_kl_bound(n) for n in rows[0]["n"]]
    for how in HOW:
        left.plot(bounds, torch.tensor(column(flipped, f"{how}_curve")).mean(0), "o-", label=how)
        figures.runs(right, where(policies, how=how), "kl", "gold", how)
    gains = {}
    for how in COMBINED:
        gains[how] = [estimate(where(rows, labelled=name), f"{how}_gain") for name in LABELS]
    figures.by_name(middle, LABELS, gains, colour=1)
    middle.axhline(0, color="grey", linewidth=0.8)

    _, gain, _ = gains["mean"]
    blind = where(rows, labelled=BLIND)
    shorter = estimate(blind, "single_longer").mean - estimate(blind, "mean_longer").mean
    L.finish(
        fig,
        [*rows, *policies],
        expected="with a quarter of the labels flipped an ensemble's choices are better by gold "
        "than one member's, also after RL; an error that all members share, a liking for length, "
        "stays (null control).",
        found=[
            *table(rows, labelled, *[f"{how}_gain" for how in COMBINED]),
            *table(rows, labelled, *[f"{how}_longer" for how in HOW]),
            *table(policies, variants, "gold", "kl"),
        ],
        agrees=gain.mean > 0 and shorter < 1,  # a word
        decided=gain.sure,
    )


if __name__ == "__main__":
    start(main)
