"""How much longer do responses get when annotators like length, and is the gain only length?

Pairs are ranked by gold with some noise; then the fewest possible labels are turned round so that
the longer response wins in 50, 56, 60 or 70 % of the pairs. Null control: as many labels turned as
for 70 %, whichever response is the longer one. A reward model, RL against it, and on held-out
prompts: words, and the share of the reward gained that is left when responses of equal length are
compared (Singhal et al. 2023, NRG). `--data` draws how often the longer response wins in real
comparisons.

    python experiments/length_bias.py
"""

import random
from collections import defaultdict
from pathlib import Path
from statistics import mean

from lab import arms, figures, start
from lab.intervals import column, estimate, means, table, where

from minirlhf import rewards, winrate
from minirlhf.data import read_rankings

BIN = 4  # words: responses within the same bin count as equally long


def longer_wins(responses: list[str], ranks: list[float]) -> float | None:
    """1 if the longer of two responses is the better one, else 0; None for equal lengths."""
    a, b = (len(response.split()) for response in responses)
    if a == b:
        return None
    return float((a > b) == (ranks[0] < ranks[1]))


def share_longer_wins(pairs: list[tuple]) -> float:
    """pairs: (responses, ranks)"""
    wins = [longer_wins(*pair) for pair in pairs]
    return mean(win for win in wins if win is not None)


def planted(L, folder, *, count, share, blindly, seed):
    """Pairs in which the longer wins in `share` of the cases; blindly: as many turned at random."""
    rows = arms.ranked(L, count=count, seed=seed)
    wins = {}
    for i, row in enumerate(rows):
        win = longer_wins(row["responses"], row["ranks"])
        if win is not None:
            wins[i] = win
    missing = round(share * len(wins) - sum(wins.values()))  # pairs that the longer should win too
    candidates = list(wins)
    if not blindly:
        candidates = [i for i, win in wins.items() if win == (missing < 0)]
    for i in random.Random(seed).sample(candidates, abs(missing)):
        rows[i]["ranks"] = [3 - rank for rank in rows[i]["ranks"]]
    return {
        "data": arms.write(f"{folder}/rankings.jsonl", rows),
        "longer_wins": share_longer_wins([(row["responses"], row["ranks"]) for row in rows]),
        "turned": abs(missing) / len(rows),
    }


def by_bin(rewards: list[float], words: list[float]) -> dict[int, list[float]]:
    bins = defaultdict(list)
    for reward, count in zip(rewards, words):
        bins[count // BIN].append(reward)
    return bins


def not_length(before, after, words_before, words_after) -> float:
    """The share of the mean reward gained that is left between responses of equal length."""
    old, new = by_bin(before, words_before), by_bin(after, words_after)
    common = old.keys() & new.keys()
    weight = sum(len(new[b]) for b in common)
    gained = sum(len(new[b]) * (mean(new[b]) - mean(old[b])) for b in common)
    return gained / weight / (mean(after) - mean(before))


def arm(L, folder, *, share, blindly, count, steps, questions, seed):
    pairs = L.arm(planted, count=count, share=share, blindly=blindly, seed=seed)
    rm = L.arm(arms.reward_model, data=pairs["data"], seed=seed, validation=0.02)["rm"]
    policy = arms.train_policy(L, folder, reward=rm, steps=steps, seed=seed, kl_coef=0.02)
    reward_fn = rewards.load(rm, L.device)
    before = arms.answer(L, f"{folder}/before", L.sft, questions, seed=1000 + seed)
    after = arms.answer(L, f"{folder}/after", policy, questions, seed=1000 + seed)
    reward, new_reward = before.scores(reward_fn), after.scores(reward_fn)  # (P, 4)
    words, new_words = before.each(arms.words), after.each(arms.words)  # (P, 4)
    rewards_and_words = (reward, new_reward, words, new_words)
    return {
        **means(words=new_words - words),
        "longer_wins": pairs["longer_wins"],
        "not_length": not_length(*[x.flatten().tolist() for x in rewards_and_words]),
        "prefers_longer": winrate.ranked_right(reward, words)["mean"],
    }


def main(L):
    count, steps, questions = L.pick(
        quick=(400, 18, 60), default=(1500, 60, 200), full=(5000, 200, 400)
    )
    shares = L.pick(
        quick=(0.5, 0.6, 0.7), default=(0.5, 0.56, 0.6, 0.7), full=(0.5, 0.56, 0.6, 0.7)
    )
    variants = [{"share": share, "blindly": False} for share in shares]
    variants.append({"share": shares[-1], "blindly": True})
    rows = L.run(arm, variants, count=count, steps=steps, questions=questions)
    biased, null = where(rows, blindly=False), where(rows, blindly=True)

    label = "labels in which the longer wins"
    panels = {
        "words": ("Longer responses", label, "words more than SFT"),
        "not_length": ("Share of the gain that is not length", label, "share of the reward gained"),
        "prefers_longer": ("The reward model likes length", label, "prefers the longer of two"),
    }
    fig, axes = figures.new(*panels.values())
    for ax, name in zip(axes, panels):
        figures.curve(ax, biased, "share", name, "length planted")
        control = estimate(null, name)
        figures.points(ax, shares[-1:], [control], "as many turned at random", color="C2")
    if L.data:
        real = [r for r in read_rankings(L.data) if len(r.responses) == 2]
        share = share_longer_wins([(r.responses, r.ranks) for r in real])
        name = f"{Path(L.data).name[:24]}: {share:.3f}"
        axes[2].axvline(share, color="grey", linestyle=":", label=name)

    first, last = where(biased, share=shares[0]), where(biased, share=shares[-1])
    more = estimate(last, "words", minus=first)
    against_null = estimate(last, "words", minus=null)
    found = [
        *table(rows, variants, "words", "not_length", "prefers_longer"),
        f"words, from the first share to the last: {more:+.1f}",
        f"against as many labels turned at random: {against_null:+.1f}",
    ]
    agrees = None
    if more.sure and against_null.sure:
        falls = mean(column(last, "not_length")) < mean(column(first, "not_length"))
        agrees = more.mean > 0 and against_null.mean > 0 and falls
    L.finish(
        fig,
        rows,
        expected="the more often the longer response wins, the longer responses get in RL, and the "
        "smaller is the share of the reward gained at equal length; as many labels turned at "
        "random do nothing of the kind (null control).",
        found=found,
        agrees=agrees,
    )


if __name__ == "__main__":
    start(main)
