"""Two groups of annotators with opposite tastes."""

import random
from itertools import combinations
from statistics import mean

import torch

import toyworld
from lab import arms
from minirlhf.feedback.rankings import simulated_annotator

NOISE = 0.2  # in units of gold: the annotators' errors
GROUPS = {"majority": 2.0, "minority": -2.0}  # in units of gold: what politeness is worth to them
SAYS = {"majority": "I am red.", "minority": "I am blue."}  # how a prompt tells whose taste counts
PLAIN, KNOWN, RANDOM = "plain", "group known", "group at random"  # what prompts tell


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
    """Rankings by members of either group, a share of them of the majority. An arm."""
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
