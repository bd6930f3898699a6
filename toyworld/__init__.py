"""The toy world, a plug-in as a user would write one: it imports nothing from minirlhf.

minirlhf/world.py says what a world may have; world.py writes prompts and demonstrations, gold.py
judges responses, lessons.py teaches a model to judge and to revise.
"""

from toyworld.gold import features, gold_parts
from toyworld.world import KINDS, OPEN_ENDED, Prompt, kind, prompts, without_belief
from toyworld.writers import demonstrations

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
    """The gold score: to evaluate with. To train on it is cheating, and instructive."""
    pairs = zip(prompts, responses, strict=True)
    return [gold_parts(prompt, response)["total"] for prompt, response in pairs]


def annotate(prompt: Prompt, responses: list[str]) -> list[float]:
    """How much a simulated annotator without noise or bias likes each response."""
    return reward([prompt] * len(responses), responses)
