"""Reward functions: `reward_fn(prompts, responses) -> list[float]`, whatever stands behind them.

    out/rm                    a reward model's folder; mean 0, std 1 on the samples of a policy
    my_rewards.py:brevity     a function in a Python file
    toyworld                  a world's `reward` (minirlhf/world.py)
    out/rm1,out/rm2           several: an ensemble (mean, min or uwo), or a weighted sum

A function of one's own gets the prompts as the records had them and the responses (as `responses`
or `completions`), and whatever other fields of the records it names:

    def right(prompts, responses, answer):
        return [float(a in r) for a, r in zip(answer, responses)]

What it does to its arguments changes nothing: they are copies. None is no score for a response,
which training does not learn from, sample.py chooses last, and evaluate.py leaves out.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from minirlhf import UserError, cli, losses, readers, stats, user_function, world
from minirlhf.data import Prompt
from minirlhf.device import open_model
from minirlhf.model import ScalarGPT
from minirlhf.packing import Sequence, packed_micro_batches
from minirlhf.rollout import TOKENS_AT_ONCE
from minirlhf.user_function import RewardFn


class TrainedReward:
    """A reward model as a function of text.

    A response that ends beyond the model's context is cut to what fits, and EOS.
    """

    def __init__(self, model: ScalarGPT):
        self.model = model
        self.tokenizer = model.tokenizer

    def has_room(self, prompt: Prompt) -> bool:
        """Whether one token of a response, and EOS, fit behind the prompt."""
        return len(self.tokenizer.encode_prompt(prompt.turns)) <= self.model.config.n_positions - 2

    def encode(self, prompt: Prompt, response: str) -> Sequence:
        """What is scored: the prompt's ids, and the response's with EOS."""
        limit = self.model.config.n_positions
        ids = self.tokenizer.encode_prompt(prompt.turns)
        response_ids = self.tokenizer.encode_response(prompt.turns, response)
        if len(ids) + len(response_ids) <= limit:
            return ids, response_ids
        if not self.has_room(prompt):
            raise UserError(
                f"a prompt of {len(ids)} tokens leaves a response no room in the reward model's "
                f"context of {limit}: use shorter prompts, or a model with a longer context"
            )
        return ids, [*response_ids[: limit - 1 - len(ids)], self.tokenizer.eos_id]

    @torch.no_grad()
    def __call__(self, prompts: list[Prompt], responses: list[str]) -> list[float]:
        encoded = []
        for prompt, response in zip(prompts, responses):
            prompt_ids, response_ids = self.encode(prompt, response)
            encoded.append((tuple(prompt_ids), tuple(response_ids)))
        # equal texts get one score, to the last bit
        different = [(list(prompt), list(response)) for prompt, response in dict.fromkeys(encoded)]
        scores = torch.zeros(len(different))
        for part in packed_micro_batches(different, TOKENS_AT_ONCE):
            scores[part] = self.model.score_sequences([different[i] for i in part]).cpu()
        if not scores.isfinite().all():
            raise UserError("the reward model gives scores that are not finite: train it again")
        return scores[stats.numbered(encoded)].tolist()


def members(spec: str) -> list[str]:
    """The parts of a comma-separated spec. A path that exists is one part, whatever its name."""
    names = readers.names(spec)
    if not all(names):
        raise UserError(
            f"--reward {spec!r}: name a folder, file.py:function or world; commas between"
        )
    return names


def models_named(spec: str) -> list[str]:
    """Those members that are models: folders, or names on the hub."""
    return [name for name in members(spec) if function_of(name) is None]


def function_of(name: str) -> Callable | None:
    """The function that a member names, in a file or a world. None: it is a model's folder."""
    if user_function.file_of(name):
        return user_function.load(name)
    module = world.find(name)
    if module is None:
        return None
    if not hasattr(module, "reward"):
        raise UserError(
            f"--reward {name} has no function `reward`: add one, or name another as "
            f"file.py:function ({user_function.functions_in(module)})"
        )
    return module.reward


def columns(*specs: str) -> set[str] | None:
    """Fields of records that the functions among rewards ask for. None: all (**columns)."""
    asked = set()
    for name in [name for spec in specs if spec for name in members(spec)]:
        function = function_of(name)
        if function is None:
            continue
        parameters = user_function.parameters_of(function)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return None
        asked |= parameters.keys()
    return asked


def load_one(name: str, device: torch.device | str, dtype: str) -> RewardFn:
    function = function_of(name)
    if function is not None:
        return user_function.as_reward(function, name)
    model = open_model(ScalarGPT, name, device, dtype)
    if not model.score.weight.any():
        raise UserError(
            f"--reward {name} is a language model without a reward head: "
            f"make a reward model of it with train_rm.py --init {name}"
        )
    return TrainedReward(model)


def parse_weights(weights: str, count: int) -> torch.Tensor:
    """'0.7,0.3' -> (M,) float32."""
    numbers = cli.numbers(weights)
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise UserError(f"--reward_weights {weights}: name one number for each of {count} rewards")
    return torch.tensor(numbers)


class SeveralRewards:
    """A weighted sum of rewards, or an ensemble of reward models."""

    def __init__(self, names: list[str], functions: list[RewardFn], factors, ensemble: str):
        short = [Path(name.rpartition(":")[2]).name for name in names]
        self.names = short if len(set(short)) == len(short) else names
        self.functions = functions
        self.factors = factors  # (M,), or None for an ensemble
        self.ensemble = ensemble

    def each(self, prompts: list[Prompt], responses: list[str]) -> torch.Tensor:
        """Every reward's own scores (M, B)."""
        return torch.tensor([function(prompts, responses) for function in self.functions])

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """(M, B) -> (B,). In a weighted sum a score that is missing (NaN) counts as 0."""
        if self.factors is None:
            return losses.combine_scores(scores, self.ensemble)
        missing = scores.isnan().all(0)  # (B,)
        return (self.factors @ scores.nan_to_num(0.0)).masked_fill(missing, math.nan)

    def __call__(self, prompts: list[Prompt], responses: list[str]) -> list[float]:
        return self.combine(self.each(prompts, responses)).tolist()


def models(function: RewardFn) -> list[ScalarGPT]:
    """The reward models behind a reward function."""
    if isinstance(function, SeveralRewards):
        return [model for member in function.functions for model in models(member)]
    return [function.model] if isinstance(function, TrainedReward) else []


def load(
    spec: str,
    device: torch.device | str = "auto",
    dtype: str = "auto",
    *,
    weights: str = "",
    ensemble: str = "mean",
) -> RewardFn:
    """A reward function from its spec (see the top of this file).

    weights: "0.7,0.3" makes several members a weighted sum; else they are an ensemble
    ensemble: mean, min or uwo, as in losses.combine_scores
    """
    names = members(spec)
    if ensemble != "mean" and (weights or len(names) < 2):
        raise UserError(
            f"--ensemble {ensemble} combines several rewards (--reward out/rm1,out/rm2), unweighted"
        )
    factors = parse_weights(weights, len(names)) if weights else None
    functions = [load_one(name, device, dtype) for name in names]
    if len(functions) == 1 and factors is None:
        return functions[0]

    return SeveralRewards(names, functions, factors, ensemble)
