"""Rankings of K responses as groups, or as shuffled pairs (Ouyang 2022, section 3.5).

InstructGPT's authors saw that the C(K, 2) comparisons of a ranking, shuffled into one data set,
made a single pass overfit: each response is trained on K - 1 times. As one element of a batch they
need K forward passes instead of K(K - 1), and do not. Null control: as many pairs, each of another
prompt, so that nothing is repeated; if pairs as such were the trouble, it would show here.

    python experiments/kway_batching.py
"""

import math
from itertools import combinations

from lab import arms, figures, start
from lab.intervals import estimate, table, where

K = 6
PAIRS = math.comb(K, 2)  # of a ranking
GROUPS, SHUFFLED, INDEPENDENT = "groups", "pairs", "independent pairs"
LARGE = "pairs, 8 prompts' worth"


def to_pairs(rankings: list[dict]) -> list[dict]:
    """A ranking of two for each pair of different texts."""
    pairs = []
    for ranking in rankings:
        ranked = sorted(zip(ranking["ranks"], ranking["responses"]))
        for (_, better), (_, worse) in combinations(ranked, 2):
            if better != worse:
                pair = {"prompt": ranking["prompt"], "responses": [better, worse], "ranks": [1, 2]}
                pairs.append(pair)
    return pairs


def length(ranking: dict) -> int:
    """Characters that a reward model reads; the prompt counts once."""
    return len(str(ranking["prompt"])) + len("".join(ranking["responses"]))


def arm(L, folder, *, form, prompts, epochs, test, seed):
    """A reward model from `prompts` rankings: held-out loss and accuracy, and on its own data."""
    ranked = {"count": prompts, "samples": K}
    if form == INDEPENDENT:
        ranked = {"count": prompts * PAIRS, "samples": 2}
    rankings = arms.ranked(L, noise=0.5, seed=seed + 1, **ranked)
    if form != GROUPS:
        rankings = to_pairs(rankings)
    train = arms.write(f"{folder}/train.jsonl", rankings)
    batch_size = 8 * PAIRS if form == LARGE else 8
    settings = {"epochs": epochs, "batch_size": batch_size, "normalize_samples": 0}
    rm = arms.reward_model(L, folder, data=train, seed=seed, validation=1e-9, **settings)["rm"]

    held_out = {"count": test, "samples": K, "noise": 0.5, "split": "test"}
    held_out = L.arm(arms.rankings, seed=seed + 1000, **held_out)["data"]
    result = {}
    for name, file in (("held_out", held_out), ("train", train)):
        measured = arms.validate(L, rm, file)
        result[f"{name}_loss"] = measured["loss"]
        result[f"{name}_accuracy"] = measured["accuracy"]
    result["gap"] = result["train_accuracy"] - result["held_out_accuracy"]
    result["text"] = epochs * sum(map(length, rankings))
    return result


def main(L):
    prompts, test, epochs = L.pick(quick=(40, 100, (1, 3)), default=(150, 300, (1, 2, 4)))
    variants = [{"form": form, "epochs": e} for form in (GROUPS, SHUFFLED, LARGE) for e in epochs]
    variants.append({"form": INDEPENDENT, "epochs": 1})
    rows = L.run(arm, variants, prompts=prompts, test=test)

    title = f"{prompts} rankings of {K} responses"
    fig, (left, right) = figures.new(
        (title, "epochs", "held-out loss, nats per comparison"),
        ("Remembered, not learnt", "epochs", "accuracy: training data minus held-out"),
    )
    left.axhline(math.log(2), color="grey", linewidth=0.8, linestyle=":")
    figures.curves(left, rows, "epochs", "held_out_loss", by="form")
    figures.curves(right, rows, "epochs", "gap", by="form")
    groups, pairs = (where(rows, form=form, epochs=1) for form in (GROUPS, SHUFFLED))
    remembered = estimate(pairs, "gap", minus=groups)
    worse = estimate(pairs, "held_out_loss", minus=groups)
    times = pairs[0]["text"] / groups[0]["text"]
    L.finish(
        fig,
        rows,
        expected="shuffled pairs are remembered within one epoch, groups are not, and groups cost "
        "a fraction of the computation.",
        found=[
            *table(rows, variants, "held_out_loss", "gap"),
            f"after one epoch, pairs minus groups: gap {remembered:+.3f}, loss {worse:+.3f} nats",
            f"an epoch of pairs reads {times:.1f} times the text of groups",
        ],
        agrees=remembered.mean > 0,
        decided=remembered.sure,
    )


if __name__ == "__main__":
    start(main)
