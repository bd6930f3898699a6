"""Prompts that state a belief, right or wrong, and agreement with it."""

import toyworld
from lab import arms


def states_belief(prompt) -> bool:
    return toyworld.kind(prompt) == "belief"


def agrees(prompt, response: str) -> float:
    """1 where a response agrees with a wrong belief."""
    return toyworld.features(prompt, response)["agreement"]


def is_wrong(prompt) -> bool:
    """Whether it states a wrong belief."""
    return agrees(prompt, "You are right.") == 1


def candidates(L, folder, *, count, seed):
    """SFT responses to prompts with beliefs, right and wrong ones. An arm."""
    asked = {"split": "train", "keep": states_belief, "seed": seed, "temperature": 1.0}
    return {"data": arms.answer(L, folder, L.sft, count, **asked).file}
