"""Pairs of people's preferences, and whether a reward model knows more than a ruler."""

import math
from pathlib import Path

import torch

import sample
from lab import arms
from lab.intervals import column, where
from lab.pairs import divide, first_request, token_lengths
from minirlhf import rewards, stats
from minirlhf.data import Ranking, read_rankings
from minirlhf.model import ScalarGPT


def split(files: list[Path], seed: int, most: tuple) -> tuple[dict, dict]:
    """{file: pairs} for training and for the test.

    most: pairs of a file on either side, None for all
    """
    train, test = {}, {}
    for file in files:
        part, rest = divide(read_rankings(str(file)), seed)
        train[file.name] = part[: most[0]]
        test[file.name] = rest[: most[1]]
    return train, test


def as_pairs(rankings: list[Ranking]) -> list[dict]:
    pairs = []
    for ranking in rankings:
        chosen, rejected = ranking.responses
        pairs.append({"prompt": ranking.prompt.source, "chosen": chosen, "rejected": rejected})
    return pairs


def predicted_accuracy(parameters: int, pairs: int) -> float:
    """By the fit of Bai et al. 2022a, section 3.3."""
    return 0.72 + 0.007 * math.log(parameters / 1e11) + 0.015 * math.log(pairs / 8e4)


def accuracy(rows: list[dict], name: str) -> dict[str, float]:
    """Share of pairs ordered as people did (a tie counts half), its interval, how many.

    name: of the margin; first requests are the independent units
    """
    request = stats.numbered(column(rows, "first_request"))  # (N,)
    return stats.accuracy(request, torch.tensor(column(rows, name)))


def measure(model: ScalarGPT, test: dict[str, list[Ranking]]) -> list[dict]:
    """Each held-out pair that fits the model: by how much the chosen response scores and is longer.

    test: {file: its pairs}
    """
    reward = rewards.TrainedReward(model)
    rows = []
    for file, rankings in test.items():
        for ranking in rankings:
            prompt, (chosen, rejected) = token_lengths(model.tokenizer, ranking)
            if prompt + max(chosen, rejected) > model.config.n_positions:
                continue
            scores = reward([ranking.prompt] * 2, ranking.responses)
            row = {"file": file, "prompt": ranking.prompt.source, "prompt_length": prompt}
            row["first_request"] = first_request(ranking)
            rows.append({**row, "margin": scores[0] - scores[1], "longer": chosen - rejected})
    return rows


def summary(rows: list[dict], files: list[str]) -> dict:
    """Accuracies of the reward model and of a ruler, on what `measure` returns."""
    ruler_wrong = [row for row in rows if row["longer"] <= 0]
    result = {
        "reward_model": accuracy(rows, "margin"),
        "longer_is_better": accuracy(rows, "longer"),
        "where_the_longer_lost": accuracy(ruler_wrong, "margin"),
    }
    for file in files:
        result[file] = accuracy(where(rows, file=file), "margin")
    return result


def compare(sft: str, ppo: str, asked: list[str | list], max_tokens: int, seed: int) -> None:
    """Print what the policy says before and after PPO."""
    prompts = arms.write_prompts(f"{ppo}/questions.jsonl", asked)
    said = []
    for init in (sft, ppo):
        file = f"{init}/answers.jsonl"
        sampling = {"max_tokens": max_tokens, "temperature": 0.7, "seed": seed}
        sample.main(sample.Settings(init=init, data=prompts, candidates_out=file, **sampling))
        said.append(arms.read_answers(file).responses)
    for prompt, old, new in zip(asked, *said):
        print(f"\n{str(prompt).strip()[-200:]}\n  SFT: {old[0][:300]}\n  PPO: {new[0][:300]}")
