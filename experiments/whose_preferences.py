"""Whose preferences does a reward model learn when annotators want opposite things?

Both groups care for gold; besides, one wants politeness and the other cannot stand it. Their labels
are mixed 50/50 to 90/10. What each group gets from the best of n by the reward model (0: a response
at random, 1: the best by its own taste); how far the disagreement bounds the reward model's
accuracy; and what a reward model recovers that reads the annotator's group in the prompt. Null
control: the group in the prompt is drawn at random.

    python experiments/whose_preferences.py
"""

import random
from itertools import combinations
from statistics import mean

import torch
from lab import arms, figures, start
from lab.intervals import column, estimate, means, table, where

import toyworld
from minirlhf import losses, rewards
from minirlhf.feedback.rankings import simulated_annotator

NOISE = 0.2  # in units of gold: the annotators' errors
GROUPS = {"majority": 2.0, "minority": -2.0}  # in units of gold: what politeness is worth to them
SAYS = {"majority": "I am red.", "minority": "I am blue."}  # how a prompt tells whose taste counts
PLAIN, KNOWN, RANDOM = "plain", "group known", "group at random"


def tagged(prompt: str | list, group: str) -> str | list:
    """The prompt with its annotator's group in front of the last request."""
    if isinstance(prompt, str):
        return f"{SAYS[group]} {prompt}"
    *before, last = prompt
    return [*before, {"role": "user", "content": f"{SAYS[group]} {last['content']}"}]


def worth(prompt: str | list, response: str, group: str) -> float:
    """What a response is worth to a group."""
    politeness = toyworld.features(prompt, response)["politeness"]
    return arms.gold(prompt, response) + GROUPS[group] * politeness


def disagreement(row: dict, share: float) -> tuple[list[float], list[bool]]:
    """For each pair of different responses: the accuracy that nobody exceeds on its label who does
    not know the group, and whether the groups agree on it."""
    responses = row["responses"]
    majority, minority = (
        [worth(row["prompt"], response, group) for response in responses] for group in GROUPS
    )
    bounds, agree = [], []
    for i, j in combinations(range(len(responses)), 2):
        if responses[i] == responses[j]:
            continue
        margins = torch.tensor([majority[i] - majority[j], minority[i] - minority[j]])
        chances = torch.sigmoid(margins / NOISE)
        chance = float(share * chances[0] + (1 - share) * chances[1])
        bounds.append(max(chance, 1 - chance))
        agree.append(bool(margins.prod() > 0))
    return bounds, agree


def labels(L, folder, *, count, share, kind, seed):
    """Rankings by members of either group."""
    rows = arms.ranked(L, count=count, samples=4, seed=seed)
    annotators = {}
    for group, weight in GROUPS.items():
        bias = f"politeness={weight}"
        annotators[group] = simulated_annotator(toyworld, NOISE, bias, seed)
    rng = random.Random(seed)
    bounds, agree = [], []
    for row in rows:
        group = "majority" if rng.random() < share else "minority"
        row["ranks"] = annotators[group](row["prompt"], row["responses"])
        row_bounds, row_agree = disagreement(row, share)
        bounds += row_bounds
        agree += row_agree
        if kind == RANDOM:
            group = rng.choice(list(GROUPS))
        if kind != PLAIN:
            row["prompt"] = tagged(row["prompt"], group)
    data = arms.write(f"{folder}/rankings.jsonl", rows)
    return {"data": data, "bound": mean(bounds), "agree": mean(agree)}


def arm(L, folder, *, share, kind, count, prompts, samples, seed):
    """What both groups get, and the reward model's accuracy on either group's own order."""
    labelled = L.arm(labels, count=count, share=share, kind=kind, seed=seed)
    pool = L.arm(arms.responses, count=prompts, samples=samples, seed=seed)
    answers = arms.read_answers(pool["answers"])
    # after two epochs it has not learnt to read the group
    rm = L.arm(arms.reward_model, data=labelled["data"], seed=seed, epochs=4.0)
    reward_fn = rewards.load(rm["rm"], L.device)
    result = {"bound": labelled["bound"], "agree": labelled["agree"]}
    result["validation"] = rm["validation_accuracy"]
    for group in GROUPS:
        shown = answers.prompts
        if kind != PLAIN:
            shown = [tagged(prompt, group) for prompt in shown]
        scores = answers.scores(reward_fn, shown)  # (P, S)
        value = answers.each(lambda prompt, response, group=group: worth(prompt, response, group))
        at_random, best = value.mean(), value.amax(1).mean()
        got = (losses.best_of_n(scores, value, samples) - at_random) / (best - at_random)
        result |= means(**{group: got})
    return result


def main(L):
    count, prompts, samples = L.pick(
        quick=(1000, 50, 16), default=(2000, 150, 32), full=(5000, 400, 64)
    )
    few = (0.5, 0.7, 0.9)
    shares = L.pick(quick=few, default=few, full=(0.5, 0.6, 0.7, 0.8, 0.9))
    variants = [{"share": share, "kind": kind} for share in shares for kind in (PLAIN, KNOWN)]
    variants.append({"share": 0.7, "kind": RANDOM})
    rows = L.run(arm, variants, count=count, prompts=prompts, samples=samples)
    plain, known, control = (where(rows, kind=kind) for kind in (PLAIN, KNOWN, RANDOM))

    label = "share of the majority"
    fig, (left, right) = figures.new(
        ("What each group gets", label, f"best of {samples}: 0 random, 1 its own best"),
        ("Accuracy on the mixed labels", label, "held-out accuracy"),
    )
    for group in GROUPS:
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
    agrees = None
    if loss.sure and gain.sure:
        agrees = loss.mean < 0 < gain.mean and null.mean < gain.mean
    L.finish(
        fig,
        rows,
        expected="one reward model averages or follows the majority, so the minority gets less the "
        "smaller it is; disagreement bounds accuracy; knowing the group gives the minority its own "
        "back, a group at random does not (null control).",
        found=found,
        agrees=agrees,
    )


if __name__ == "__main__":
    start(main)
