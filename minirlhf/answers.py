"""What policies answer, and how good it is: the numbers of evaluate.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from minirlhf import UserError, losses, rollout
from minirlhf.data import Prompt
from minirlhf.model import GPT
from minirlhf.rewards import RewardFn
from minirlhf.rollout import Rollout, in_micro_batches
from minirlhf.stats import mean_of
from minirlhf.winrate import assess, judged, ranked_right, wins

EXACT_KL_TOKENS = 8192  # with a larger vocabulary it takes a fifth of an evaluation


@dataclass
class Answers:
    """A policy's S responses to each of P prompts."""

    batch: Rollout  # P * S rows
    texts: list[list[str]]  # P x S
    scores: dict[str, Tensor]  # (P, S) by "gold", "reward", "watch_NAME"; NaN: no score
    log_ratio: Tensor  # (P, S) log(policy/reference), nats; NaN where the two have other tokens
    exact_kl: Tensor  # (P, S) KL(policy, reference), summed over a response's tokens, nats, or NaN


def grouped(texts: list[str], size: int) -> list[list[str]]:
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def score(
    batch: Rollout,
    samples: int,
    policy: GPT,
    reference: GPT,
    scorers: dict[str, RewardFn],
    temperature: float,
) -> Answers:
    """A policy's batch, `samples` responses to each prompt, with its scores and its distance from
    the reference."""
    scores = {}
    for name, scorer in scorers.items():
        scores[name] = torch.tensor(scorer(batch.prompts, batch.responses)).view(-1, samples)
        missing = int(scores[name].isnan().sum())
        if missing == len(batch):
            raise UserError(f"{name} gives None for all {missing} responses: name another")
        if missing:
            print(f"{name}: no score for {missing} of {len(batch)} responses, which are left out")
    log_ratio = exact_kl = torch.full((len(batch),), math.nan)
    if policy is reference:
        log_ratio = exact_kl = torch.zeros(len(batch))
    elif temperature == 0:
        print("temperature 0: the likeliest answers are no samples, so there is no KL")
    elif policy.tokenizer.vocab == reference.tokenizer.vocab:
        logprobs = in_micro_batches(rollout.logprobs, policy, batch, temperature)  # (B, R)
        ref_logprobs = in_micro_batches(rollout.logprobs, reference, batch, temperature)  # (B, R)
        log_ratio = (logprobs - ref_logprobs).sum(1).cpu()
        if policy.config.vocab_size <= EXACT_KL_TOKENS:
            exact_kl = rollout.exact_kl(policy, reference, batch, temperature).sum(1).cpu()
    else:
        print("the policy has other tokens than the reference: no KL between them")
    texts = grouped(batch.responses, samples)
    return Answers(batch, texts, scores, log_ratio.view(-1, samples), exact_kl.view(-1, samples))


def measure(
    prompts: list[Prompt], answers: Answers, module: ModuleType | None, unfinished_score: float
) -> dict:
    """A policy's numbers, without those that need another policy.

    module: a world that tells kinds and parts. unfinished_score: what training puts in the place of
    the reward of an unfinished response; "reward_as_trained" is the mean of that.
    """
    scores = answers.scores
    result = assess(prompts, answers.texts, module, scores.get("gold"))
    result["finished"] = float(answers.batch.finished.float().mean())
    if "reward" in scores:
        rewards = scores["reward"].flatten().to(answers.batch.finished.device)  # (B,)
        as_trained = answers.batch.with_penalty(rewards, unfinished_score).cpu()
        result["reward_as_trained"] = mean_of(as_trained.view_as(scores["reward"]))
    result["kl"] = mean_of(answers.log_ratio)
    result["exact_kl"] = mean_of(answers.exact_kl)
    for name, values in scores.items():
        result[name] = mean_of(values)
    if "reward" not in scores:
        return result
    percents = torch.linspace(0, 1, 101)
    result["reward_percentiles"] = scores["reward"].float().nanquantile(percents).tolist()
    result["best_of_n"] = []
    for n in range(1, len(answers.texts[0]) + 1):
        row = {"n": n, "kl_bound": losses.best_of_n_kl_bound(n)}
        for name, values in scores.items():
            values = values.masked_fill(scores["reward"].isnan(), math.nan)
            row[name] = mean_of(losses.best_of_n(scores["reward"], values, n))
        result["best_of_n"].append(row)
    if "gold" in scores:
        result["reward_accuracy"] = ranked_right(scores["reward"], scores["gold"])
    return result


def win_rates(
    prompts: list[Prompt], answers: list[Answers], wins_by: str, judge: Callable | None
) -> dict:
    """Win rates of the last policy: against the first, the baseline, and the one before it."""
    baseline, last = answers[0], answers[-1]
    if judge:
        won, agreement = judged(judge, prompts, last.texts, baseline.texts)
        return {"win_rate": mean_of(won, share=True), "both_orders_agree": agreement}
    scores = last.scores[wins_by]
    won = wins(scores, baseline.scores[wins_by])  # (P,)
    result = {"win_rate": mean_of(won, share=True)}
    if len(answers) > 1:
        won = wins(scores, answers[-2].scores[wins_by])  # (P,)
        result["win_rate_previous"] = mean_of(won, share=True)
    return result
