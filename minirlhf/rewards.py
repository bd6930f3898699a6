"""Reward functions: `reward_fn(prompts, responses) -> list[float]`, whatever stands behind it.

    out/rm                      a trained reward model's folder; scores come out with mean 0, std 1 on its parent's samples
    my_rewards.py:brevity       a function in a Python file
    toy                         the toy world's gold score (to evaluate with; training on it is cheating, and instructive)
    a,b,c                       an ensemble of any of these: their mean, min or uwo (mean - weight * variance), see `load`
    a*0.7+b,c*-0.3              a weighted sum of any of these
"""
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from minirlhf import UserError, losses
from minirlhf.data import micro_batches, pad
from minirlhf.model import ScalarGPT
from minirlhf.tokenizer import Tokenizer

RewardFn = Callable[[list[str], list[str]], list[float]]
TOKENS_AT_ONCE = 8192
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"


def encode(tokenizer: Tokenizer, prompt: str, response: str) -> list[int]:
    """Prompt and response as one row, EOS at its end: what a reward model reads."""
    return tokenizer.encode_prompt(prompt) + tokenizer.encode_response(prompt, response)


class TrainedReward:
    """A reward model as a function of text. Of a response that ends beyond the context (one that was cut off gets an EOS more, and
    broken characters take more tokens as text) it reads what fits, and EOS."""

    def __init__(self, model: ScalarGPT):
        self.model = model.requires_grad_(False)

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        rows = [encode(self.model.tokenizer, p, r) for p, r in zip(prompts, responses)]
        limit, eos = self.model.config.n_positions, self.model.tokenizer.eos_id
        for prompt in (p for p, x in zip(prompts, rows) if len(x) > limit):
            if (size := len(self.model.tokenizer.encode_prompt(prompt))) > limit - 2:
                raise UserError(f"a prompt of {size} tokens leaves a response no room in the reward model's context of {limit}: "
                                "take shorter prompts, or train it from a model with a longer context")
        rows = [x if len(x) <= limit else [*x[: limit - 1], eos] for x in rows]
        scores = torch.zeros(len(rows))
        for part in micro_batches([len(x) for x in rows], TOKENS_AT_ONCE):
            tokens, lengths = pad([rows[i] for i in part])
            scores[part] = self.model.score_last(tokens.to(self.model.device), lengths.to(self.model.device)).cpu()
        return scores.tolist()


def checked(function: RewardFn, name: str) -> RewardFn:
    """The same function; what it gives back is one finite number per response, or a UserError says what it was instead."""
    def reward_fn(prompts: list[str], responses: list[str]) -> list[float]:
        try:
            scores = function(prompts, responses)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reward function {name} raised {type(error).__name__}: {error} ("
                            f"{first_that_fails(function, prompts, responses)})") from error
        if not hasattr(scores, "__len__") or isinstance(scores, str | dict):
            raise UserError(f"reward function {name} gave {scores!r}: return a list of numbers, one for each response")
        if len(scores) != len(responses):
            raise UserError(f"reward function {name} gave {len(scores)} scores for {len(responses)} responses: "
                            "return one number each, in order")
        for score, response in zip(scores, responses):
            if not isinstance(score, int | float | torch.Tensor | np.number) or not math.isfinite(score):
                raise UserError(f"reward function {name} gave {score!r} for the response {response[:80]!r}: "
                                "return finite numbers")
        return [float(s) for s in scores]
    return reward_fn


def first_that_fails(function: RewardFn, prompts: list[str], responses: list[str]) -> str:
    """Asks for one response at a time, to name the one that the function stumbled over."""
    for i, (prompt, response) in enumerate(zip(prompts, responses)):
        try:
            function([prompt], [response])
        except Exception:
            return f"first at response {i} of {len(responses)}: {response[:80]!r}, to the prompt {prompt[-80:]!r}"
    return f"for no response alone, only for the {len(responses)} together"


def load_function(spec: str, flag: str = "--reward") -> Callable:
    """file.py:name -> that function."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.exists():
        raise UserError(f"{flag} {spec}: {path} does not exist")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{flag} {spec}: {path} cannot be imported, {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"{flag} {spec}: {path} has no function {name}")
    return getattr(module, name)


def parse(spec: str) -> list[tuple[list[str], float]]:
    """'a,b*0.7+c' -> [(['a', 'b'], 0.7), (['c'], 1.0)]: a comma binds tighter than a star, a star than a plus."""
    if Path(spec).exists():                        # whatever signs its name holds
        return [([spec], 1.0)]
    terms = [re.fullmatch(rf"\s*([^*,]+(?:,[^*,]+)*)(?:\*({NUMBER}))?\s*", term) for term in spec.split("+")]
    if not all(terms):
        raise UserError(f"--reward {spec} is no reward: write folders and file.py:function, weighted as a*0.7, added as "
                        "a*0.7+b*0.3, divided by commas if they are an ensemble")
    return [([name.strip() for name in term[1].split(",")], float(term[2] or 1)) for term in terms]


def folders(spec: str) -> list[str]:
    """The reward models in it: those of its members that are model folders."""
    return [name for names, _ in parse(spec) for name in names if (Path(name) / "config.json").exists()]


def load(spec: str, place: Callable = lambda model, frozen: model, ensemble: str = "mean") -> RewardFn:
    """spec as in the module's docstring -> a checked reward function. place(model, frozen=True) puts models on a device.
    ensemble: how scores of members divided by commas are combined: mean, min, uwo, or uwo=0.1, the variance's weight. Every
    member reads texts, so their tokenizers may differ."""
    terms, how = parse(spec), re.fullmatch(rf"(mean|min|uwo)(?:(?<=uwo)=({NUMBER}))?", ensemble)
    if not how:
        raise UserError(f"--ensemble {ensemble}: unknown; take mean, min, uwo, or uwo=0.1")
    if how[1] != "mean" and all(len(names) < 2 for names, _ in terms):
        raise UserError(f"--ensemble {ensemble} needs several rewards divided by commas, --reward out/rm1,out/rm2; got {spec}")

    def one(name: str) -> RewardFn:
        if name == "toy":
            from minirlhf.toyworld import gold_scores
            return gold_scores
        if name.rpartition(":")[0].endswith(".py"):
            return checked(load_function(name), name)
        model = ScalarGPT.from_pretrained(name)
        if not model.score.weight.any():
            raise UserError(f"--reward {name} has no reward head, it is a language model: train_rm.py --init makes a reward of it")
        return checked(TrainedReward(place(model, frozen=True)), name)

    members = [([one(name) for name in names], factor) for names, factor in terms]
    if len(members) == len(members[0][0]) == members[0][1] == 1:
        return members[0][0][0]

    def reward_fn(prompts: list[str], responses: list[str]) -> list[float]:
        scores = [torch.tensor([f(prompts, responses) for f in functions]) for functions, _ in members]     # (M, B) each
        return sum(w * losses.combine_scores(x, how[1], float(how[2] or 0.5)) for x, (_, w) in zip(scores, members)).tolist()
    return reward_fn
