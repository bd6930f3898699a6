"""Labels of one model's responses from an AI, from people as good as it, and from a coin."""

import random
from itertools import combinations

import torch

import label
from lab import arms
from lab.principles import harmless, write_principles
from minirlhf import stats
from minirlhf.feedback.rankings import rank_by
from minirlhf.files import read_jsonl

SOFT, HARD, ONE_ORDER, PEOPLE, COIN = SOURCES = (
    "AI, soft",
    "AI, hard",
    "AI, one order",
    "people, equal accuracy",
    "coin",
)


def judged(L, folder, *, helpful, judge, count, seed):
    """The judge's preferences among four responses to each harmful request. An arm."""
    asked = {"split": "train", "keep": arms.is_harmful, "seed": 50 + seed, "temperature": 1.0}
    candidates = arms.answer(L, folder, helpful, count, **asked).file
    out = f"{folder}/rankings.jsonl"
    constitution = write_principles(folder, "harm")
    ai = {"annotator": "ai", "judge": judge, "constitution": constitution, "device": L.device}
    label.main(label.Settings(candidates=candidates, out=out, seed=seed, **ai))
    numbers = []  # of each pair's prompt
    answers = []  # P(A) with the harmless response as A, and as B
    for number, row in enumerate(read_jsonl(out)):
        truth = [harmless(row["prompt"], response) for response in row["responses"]]
        for i, j, once, swapped in row["asked"]:
            if truth[i] == truth[j] or None in (once, swapped):
                continue
            numbers.append(number)
            answers.append((once, swapped) if truth[i] > truth[j] else (swapped, once))
    prompt = torch.tensor(numbers)  # (N,)
    as_a, as_b = torch.tensor(answers, dtype=torch.float64).T  # (N,)
    chance = (as_a + 1 - as_b) / 2  # (N,) that the harmless one is better, by both orders
    right = (chance > 0.5).double()
    columns = {
        "one_order": ((as_a > 0.5).double() + (as_b < 0.5).double()) / 2,
        "both_orders": right,
        "likes_a": (as_a + as_b) / 2 - 0.5,
        "claims": (chance - 0.5).abs() + 0.5,
    }
    cells = {}
    for name, values in columns.items():
        cells[name] = stats.estimate(prompt, [values], [torch.ones_like(values)])
    calibration = stats.calibration(prompt, chance.logit(eps=1e-9))
    return {"data": out, "calibration": calibration, **arms.flat(cells)}


def preference(source, both_orders, one_order, truth, accuracy, rng) -> float | None:
    """The chance that the first of two responses is better, by one of SOURCES.

    truth: harmlessness of the two
    accuracy: of people, who guess where they see no difference
    """
    if source == SOFT:
        return both_orders
    if source == HARD:
        return both_orders if both_orders in (None, 0.5) else float(both_orders > 0.5)
    if source == ONE_ORDER:
        return one_order
    if source == COIN:
        return float(rng.random() < 0.5)
    right = rng.random() < (accuracy if truth[0] != truth[1] else 0.5)
    return float((truth[0] > truth[1]) == right)


def labels(L, folder, *, source, helpful, judge, count, seed):
    """Preferences from one of SOURCES, as chances, which train_rm.py learns from. An arm."""
    ai = L.arm(judged, helpful=helpful, judge=judge, count=count, seed=seed)
    rng = random.Random(seed)
    rows = read_jsonl(ai["data"])
    for row in rows:
        truth = [harmless(row["prompt"], response) for response in row["responses"]]
        one_order = {(i, j): once for i, j, once, _ in row["asked"]}
        chances = [[None] * 4 for _ in range(4)]
        for i, j in combinations(range(4), 2):
            answers = row["preferences"][i][j], one_order.get((i, j), 0.5)
            chance = preference(source, *answers, (truth[i], truth[j]), ai["both_orders"], rng)
            if chance is not None:
                chances[i][j], chances[j][i] = chance, 1 - chance
        wins = [sum(filter(None, chances_of_one)) for chances_of_one in chances]
        row["preferences"] = chances
        row["ranks"] = rank_by(wins)
    return {"data": arms.write(f"{folder}/rankings.jsonl", rows)}
