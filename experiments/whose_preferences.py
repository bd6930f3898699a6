"""Whose preferences does a reward model learn when annotators want opposite things?

Both groups care for gold; besides, one wants politeness and the other cannot stand it. Their labels
are mixed 50/50 to 90/10. What each group gets from the best of n by the reward model (0: a response
at random, 1: the best by its own taste); how far the disagreement bounds the reward model's
accuracy; and what a reward model recovers that reads the annotator's group in the prompt. Null
control: the group in the prompt is drawn at random.

    python experiments/whose_preferences.py
"""

from functools import partial
from statistics import mean

from lab import arms, figures, groups, start
from lab.intervals import column, estimate, means, table, where

from minirlhf import losses, rewards


def arm(L, folder, *, share, kind, count, prompts, samples, seed):
    """What both groups get, and the reward model's accuracy on either group's own order."""
    labelled = L.arm(groups.labels, count=count, share=share, kind=kind, seed=seed)
    pool = L.arm(arms.responses, count=prompts, samples=samples, seed=seed)
    answers = arms.read_answers(pool["answers"])
    # after two epochs it has not learnt to read the group
    rm = L.arm(arms.reward_model, data=labelled["data"], seed=seed, epochs=4.0)
    reward_fn = rewards.load(rm["rm"], L.device)
    result = {"bound": labelled["bound"], "agree": labelled["agree"]}
    result["validation"] = rm["validation_accuracy"]
    for group in groups.GROUPS:
        shown = answers.prompts
        if kind != groups.PLAIN:
            shown = [groups.tagged(prompt, group) for prompt in shown]
        scores = answers.scores(reward_fn, shown)  # (P, S)
        value = answers.each(partial(groups.worth, group=group))
        at_random, best = value.mean(), value.amax(1).mean()
        got = (losses.best_of_n(scores, value, samples) - at_random) / (best - at_random)
        result |= means(**{group: got})
    return result


def main(L):
    count, prompts, samples = L.pick(quick=(1000, 50, 16), default=(2000, 150, 32))
    shares = (0.5, 0.7, 0.9)
    variants = [
        {"share": share, "kind": kind} for share in shares for kind in (groups.PLAIN, groups.KNOWN)
    ]
    variants.append({"share": 0.7, "kind": groups.RANDOM})
    rows = L.run(arm, variants, count=count, prompts=prompts, samples=samples)
    plain, known, control = (
        where(rows, kind=kind) for kind in (groups.PLAIN, groups.KNOWN, groups.RANDOM)
    )

    label = "share of the majority"
    fig, (left, right) = figures.new(
        ("What each group gets", label, f"best of {samples}: 0 random, 1 its own best"),
        ("Accuracy on the mixed labels", label, "held-out accuracy"),
    )
    for group in groups.GROUPS:
        figures.curve(left, plain, "share", group, f"{group}, plain")
        figures.curve(left, known, "share", group, f"{group}, group known", linestyle="--")
        figures.curve(left, control, "share", group, f"{group}, group at random")
    figures.curve(right, plain, "share", "bound", "bound by disagreement", color="black")
    figures.curve(right, plain, "share", "validation", "plain")
    figures.curve(right, known, "share", "validation", "group known")

    first, last = where(plain, share=shares[0]), where(plain, share=shares[-1])
    middle = where(plain, share=0.7)
    loss = estimate(last, "minority", minus=first)
    gain = estimate(where(known, share=0.7), "minority", minus=middle)
    null = estimate(control, "minority", minus=middle)
    above = max(row["validation"] - row["bound"] for row in plain)
    found = [
        *table(rows, variants, "minority", "majority"),
        f"from the first share to the last: {loss:+.2f}",
        f"at 70 % knowing the group gives it {gain:+.2f}, a group at random {null:+.2f}",
        f"the groups agree on {mean(column(rows, 'agree')):.0%} of pairs",
        f"accuracy exceeds its bound by {above:+.3f} at most",
    ]
    L.finish(
        fig,
        rows,
        expected="one reward model averages or follows the majority, so the minority gets less the "
        "smaller it is; disagreement bounds accuracy; knowing the group gives the minority its own "
        "back, a group at random does not (null control).",
        found=found,
        agrees=loss.mean < 0 < gain.mean and null.mean < gain.mean,
        decided=loss.sure and gain.sure,
    )


if __name__ == "__main__":
    start(main)
