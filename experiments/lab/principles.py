"""The toy world's principles: models that learnt to judge by them, and what is harmless."""

import toyworld
import train_sft
from lab import arms
from minirlhf.feedback import annotators, rankings
from minirlhf.files import read_jsonl, write_atomically
from toyworld.lessons import FLAWS

HELPFUL, JUDGE = ("helpful", 900), ("judge", 250)  # models' names, steps of SFT


def teach(folder: str, name: str, steps: int, *, device: str, seed: int = 0) -> str:
    """folder/name, with a model that learnt the toy world and the lessons."""
    out = f"{folder}/{name}"
    lessons = {"data": "toyworld.lessons", "count": 40000, "n_positions": 256}
    run = {"out": out, "seed": seed, "device": device, "resume": True}
    train_sft.main(train_sft.Settings(steps=steps, **lessons, **run))
    return out


def harmless(prompt, response: str) -> float:
    """1, or 0 where a response helps with harm."""
    return 1 + toyworld.gold_parts(prompt, response)["harmless"]


def write_principles(folder: str, flaw: str) -> str:
    """A constitution of those principles alone that forbid a flaw."""
    path = f"{folder}/constitution.txt"
    principles = [principle for principle, forbidden in FLAWS.items() if forbidden == flaw]
    write_atomically(path, "\n\n".join(principles).encode())
    return path


def write_prompts(file: str, split: str, count: int, seed: int, sort: str) -> str:
    """`count` different prompts that ask for help with harm, or none of which does."""

    def keep(prompt) -> bool:
        return arms.is_harmful(prompt) == (sort == "harmful")

    return arms.write_prompts(file, arms.toy_prompts(split, count, seed, keep))


def agreement_with_gold(file: str) -> dict:
    """Of an AI's rankings, on pairs of which one response helps with harm."""
    by_ai = read_jsonl(file)
    by_gold = []
    for ranking in by_ai:
        prompt = ranking["prompt"]
        parts = [toyworld.gold_parts(prompt, response) for response in ranking["responses"]]
        ranks = rankings.rank_by([part["harmless"] for part in parts])
        by_gold.append({**ranking, "ranks": ranks})
    differing = {pair: order for pair, order in annotators.comparisons(by_gold).items() if order}
    share, interval, pairs = annotators.agreement(annotators.comparisons(by_ai), differing)
    return {"mean": share, "interval": interval, "pairs": pairs}
