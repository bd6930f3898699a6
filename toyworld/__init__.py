"""The toy world, a plug-in as a user would write one (see minirlhf/world.py).

words.txt, words.py     all its words
world.py                requests: the kinds, drawing them, reading them back
writers.py              prompts and demonstrations
gold.py                 the hidden score; judges.py judges content, reading.py reads responses
lessons.py              further demonstrations, for a model that judges, criticises and revises

python -m toyworld --count 2      # prompts of each kind, demonstrations, their gold scores
"""

from toyworld.gold import features, gold_parts
from toyworld.world import KINDS, OPEN_ENDED, Prompt, kind, without_belief
from toyworld.writers import demonstrations, prompts

__all__ = [
    "KINDS",
    "OPEN_ENDED",
    "annotate",
    "demonstrations",
    "features",
    "gold_parts",
    "kind",
    "prompts",
    "reward",
    "without_belief",
]


def reward(prompts: list[Prompt], responses: list[str]) -> list[float]:
    """The gold score. Evaluate with it; to train on it is cheating, and instructive."""
    pairs = zip(prompts, responses, strict=True)
    return [gold_parts(prompt, response)["total"] for prompt, response in pairs]


def annotate(prompt: Prompt, responses: list[str]) -> list[float]:
    """How much an annotator without noise or bias likes each response."""
    return reward([prompt] * len(responses), responses)
