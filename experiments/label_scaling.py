"""Reward-model accuracy against the number of comparisons and the model's size.

Near chance at first, then about linear in the logarithm of the comparisons, never above the share
of labels that are right; four passes over N comparisons are not one pass over 4 N (Stiennon 2020,
figure 6; Bai 2022a, section 3.3). Null control: the same training on labels that are coin flips.

    python experiments/label_scaling.py
    python experiments/label_scaling.py --data helpful-base.test.jsonl.gz \\
        --sft out/hh_small/sft --out out/hh_lab     # real pairs
"""

import math
import random

from lab import arms, figures, start
from lab.intervals import column, over_seeds, slope, table, where

import train_sft
from minirlhf.batches import held_out
from minirlhf.data import Ranking, read_rankings
from minirlhf.files import read_jsonl
from minirlhf.model import GPT

ONCE, FOUR = "one epoch", "four epochs"
SMALL = "one epoch, smaller model"
COIN = "one epoch, labels are coin flips"
SMALL_MODEL = {"n_embd": 48, "n_layer": 1, "n_head": 4, "steps": 300, "count": 20000}


def small_sft(L, folder):
    """A smaller parent for a smaller reward model."""
    out = f"{folder}/sft"
    train_sft.main(train_sft.Settings(out=out, device=L.device, resume=True, **SMALL_MODEL))
    return {"sft": out}


def first_turn(ranking: Ranking) -> str:
    return ranking.prompt.turns[0][1]


def real_pairs(L, folder, *, seed):
    """train.jsonl and test.jsonl of --data, divided by the first turn."""
    model = GPT.from_pretrained(L.sft)
    tokenizer = model.tokenizer
    fitting = []
    for ranking in read_rankings(L.data):
        turns = ranking.prompt.turns
        longest = max(len(tokenizer.encode_response(turns, text)) for text in ranking.responses)
        if len(tokenizer.encode_prompt(turns)) + longest <= model.config.n_positions:
            fitting.append(ranking)
    train, test = held_out(fitting, first_turn, 0.25, seed)
    random.Random(seed).shuffle(train)
    for name, part in (("train", train), ("test", test)):
        rows = []
        for r in part:
            row = {"prompt": r.prompt.source, "responses": r.responses, "ranks": r.ranks}
            rows.append(row)
        arms.write(f"{folder}/{name}.jsonl", rows)
    return {"training_pairs": len(train)}


def toy_pairs(L, folder, *, count, seed):
    """train.jsonl, and test.jsonl of held-out prompts ranked by gold."""
    noisy = {"count": count * 5 // 4, "noise": 0.5, "seed": seed + 1}
    exact = {"count": 600, "noise": 0.0, "seed": seed + 1000, "split": "test"}
    test = arms.ranked(L, **exact)
    train = []
    right = []  # whether gold agrees with each label
    for row in arms.ranked(L, **noisy):
        a, b = row["responses"]
        if a == b:
            continue
        train.append(row)
        gold_a, gold_b = arms.gold(row["prompt"], a), arms.gold(row["prompt"], b)
        if gold_a != gold_b:
            right.append((gold_a > gold_b) == (row["ranks"][0] < row["ranks"][1]))
    arms.write(f"{folder}/train.jsonl", train)
    arms.write(f"{folder}/test.jsonl", test)
    return {"labels_right": sum(right) / len(right)}


def arm(L, folder, *, kind, labels, seed, pool):
    """Accuracy on the test pairs of a reward model from the first `labels` comparisons."""
    if L.data:
        source = L.arm(real_pairs, seed=seed)["folder"]
    else:
        source = L.arm(toy_pairs, count=pool, seed=seed)["folder"]
    init = L.arm(small_sft)["sft"] if kind == SMALL else L.sft
    rows = read_jsonl(f"{source}/train.jsonl")[:labels]
    rng = random.Random(seed)
    for row in rows:
        if kind == COIN:
            row["ranks"] = rng.choice(([1, 2], [2, 1]))
    data = arms.write(f"{folder}/train.jsonl", rows)
    epochs = 4 if kind == FOUR else 1
    # validation: one pair, since the test set is our own
    settings = {"init": init, "epochs": epochs, "normalize_samples": 0, "validation": 1e-9}
    rm = arms.reward_model(L, folder, data=data, seed=seed, **settings)["rm"]
    result = arms.validate(L, rm, f"{source}/test.jsonl")
    accuracy, calibration = result["validation_accuracy"], result["calibration"]
    claimed = sum(part["pairs"] * part["predicted"] for part in calibration)
    excess = claimed / result["validation_pairs"] - accuracy
    return {"accuracy": accuracy, "claims_too_much": excess, "calibration": calibration}


def draw_calibration(ax, rows: list[dict], label: str) -> None:
    """Claimed and real accuracy, as means over seeds."""
    predicted, accuracy = [], []
    for parts in zip(*column(rows, "calibration")):
        predicted.append(sum(column(parts, "predicted")) / len(parts))
        accuracy.append(sum(column(parts, "accuracy")) / len(parts))
    ax.plot(predicted, accuracy, "o-", label=label)


def main(L):
    sizes = L.pick(
        quick=[10, 40, 160, 640],
        default=[20, 80, 320, 1280, 5120],
        full=[20, 80, 320, 1280, 5120, 20480],
    )
    pool = sizes[-1]
    if L.data:  # as many as there are
        available = L.arm(real_pairs, seed=0)["training_pairs"]
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
    right.plot([0.5, 1], [0.5, 1], "--", color="grey", linewidth=0.8)
    for kind, n in ((FOUR, sizes[1]), (FOUR, sizes[-2]), (ONCE, sizes[-1])):
        same = where(rows, kind=kind, labels=n)
        draw_calibration(right, same, f"{n} comparisons, {kind}")

    once, four = where(rows, kind=ONCE), where(rows, kind=FOUR)
    middle = [row for row in once if row["labels"] >= sizes[1]]
    doublings = [math.log2(n) for n in column(middle, "labels")]
    per_doubling = slope(doublings, column(middle, "accuracy"))
    gaps = []  # one pass over 4 N against four over N
    for row in four:
        [other] = where(once, seed=row["seed"], labels=4 * row["labels"])
        gaps.append(other["accuracy"] - row["accuracy"])
    gap = sum(gaps) / len(gaps)
    found = [
        *table(rows, variants, "accuracy", "claims_too_much"),
        f"accuracy per doubling, from {sizes[1]} comparisons on: {per_doubling:+.3f}",
        f"one pass over 4 N against four over N: {gap:+.3f} (mean over N)",
    ]
    if not L.data:
        right_labels = [L.arm(toy_pairs, count=pool, seed=s)["labels_right"] for s in L.seeds]
        found.append(f"share of the training labels that are right: {over_seeds(right_labels)}")
    L.finish(
        fig,
        rows,
        expected="near chance with few comparisons, then about linear in their logarithm (papers: "
        "about 1 point per doubling on human data); four epochs on N fall short of one on 4 N.",
        found=found,
        agrees=per_doubling.mean > 0 and gap > 0 if per_doubling.sure else None,
    )


if __name__ == "__main__":
    start(main)
