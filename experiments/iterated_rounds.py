"""The same labels and the same RL steps, in one round or in several.

With several rounds the later comparisons are of the improved policy's responses, where the reward
model would otherwise guess: gold should peak later and higher (Bai 2022a, section 4.5; Gao 2022,
section 4.3). The first reward model's accuracy should be lower on newer policies' responses (HH:
74, 70, 67 %). Null control: as many rounds whose labels are all of the SFT model's responses; it
has everything but the newer data.

    python experiments/iterated_rounds.py
"""

from statistics import mean

import torch
from lab import arms, figures, start
from lab.intervals import describe, estimate, table, where

WINDOW = 5  # steps


def arm(L, folder, *, rounds, newest, labels, steps, prompts, seed):
    """Gold on the way and after the last round; how the first reward model fares.

    newest: each round's labels are of the newest policy's responses, else of the SFT model's
    """
    gold = []
    files = []
    policy = L.sft
    for number in range(rounds):
        labelled = {"count": labels // rounds, "samples": 4, "noise": 0.5}
        labelled |= {"init": policy if newest else "", "seed": 1000 * seed + number + 1}
        files.append(L.arm(arms.rankings, **labelled)["data"])
        reward = L.arm(arms.reward_model, data=",".join(files), seed=seed)["rm"]
        if number == 0:
            asked = {"reward": reward, "count": prompts, "seed": seed}
            sft = L.arm(arms.evaluation, policy=L.sft, **asked)
            accuracy = [sft["reward_accuracy"]]  # the first reward model's, round by round
        out = f"{folder}/round{number + 1}"
        settings = {"steps": steps // rounds, "seed": seed + 100 * number, "watch": "toyworld"}
        settings |= {"init": policy, "reference": L.sft, "kl_coef": 0.0, "lr": 5e-4}
        policy = arms.train_policy(L, out, reward=reward, **settings)
        gold += arms.metrics(policy, ["watch_toyworld"], WINDOW)["watch_toyworld"]
        end = arms.evaluation(L, folder, policy=policy, **asked)
        accuracy.append(end["reward_accuracy"])
    late = mean(gold[-len(gold) // 4 :])  # in the last quarter of the steps
    drop = accuracy[-1] - accuracy[0]
    on_the_way = {"path": gold, "peak": max(gold), "late": late}
    return {**end, **on_the_way, "accuracy": accuracy, "drop": drop}


def main(L):
    labels, steps, prompts = L.pick(quick=(320, 40, 100), default=(800, 80, 150))
    rounds = L.pick(quick=(1, 4), default=(1, 2, 4))
    variants = [{"rounds": number, "newest": True} for number in rounds]
    variants.append({"rounds": 4, "newest": False})
    rows = L.run(arm, variants, labels=labels, steps=steps, prompts=prompts)

    fig, (left, right) = figures.new(
        (f"{labels} rankings in all", "step of RL", f"gold, mean of {WINDOW} steps"),
        ("The first reward model", "round whose policy is judged (0: SFT)", "agrees with gold"),
    )
    for i, variant in enumerate(variants):
        same = where(rows, **variant)
        style = {"color": f"C{i}"}
        gold = torch.tensor([row["path"] for row in same]).T  # (windows, seeds)
        at = (torch.arange(len(gold)) + 0.5) * steps / len(gold)
        name = describe(variant)
        left.plot(at, gold.mean(1), linewidth=2, label=name, **style)
        left.plot(at, gold, linewidth=0.7, alpha=0.5, **style)
        points = []
        for row in same:
            for number, accuracy in enumerate(row["accuracy"]):
                points.append({"round": number, "accuracy": accuracy})
        figures.curve(right, points, "round", "accuracy", name, **style)

    one = where(rows, rounds=1)
    several = where(rows, rounds=4, newest=True)
    stale = where(rows, newest=False)
    gain = estimate(several, "late", minus=one)
    newer = estimate(several, "late", minus=stale)
    L.finish(
        fig,
        rows,
        expected="more rounds with as many labels reach more gold, thanks to newer data, which is "
        "harder for the first reward model.",
        found=[
            *table(rows, variants, "gold", "late", "peak", "drop"),
            f"late, four rounds against one: {gain:+.2f}",
            f"and against four with labels of the SFT model's responses: {newer:+.2f}",
        ],
        agrees=gain.mean > 0 and newer.mean > 0,
        decided=gain.sure,
    )


if __name__ == "__main__":
    start(main)
