"""Reward-model accuracy against the number of comparisons and the model's size.

Near chance at first, then about linear in the logarithm of the comparisons, never above the share
of labels that are right; four passes over N comparisons are not one pass over 4 N (Stiennon 2020,
figure 6; Bai 2022a, section 3.3). Null control: the same training on labels that are coin flips.

    python experiments/label_scaling.py
    python experiments/label_scaling.py --data helpful-base.test.jsonl.gz \\
        --sft out/hh_small/sft --out out/hh_lab     # real pairs; hh_small.py trained that SFT
"""

import math
import random
from statistics import mean

from lab import arms, figures, pairs, start
from lab.intervals import column, slope, table, where

import train_sft
from minirlhf.files import read_jsonl

ONCE, FOUR = "one epoch", "four epochs"
SMALL = "one epoch, smaller model"
COIN = "one epoch, labels are coin flips"


def small_sft(L, folder):
    """A smaller parent for a smaller reward model."""
    model = {"n_embd": 48, "n_layer": 1, "n_head": 4, "steps": 300, "count": 20000}
    run = {"out": f"{folder}/sft", "device": L.device, "resume": True}
    train_sft.main(train_sft.Settings(**model, **run))
    return {"sft": run["out"]}


def arm(L, folder, *, kind, labels, seed, pool):
    """Accuracy on the test pairs of a reward model from the first `labels` comparisons."""
    source = L.arm(pairs.real, seed=seed) if L.data else L.arm(pairs.toy, count=pool, seed=seed)
    init = L.arm(small_sft)["sft"] if kind == SMALL else L.sft
    rows = read_jsonl(f"{source['folder']}/train.jsonl")[:labels]
    rng = random.Random(seed)
    for row in rows:
        if kind == COIN:
            row["ranks"] = rng.choice(([1, 2], [2, 1]))
    data = arms.write(f"{folder}/train.jsonl", rows)
    epochs = 4 if kind == FOUR else 1
    # validation: one pair, since the test set is our own
    settings = {"init": init, "epochs": epochs, "normalize_samples": 0, "validation": 1e-9}
    rm = arms.reward_model(L, folder, data=data, seed=seed, **settings)["rm"]
    measured = arms.validate(L, rm, f"{source['folder']}/test.jsonl")
    return {**measured, "labels_right": source["labels_right"]}


def main(L):
    sizes = L.pick(quick=[10, 40, 160, 640], default=[20, 80, 320, 1280, 5120])
    pool = sizes[-1]
    if L.data:
        available = L.arm(pairs.real, seed=0)["training_pairs"]
        sizes = [n for n in sizes if n <= available]
    variants = [{"kind": ONCE, "labels": n} for n in sizes]
    variants += [{"kind": FOUR, "labels": n} for n in sizes[:-1]]
    if not L.data:
        variants += [{"kind": SMALL, "labels": n} for n in sizes]
    variants.append({"kind": COIN, "labels": sizes[2]})
    rows = L.run(arm, variants, pool=pool)

    fig, (left, right) = figures.new(
        ("Accuracy", "comparisons seen in training", "accuracy on held-out pairs"),
        ("Calibration, held-out pairs", "claimed accuracy", "accuracy"),
    )
    left.set_xscale("log")
    left.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    figures.curves(left, rows, "labels", "accuracy", by="kind")
    for kind, n in ((FOUR, sizes[1]), (FOUR, sizes[-2]), (ONCE, sizes[-1])):
        figures.calibration(right, where(rows, kind=kind, labels=n), f"{n} comparisons, {kind}")

    once, four = where(rows, kind=ONCE), where(rows, kind=FOUR)
    middle = [row for row in once if row["labels"] >= sizes[1]]
    per_doubling = slope([math.log2(row["labels"]) for row in middle], column(middle, "accuracy"))
    gaps = []  # one pass over 4 N against four over N
    for row in four:
        [other] = where(once, seed=row["seed"], labels=4 * row["labels"])
        gaps.append(other["accuracy"] - row["accuracy"])
    L.finish(
        fig,
        rows,
        expected="near chance with few comparisons, then about linear in their logarithm (papers: "
        "about 1 point per doubling on human data); four epochs on N fall short of one on 4 N.",
        found=[
            *table(rows, variants, "accuracy", "claims_too_much", "labels_right"),
            f"accuracy per doubling, from {sizes[1]} comparisons on: {per_doubling:+.3f}",
            f"one pass over 4 N against four over N: {mean(gaps):+.3f} (mean over N)",
        ],
        agrees=per_doubling.mean > 0 and mean(gaps) > 0,
        decided=per_doubling.sure,
    )


if __name__ == "__main__":
    start(main)
