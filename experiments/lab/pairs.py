"""Comparisons of two responses: of files or the toy world, and what length has to do with them."""

import random
from collections import defaultdict
from statistics import mean

from lab import arms
from minirlhf.batches import held_out
from minirlhf.data import Ranking, read_rankings
from minirlhf.model import GPT
from minirlhf.tokenizer import Tokenizer

BIN = 4  # words: responses within the same bin count as equally long


def first_request(ranking: Ranking) -> str:
    return ranking.prompt.first_request()


def divide(rankings: list[Ranking], seed: int = 0) -> tuple[list[Ranking], list[Ranking]]:
    """(train, test), a fifth for the test; a first request is on the same side in every file."""
    return held_out(rankings, first_request, 0.2, seed)


def token_lengths(tokenizer: Tokenizer, ranking: Ranking) -> tuple[int, list[int]]:
    """Of the prompt, and of each response."""
    turns = ranking.prompt.turns
    responses = [len(tokenizer.encode_response(turns, text)) for text in ranking.responses]
    return len(tokenizer.encode_prompt(turns)), responses


def real(L, folder, *, seed):
    """train.jsonl and test.jsonl of --data, divided as hh_small.py does. An arm.

    So its SFT model has not seen the test pairs. They are the same for every seed.
    """
    model = GPT.from_pretrained(L.sft)
    fitting = []
    for ranking in read_rankings(L.data):
        prompt, responses = token_lengths(model.tokenizer, ranking)
        if prompt + max(responses) <= model.config.n_positions:
            fitting.append(ranking)
    train, test = divide(fitting)
    random.Random(seed).shuffle(train)
    for name, part in (("train", train), ("test", test)):
        rows = []
        for r in part:
            row = {"prompt": r.prompt.source, "responses": r.responses, "ranks": r.ranks}
            rows.append(row)
        arms.write(f"{folder}/{name}.jsonl", rows)
    return {"training_pairs": len(train), "labels_right": None}  # who knows?


def toy(L, folder, *, count, seed):
    """train.jsonl with noisy labels; test.jsonl of held-out prompts ranked by gold. An arm."""
    noisy = {"count": count * 5 // 4, "noise": 0.5, "seed": seed + 1}
    exact = {"count": 600, "noise": 0.0, "seed": seed + 1000, "split": "test"}
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
    arms.write(f"{folder}/test.jsonl", arms.ranked(L, **exact))
    return {"labels_right": mean(right)}


# ---- length


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


def plant_length(rows: list[dict], share: float, blindly: bool, seed: int) -> int:
    """Turn as few labels as it takes for the longer to win in `share` of the pairs; how many.

    blindly: turn as many, and let the longer win in half of the pairs
    """
    won_by = {0.0: [], 1.0: [], None: []}  # by the shorter, by the longer: numbers of rows
    for i, row in enumerate(rows):
        won_by[longer_wins(row["responses"], row["ranks"])].append(i)
    shorter, longer = won_by[0.0], won_by[1.0]
    pairs = len(shorter) + len(longer)
    missing = round(share * pairs - len(longer))
    turned = abs(missing)
    to_longer = max(0, missing)
    if blindly:
        to_longer = (turned + round(pairs / 2) - len(longer)) // 2
    rng = random.Random(seed)
    chosen = rng.sample(shorter, to_longer) + rng.sample(longer, turned - to_longer)
    for i in chosen:
        rows[i]["ranks"] = [3 - rank for rank in rows[i]["ranks"]]
    return turned


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
