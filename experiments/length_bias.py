"""How much longer do responses get when annotators like length, and is the gain only length?

Pairs are ranked by gold with some noise; then the fewest possible labels are turned round so that
the longer response wins in 50, 56, 60 or 70 % of the pairs. Null control: as many labels turned as
for 70 %, and the longer wins in half. A reward model, RL against it, and on held-out
prompts: words, and the share of the reward gained that is left when responses of equal length are
compared (Singhal et al. 2023, NRG). `--data` draws how often the longer response wins in real
comparisons.

    python experiments/length_bias.py
"""

from pathlib import Path
from statistics import mean

from lab import arms, figures, pairs, start
from lab.intervals import column, estimate, means, table, where

from minirlhf import rewards, winrate
from minirlhf.data import read_rankings


def planted(L, folder, *, count, share, blindly, seed):
    """Pairs in which the longer wins in `share`; blindly: as many turned, and it wins in half."""
    rows = arms.ranked(L, count=count, seed=seed)
    turned = pairs.plant_length(rows, share, blindly, seed)
    return {
        "data": arms.write(f"{folder}/rankings.jsonl", rows),
        "longer_wins": pairs.share_longer_wins([(row["responses"], row["ranks"]) for row in rows]),
        "turned": turned / len(rows),
    }


def arm(L, folder, *, share, blindly, count, steps, questions, seed):
    labels = L.arm(planted, count=count, share=share, blindly=blindly, seed=seed)
    rm = L.arm(arms.reward_model, data=labels["data"], seed=seed, validation=0.02)["rm"]
    policy = arms.train_policy(L, folder, reward=rm, steps=steps, seed=seed, kl_coef=0.02)
    reward_fn = rewards.load(rm, L.device)
    before = arms.answer(L, f"{folder}/before", L.sft, questions, seed=1000 + seed)
    after = arms.answer(L, f"{folder}/after", policy, questions, seed=1000 + seed)
    reward, new_reward = before.scores(reward_fn), after.scores(reward_fn)  # (P, 4)
    words, new_words = before.each(arms.words), after.each(arms.words)  # (P, 4)
    rewards_and_words = (reward, new_reward, words, new_words)
    return {
        **means(words=new_words - words),
        "longer_wins": labels["longer_wins"],
        "not_length": pairs.not_length(*[x.flatten().tolist() for x in rewards_and_words]),
        "prefers_longer": winrate.ranked_right(reward, words)["mean"],
    }


def main(L):
    count, steps, questions = L.pick(quick=(400, 18, 60), default=(1500, 60, 200))
    shares = L.pick(quick=(0.5, 0.6, 0.7), default=(0.5, 0.56, 0.6, 0.7))
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
    names = ("length planted", "as many turned, either way")
    figures.beside_control(axes, panels, "share", biased, null, names)
    if L.data:
        real = [r for r in read_rankings(L.data) if len(r.responses) == 2]
        share = pairs.share_longer_wins([(r.responses, r.ranks) for r in real])
        name = f"{Path(L.data).name[:24]}: {share:.3f}"
        axes[2].axvline(share, color="grey", linestyle=":", label=name)

    first, last = where(biased, share=shares[0]), where(biased, share=shares[-1])
    more = estimate(last, "words", minus=first)
    against_null = estimate(last, "words", minus=null)
    found = [
        *table(rows, variants, "words", "not_length", "prefers_longer"),
        f"words, from the first share to the last: {more:+.1f}",
        f"against as many labels turned either way: {against_null:+.1f}",
    ]
    falls = mean(column(last, "not_length")) < mean(column(first, "not_length"))
    L.finish(
        fig,
        rows,
        expected="the more often the longer response wins, the longer responses get in RL, and the "
        "smaller is the share of the reward gained at equal length; as many labels turned either "
        "way do nothing of the kind (null control).",
        found=found,
        agrees=more.mean > 0 and against_null.mean > 0 and falls,
        decided=more.sure and against_null.sure,
    )


if __name__ == "__main__":
    start(main)
