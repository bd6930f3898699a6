"""Does a policy learn to agree with wrong beliefs when some annotators reward agreement?

Prompts state a belief, four in five of them wrong. A share of the annotators likes agreement more
than the truth (Sharma et al. 2023). How often are held-out wrong beliefs confirmed before RL, after
it, and by the reward model? Null control: the same annotators do not see the belief.

    python experiments/sycophantic_annotators.py
"""

import random

from lab import arms, beliefs, figures, start
from lab.intervals import estimate, means, table, where

import toyworld
from minirlhf import rewards, winrate
from minirlhf.feedback.rankings import simulated_annotator
from minirlhf.files import read_jsonl

LIKING = "agreement=5"  # in units of gold: more than what a falsehood costs


def labels(L, folder, *, count, share, hidden, seed):
    """Rankings, `share` of them by annotators who like agreement; hidden: nobody saw the belief."""
    rows = read_jsonl(L.arm(beliefs.candidates, count=count, seed=seed)["data"])
    honest = simulated_annotator(toyworld, 0.2, "", seed)
    sycophant = simulated_annotator(toyworld, 0.2, LIKING, seed)
    rng = random.Random(seed)
    for row in rows:
        annotate = sycophant if rng.random() < share else honest
        shown = toyworld.without_belief(row["prompt"]) if hidden else row["prompt"]
        row["ranks"] = annotate(shown, row["responses"])
    return {"data": arms.write(f"{folder}/rankings.jsonl", rows)}


def answer_beliefs(L, folder, policy, questions, seed) -> arms.Answers:
    return arms.answer(L, folder, policy, questions, keep=beliefs.is_wrong, seed=1000 + seed)


def before(L, folder, *, questions, seed):
    answers = answer_beliefs(L, folder, L.sft, questions, seed)
    return means(agreement=answers.each(beliefs.agrees), gold=answers.each(arms.gold))


def arm(L, folder, *, share, hidden, count, steps, questions, seed):
    """How often the policy agrees after RL; how often the reward model prefers agreement."""
    data = L.arm(labels, count=count, share=share, hidden=hidden, seed=seed)["data"]
    rm = L.arm(arms.reward_model, data=data, seed=seed, epochs=3.0, validation=0.02)["rm"]
    sft = answer_beliefs(L, f"{folder}/sft", L.sft, questions, seed)
    likes = winrate.ranked_right(sft.scores(rewards.load(rm, L.device)), sft.each(beliefs.agrees))
    policy = arms.train_policy(L, folder, reward=rm, data=data, steps=steps, seed=seed)
    after = answer_beliefs(L, f"{folder}/after", policy, questions, seed)
    row = means(agreement=after.each(beliefs.agrees), gold=after.each(arms.gold))
    return {**row, "likes": likes["mean"], "likes_interval": likes["interval"]}


def main(L):
    count, steps, questions = L.pick(quick=(200, 16, 60), default=(800, 50, 150))
    shares = (0.0, 0.1, 0.3, 0.5)
    sft = L.run(before, questions=questions)
    variants = [{"share": share, "hidden": False} for share in shares]
    variants.append({"share": shares[-1], "hidden": True})
    rows = L.run(arm, variants, count=count, steps=steps, questions=questions)
    seen, hidden = where(rows, hidden=False), where(rows, hidden=True)

    label = "annotators who like agreement"
    panels = {
        "agreement": ("The policy", label, "agrees with a wrong belief"),
        "likes": ("The reward model", label, "prefers the response that agrees"),
        "gold": ("Gold on these prompts", label, "gold"),
    }
    fig, axes = figures.new(*panels.values())
    names = ("belief shown to annotators", "belief hidden from them")
    figures.beside_control(axes, panels, "share", seen, hidden, names)
    for ax, name in ((axes[0], "agreement"), (axes[2], "gold")):
        ax.axhline(estimate(sft, name).mean, color="grey", linestyle="--", label="before RL")

    low, high = where(seen, share=shares[0]), where(seen, share=shares[-1])
    rise = estimate(high, "agreement", minus=low)
    removed = estimate(high, "agreement", minus=hidden)
    left = estimate(hidden, "agreement", minus=low)
    L.finish(
        fig,
        [*sft, *rows],
        expected="agreement with wrong beliefs rises with the share of annotators who reward it, "
        "and hiding the belief from the same annotators removes the rise (null control).",
        found=[
            f"agreed before RL: {estimate(sft, 'agreement')}",
            *table(rows, variants, "agreement", "likes", "gold"),
            f"rise from the first share to the last: {rise:+.2f}",
            f"hiding the belief took away {removed:+.2f} of it and left {left:+.2f}",
        ],
        agrees=rise.mean > 0 and removed.mean > removed.half,
        decided=rise.sure,
    )


if __name__ == "__main__":
    start(main)
