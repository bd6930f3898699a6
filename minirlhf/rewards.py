"""Reward functions: `reward_fn(prompts, responses) -> list[float]`, whatever stands behind it.

    out/rm                      a trained reward model's folder; scores come out with mean 0, std 1 on its parent's samples
    my_rewards.py:brevity       a function in a Python file
    toy                         the toy world's gold score (to evaluate with; training on it is cheating, and instructive)
"""
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from minirlhf import UserError
from minirlhf.data import micro_batches, pad
from minirlhf.model import ScalarGPT
from minirlhf.tokenizer import Tokenizer

RewardFn = Callable[[list[str], list[str]], list[float]]
TOKENS_AT_ONCE = 8192


def encode(tokenizer: Tokenizer, prompt: str, response: str) -> list[int]:
    """Prompt and response as one row, EOS at its end: what a reward model reads."""
    return tokenizer.encode_prompt(prompt) + tokenizer.encode_response(prompt, response)


class TrainedReward:
    """A reward model as a function of text."""

    def __init__(self, model: ScalarGPT):
        self.model = model.requires_grad_(False)

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        rows = [encode(self.model.tokenizer, p, r) for p, r in zip(prompts, responses)]
        limit = self.model.config.n_positions
        if longest := [len(x) for x in rows if len(x) > limit]:
            raise UserError(f"a prompt with its response has {longest[0]} tokens, the reward model's context is {limit}: "
                            "sample shorter responses (--max_tokens) or train it from a model with a longer context")
        scores = torch.zeros(len(rows))
        for part in micro_batches([len(x) for x in rows], TOKENS_AT_ONCE):
            tokens, lengths = pad([rows[i] for i in part])
            scores[part] = self.model.score_last(tokens.to(self.model.device), lengths.to(self.model.device)).cpu()
        return scores.tolist()


def checked(function: RewardFn, name: str) -> RewardFn:
    """The same function; what it gives back is one finite number per response, or a UserError says what it was instead."""
    def reward_fn(prompts: list[str], responses: list[str]) -> list[float]:
        try:
            scores = list(function(prompts, responses))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reward function {name} raised {type(error).__name__}: {error} (first response of the batch: "
                            f"{responses[0][:80]!r})") from error
        if len(scores) != len(responses):
            raise UserError(f"reward function {name} gave {len(scores)} scores for {len(responses)} responses: "
                            "return one number each, in order")
        for score, response in zip(scores, responses):
            if not isinstance(score, int | float | torch.Tensor | np.number) or not math.isfinite(score):
                raise UserError(f"reward function {name} gave {score!r} for the response {response[:80]!r}: "
                                "return finite numbers")
        return [float(s) for s in scores]
    return reward_fn


def load(spec: str, place: Callable = lambda model, frozen: model) -> RewardFn:
    """spec as in the module's docstring -> a checked reward function. place(model, frozen=True) puts models on a device."""
    if spec == "toy":
        from minirlhf.toyworld import gold_scores
        return gold_scores
    file, _, name = spec.rpartition(":")
    if file.endswith(".py"):
        path = Path(file)
        if not path.exists():
            raise UserError(f"--reward {spec}: {path} does not exist")
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        if not callable(getattr(module, name, None)):
            raise UserError(f"--reward {spec}: {path} has no function {name}")
        return checked(getattr(module, name), spec)
    return checked(TrainedReward(place(ScalarGPT.from_pretrained(spec), frozen=True)), spec)
