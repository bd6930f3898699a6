"""Stage 3, PPO: the policy answers, the reward model scores, the policy moves towards what scored
well, but not far from where it started.

The steps of `main` are those of Ziegler et al. 2019 and Stiennon et al. 2020; the clipped update is
Schulman et al. 2017; details follow Huang et al. 2024. RLOO, GRPO and REINFORCE are the same loop
without the value model: see METHODS. All four keep the clipped ratio and several updates of an
iteration, also where the paper (Ahmadian et al. 2024 on RLOO) has neither.

    python train_ppo.py --init out/sft --reward out/rm --out out/ppo
    python train_ppo.py --init out/sft --reward my_rewards.py:brevity --data prompts.jsonl
    python train_ppo.py --advantage grpo --samples_per_prompt 8 --prompts_per_step 16
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from minirlhf import Stopped, UserError, health, lora, losses, memory, rewards, rollout, world
from minirlhf.batches import batch_indices, draw, held_out
from minirlhf.cli import at_least, start
from minirlhf.console import say
from minirlhf.data import Prompt, mixed, read_demonstrations, read_prompts
from minirlhf.model import GPT, ScalarGPT
from minirlhf.optim import adamw, linear_decay, take_step
from minirlhf.rollout import Rollout, in_micro_batches
from minirlhf.run import Run, seed_of
from minirlhf.stats import correlation, nan_std
from minirlhf.supervised import add_gradient, row_prompt, to_rows, validation_loss

LengthNorm = Literal["auto", "token", "response", "constant"]


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # policy to start from
    reward: str = "out/rm"  # a reward model's folder, file.py:function or a world; commas: several
    data: str = "toyworld"  # prompts: a world, or files with a "prompt" field
    out: str = "out/ppo"  # the run's folder
    steps: int = 40  # iterations: sample, score, update
    lr: float = 1e-3  # peak learning rate; decays linearly to 0
    kl_coef: float = 0.2  # reward lost per nat of log(policy/reference)

    # method
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = "gae"  # gae is PPO with a value model
    reference: str = ""  # model that the KL is measured against; empty: --init
    kl_in: Literal["auto", "reward", "loss"] = "auto"  # where the KL counts; auto: loss for grpo
    kl_target: float = 0.0  # nats per response that kl_coef adapts to; 0: kl_coef is constant
    lam: float = 0.95  # gae: lambda
    group_std: bool = True  # grpo: divide advantages by the group's std; Dr. GRPO: --no-group_std
    length_norm: LengthNorm = "auto"  # what a token's loss is divided by; auto: the paper's
    clip: float = 0.2  # keeps the ratio new/old within 1 - clip and 1 + clip
    clip_high: float = 0.0  # another limit above 1 (DAPO: 0.28); 0: as --clip
    value_clip: float = 0.2  # gae: keeps a value within this of its old one; 0: no clipping
    epochs: int = 1  # passes over an iteration's episodes
    minibatches: int = 2  # optimiser steps a pass
    stop_update_kl: float = 0.1  # end an iteration at this KL(old, new), nats per token; 0: never
    ensemble: Literal["mean", "min", "uwo"] = "mean"  # of several rewards; uwo: mean - variance / 2
    reward_weights: str = ""  # weights of several rewards, "0.7,0.3", in place of --ensemble
    watch: str = ""  # further rewards that are logged as watch_NAME and not trained on; commas
    ptx_data: str = ""  # texts or demonstrations; the loss on a held-out part is logged as lm_loss
    ptx_coef: float = 0.0  # weight of that loss, on the rest, in every update (PPO-ptx)
    lora_rank: int = 0  # train low-rank adapters of this rank; 0: train all weights

    # sampling
    prompts_per_step: int = 128  # prompts an iteration
    samples_per_prompt: int = 1  # responses to each; rloo and grpo need 2 or more
    max_tokens: int = 64  # longest response
    temperature: float = 0.7  # at which the policy samples, and its log-probs are taken
    unfinished_score: float = -1.0  # score of a response that --max_tokens cut off
    penalise_unfinished: bool = True  # whether a response that was cut off gets that score
    count: int = 8000  # prompts that a world writes
    data_weights: str = ""  # shares of several files, "0.3,0.7"; empty: all prompts of all
    truncate: bool = False  # cut prompts that are too long, instead of leaving them out
    template: Literal["chat", "raw"] = "chat"  # chat: a text is a user turn; raw: it is continued

    # memory
    token_budget: int = 4096  # tokens in a micro-batch; lower it if memory runs out
    checkpointing: bool = False  # recompute activations in the backward pass

    # run
    log_every: int = 5  # iterations between lines on the console
    save_every: int = 20  # iterations between checkpoints
    seed: int = 0  # seed of everything random
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products
    resume: bool = False  # go on with the run in --out
    overwrite: bool = False  # replace the run in --out
    show_batch: bool = False  # print some prompts with sampled responses, and exit


GAMMA = 1.0  # no discount: a response is short
WARMUP = 5  # iterations until the learning rate's peak
LORA_ALPHA = 16.0
LONGEST_HORIZON = 10_000  # episodes, of --kl_target: Ziegler's, of a million. Shorter runs have
HORIZONS = 20  # so many horizons
HELD_OUT_SEED = 1000  # of the fixed prompts: the default of evaluate.py
PTX_BATCH = 16  # rows of text in an update
PTX_VALIDATION = 64  # rows of text whose loss is logged
SHOWN = (  # on the console; raw_score is the score before the penalty for unfinished responses
    "raw_score",
    "score",
    "kl",
    "length",
    "entropy",
    "clip_fraction",
    "explained_variance",
)


@dataclass
class Models:
    policy: GPT
    reference: GPT
    value: ScalarGPT | None  # with gae only

    def trained(self) -> dict[str, GPT | ScalarGPT]:
        models = {"policy": self.policy, "value": self.value}
        return {name: model for name, model in models.items() if model is not None}


@dataclass
class Episodes:
    """B responses, and what is known of each of their R tokens before any update."""

    batch: Rollout
    old_logprobs: Tensor  # (B, R) of the policy that sampled
    reference_logprobs: Tensor  # (B, R)
    values: Tensor | None  # (B, R), with a value model
    advantages: Tensor  # (B, R)
    returns: Tensor | None  # (B, R), with a value model

    def select(self, rows: list[int]) -> "Episodes":
        """Some of the episodes, cut to the longest response among them."""
        batch = self.batch.select(rows)
        columns = batch.mask.shape[1]

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows, :columns]

        return Episodes(
            batch,
            cut(self.old_logprobs),
            cut(self.reference_logprobs),
            cut(self.values),
            cut(self.advantages),
            cut(self.returns),
        )


# --- the methods: what differs between PPO and its relatives
#
#               what an answer is compared with         the KL        a token's loss is divided by
#   gae         the value model's expectation           reward (k1)   all tokens
#   rloo        the prompt's other answers, mean        reward        answers x max_tokens
#   grpo        all the prompt's answers, mean and std  loss (k3)     answers x the answer's length
#   reinforce   all answers of the iteration, mean      reward        answers x max_tokens
#
# An advantage function turns the rewards of tokens (B, R) into advantages (B, R); with a value
# model it also gives the returns that the value model learns.


def gae_advantages(
    token_rewards: Tensor, values: Tensor, mask: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """PPO: each token is compared with what the value model expected (Schulman 2015).

    A response without a score (NaN) has advantage 0, and its values stay as they are.
    """
    has_score = ~token_rewards.isnan().any(1, keepdim=True)  # (B, 1)
    known_rewards = token_rewards.nan_to_num(0.0)
    advantages, returns = losses.gae(known_rewards, values, mask, GAMMA, settings.lam)
    returns = torch.where(has_score, returns, values)
    return losses.whiten(advantages, mask & has_score), returns


def response_advantages(
    token_rewards: Tensor, _, mask: Tensor, settings: Settings
) -> tuple[Tensor, None]:
    """RLOO, GRPO, REINFORCE: a response is one action, compared with other responses.

    A prompt's G responses are neighbours. All tokens of a response get its advantage.
    """
    rewards = token_rewards.sum(1).view(-1, settings.samples_per_prompt)  # (P, G)
    advantages = losses.group_advantages(rewards, settings.advantage, settings.group_std)  # (P, G)
    return advantages.reshape(-1, 1).expand(mask.shape), None


@dataclass
class Method:
    advantages: Callable
    kl_in: str  # the KL counts in the reward, or as a term of the loss
    length_norm: str  # what a token's loss is divided by: see losses.length_normaliser


METHODS = {
    "gae": Method(gae_advantages, kl_in="reward", length_norm="token"),
    "rloo": Method(response_advantages, kl_in="reward", length_norm="constant"),
    "grpo": Method(response_advantages, kl_in="loss", length_norm="response"),
    "reinforce": Method(response_advantages, kl_in="reward", length_norm="constant"),
}


# --- the update


def minibatch_loss(
    models: Models, episodes: Episodes, divisor: Tensor, kl_coef: float, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the loss, to be added, and statistics (means over tokens).

    divisor: (B, 1) what a token's loss is divided by
    """
    batch, mask = episodes.batch, episodes.batch.mask
    terms = {}

    # the clipped surrogate (Schulman 2017, equation 7)
    new_logprobs = rollout.logprobs(models.policy, batch, settings.temperature)  # (B, R)
    terms["policy_loss"], statistics = losses.ppo_policy_loss(
        new_logprobs,
        episodes.old_logprobs,
        episodes.advantages,
        mask,
        settings.clip,
        divisor,
        settings.clip_high or settings.clip,
    )

    # the value model learns the returns (equation 9)
    if models.value is not None:
        new_values = rollout.values(models.value, batch)  # (B, R)
        value_clip = settings.value_clip or None
        terms["value_loss"], value_statistics = losses.value_loss(
            new_values, episodes.values, episodes.returns, mask, value_clip, divisor
        )
        statistics |= value_statistics

    # the KL, where it is not in the reward (Shao 2024, equations 3 and 4)
    if settings.kl_in == "loss":
        k3 = losses.kl_estimates(new_logprobs, episodes.reference_logprobs)[2]  # (B, R)
        terms["kl_loss"] = kl_coef * losses.masked_mean(k3, mask, divisor)
    return terms, statistics


def add_rl_gradient(run: Run, models: Models, minibatch: Episodes) -> tuple[float, dict]:
    """Loss and metrics of a minibatch. The gradients of its micro-batches, which bound the memory,
    add up."""
    settings = run.settings
    mask = minibatch.batch.mask  # (B, R)
    tokens = max(1, int(mask.sum()))
    divisor = losses.length_normaliser(settings.length_norm, mask, settings.max_tokens)  # (B, 1)
    kl_coef = run.extra["kl_coef"]
    metrics = defaultdict(float)
    loss = 0.0
    for rows in minibatch.batch.micro_batches(settings.token_budget):
        part = minibatch.select(rows)
        terms, statistics = minibatch_loss(models, part, divisor[rows], kl_coef, settings)
        sum(terms.values()).backward()
        for name, value in terms.items():
            metrics[name] += value.item()
            loss += value.item()
        share = int(part.batch.mask.sum()) / tokens
        for name, value in statistics.items():
            metrics[name] += value.item() * share
    metrics["log_ratio_rms"] = math.sqrt(metrics.pop("log_ratio_square"))
    return loss, metrics


def add_ptx_gradient(
    settings: Settings, policy: GPT, ptx_rows: list, step: int, number: int
) -> float:
    """PPO-ptx: the policy goes on predicting text (Ouyang 2022, equation 2). Returns that loss."""
    ptx_step = step * settings.epochs * settings.minibatches + number
    indices = batch_indices(len(ptx_rows), ptx_step, PTX_BATCH, settings.seed)
    rows = [ptx_rows[i] for i in indices]
    return add_gradient(policy, rows, settings.token_budget, settings.ptx_coef)


def update(
    run: Run,
    models: Models,
    optimizer: torch.optim.Optimizer,
    minibatch: Episodes,
    ptx_rows: list,
    step: int,
    number: int,
) -> tuple[dict[str, float], bool]:
    """One optimiser step -> numbers to log, and whether the iteration ends here.

    It ends, without a step, once the policy has moved too far from the one that sampled.

    ptx_rows: rows of --ptx_data to learn from
    number: the minibatch's, in this iteration
    """
    settings = run.settings
    loss, metrics = add_rl_gradient(run, models, minibatch)
    if number == 0:
        check_first_ratio(metrics["log_ratio_rms"], models.policy.autocast_dtype, step)
        metrics["first_ratio_off"] = metrics["log_ratio_rms"]
    if settings.stop_update_kl and metrics["approx_kl"] > settings.stop_update_kl:
        optimizer.zero_grad()
        return metrics, True
    if settings.ptx_coef:
        metrics["ptx_loss"] = add_ptx_gradient(settings, models.policy, ptx_rows, step, number)
        loss += metrics["ptx_loss"]  # take_step only asks whether it is finite
    lr = settings.lr * linear_decay(step, settings.steps, WARMUP)
    trained = list(models.trained().values())
    metrics["grad_norm"] = take_step(optimizer, trained, lr, loss, step)
    metrics["lr"] = lr
    metrics["updates"] = number + 1
    return metrics, False


def minibatches(run: Run, count: int, step: int) -> Iterator[list[int]]:
    """Rows of each minibatch: every epoch in a new order. A prompt's responses stay together."""
    size = run.settings.samples_per_prompt
    rows_of_prompt = torch.arange(count, device=run.device).view(-1, size)  # (P, G)
    prompts = len(rows_of_prompt)
    for epoch in range(run.settings.epochs):
        generator = run.generator("passes", step, epoch)
        order = torch.randperm(prompts, device=run.device, generator=generator)
        for chosen in order.tensor_split(min(run.settings.minibatches, prompts)):
            yield rows_of_prompt[chosen].flatten().tolist()


# Before the first update log(new/old) should be 0. This much (root mean square over tokens) can be
# rounding, by the precision of matrix products. Measured on models of 1 x 32 to 12 x 768: at most
# 1e-6 in float32, 0.01 (in the worst 50 tokens 0.025) in bfloat16; on 30 x 576 (SmolLM2-135M,
# temperature 0.7) 0.016 to 0.031 in bfloat16. Real faults are larger: temperature 0.9 instead of 1
# gives 0.06, dropout of 0.02 gives 0.12, tokens shifted by one give 6. The maximum over tokens
# would have no limit, as it grows with their number.
FIRST_RATIO_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def check_first_ratio(deviation: float, precision: torch.dtype | None, step: int) -> None:
    """Before any update the policy that was scored is the policy that trains: the ratio is 1.

    deviation: root mean square of log(new/old) over tokens
    """
    limit = FIRST_RATIO_LIMIT[precision or torch.float32]
    if not deviation <= limit:  # true for NaN as well
        raise Stopped(
            f"step {step}: before the first update the ratio of new to old log-probs must be 1, "
            f"but its log is {deviation:.2g} (root mean square), and rounding explains {limit:g}. "
            "Look for dropout, another temperature or precision in one of the two, shifted tokens"
        )


# --- the loop


def main(settings: Settings) -> None:
    # 0. two to four models, prompts, and what scores the responses
    settings = complete(settings)
    policy = GPT.from_pretrained(settings.init)
    prompts = load_prompts(settings, policy)
    if settings.show_batch:
        return show_batch(settings, policy, prompts)
    run = Run(settings, "train_ppo.py")
    if run.finished:
        return run.say_finished()
    models = load_models(run, policy)
    reference, value = models.reference, models.value
    ptx_rows, held_out_rows = load_ptx(settings, policy)
    where = {"device": run.device, "dtype": settings.dtype}
    reward_fn = rewards.load(
        settings.reward,
        **where,
        weights=settings.reward_weights,
        ensemble=settings.ensemble,
    )
    watched = {}
    for name in filter(None, settings.watch.split(",")):
        watched[f"watch_{name}"] = rewards.load(name, **where)
    for function in (reward_fn, *watched.values()):
        run.placed += rewards.models(function)  # for say_memory
    optimizer = adamw(list(models.trained().values()), settings.lr, eps=1e-5)
    run.extra["kl_coef"] = settings.kl_coef  # --kl_target moves it; a checkpoint brings it back
    run.restore(optimizer, **models.trained())
    fixed_prompts = load_fixed_prompts(settings, policy, prompts)
    print(f"{len(prompts)} prompts, {settings.steps} iterations on {run.device}")
    run.say_memory(rollout.CACHED_AT_ONCE)

    for step in run.steps(settings.steps):
        # 1. the policy answers; temperature only, no top-k or top-p
        started = time.monotonic()
        indices = batch_indices(len(prompts), step, settings.prompts_per_step, settings.seed)
        chosen = [prompts[i] for i in indices]
        batch = sample(settings, policy, chosen, run.generator("sample", step))
        mask = batch.mask  # (B, R)
        sampled = time.monotonic()

        # 2. whole texts are scored; an unfinished response gets --unfinished_score
        raw_scores, own_means = score_all(reward_fn, batch)  # (B,); each one's of several rewards
        scores = penalised(settings, batch, raw_scores)  # (B,)
        only_shown = {}
        for name, watched_fn in watched.items():
            only_shown[name] = score(watched_fn, batch).nanmean()
        if held_out_rows and step % settings.log_every == 0:
            only_shown["lm_loss"] = validation_loss(policy, held_out_rows, settings.token_budget)

        # 3. log-probs and values before any update, computed as in training: the first ratio is 1
        temperature = settings.temperature
        old_logprobs = in_micro_batches(rollout.logprobs, policy, batch, temperature)  # (B, R)
        ref_logprobs = in_micro_batches(rollout.logprobs, reference, batch, temperature)  # (B, R)
        values = None
        if value is not None:
            values = in_micro_batches(rollout.values, value, batch)  # (B, R)

        # 4. a reward for every token (Ziegler 2019, equation 2), and its advantage: how much better
        #    than expected was it? What is expected is where the methods differ
        kl = losses.kl_estimates(old_logprobs, ref_logprobs)[0]  # k1 (B, R), nats
        kl_coef = run.extra["kl_coef"]
        kl_coef_in_reward = kl_coef if settings.kl_in == "reward" else 0.0
        token_rewards = losses.token_rewards(scores, kl, mask, kl_coef_in_reward)  # (B, R)
        advantages_of = METHODS[settings.advantage].advantages
        advantages, returns = advantages_of(token_rewards, values, mask, settings)  # (B, R)
        scored = time.monotonic()

        # 5. clipped updates on minibatches of the episodes; of each metric the latest is logged
        episodes = Episodes(batch, old_logprobs, ref_logprobs, values, advantages, returns)
        metrics = {"updates": 0}
        for number, rows in enumerate(minibatches(run, len(batch), step)):
            minibatch = episodes.select(rows)
            latest, stop = update(run, models, optimizer, minibatch, ptx_rows, step, number)
            metrics |= latest
            if stop:
                break
        updated = time.monotonic()

        # 6. look at it
        run.log(
            step,
            (*SHOWN, *only_shown),
            **episode_metrics(episodes, scores, kl, settings.samples_per_prompt),
            raw_score=raw_scores.nanmean(),
            **own_means,
            reward=(scores - kl_coef * kl.sum(1)).nanmean(),
            kl_coef=kl_coef,
            **only_shown,
            **metrics,
            seconds_rollout=sampled - started,
            seconds_scoring=scored - sampled,
            seconds_update=updated - scored,
            tokens_per_second=float(mask.sum()) / max(1e-9, updated - started),
            peak_gib=memory.peak(run.device),
        )
        if step % settings.log_every == 0 or step == settings.steps - 1:
            show(run, step, episodes, scores, kl)
            write_fixed_samples(run, step, policy, fixed_prompts, reward_fn)
        if settings.kl_target:
            run.extra["kl_coef"] = losses.adapt_kl_coef(
                kl_coef,
                float(kl.sum(1).mean()),
                settings.kl_target,
                len(batch),
                horizon=min(LONGEST_HORIZON, settings.steps * len(batch) / HORIZONS),
            )

    policy.temperature = settings.temperature  # its folder says at which it is to be sampled
    result = {"peak_gib": memory.peak(run.device)}
    if held_out_rows:
        result["lm_loss"] = validation_loss(policy, held_out_rows, settings.token_budget)
    run.finish(lora.merge(policy), **result)


# --- setting up


def complete(settings: Settings) -> Settings:
    """Fill in "auto"; UserError for settings that do not go together."""
    at_least(1, settings, "prompts_per_step", "samples_per_prompt", "epochs", "minibatches")
    at_least(1, settings, "max_tokens", "log_every", "save_every")
    if settings.temperature == 0:
        raise UserError("--temperature 0: a policy that always says the same cannot explore")
    compared = settings.samples_per_prompt
    if settings.advantage == "reinforce":
        compared *= settings.prompts_per_step
    if settings.advantage != "gae" and compared < 2:
        raise UserError(
            f"--advantage {settings.advantage} compares responses: --samples_per_prompt must be "
            "2 or more, for instance 4 with a quarter of the --prompts_per_step"
        )
    if settings.kl_target and not settings.kl_coef:
        raise UserError("--kl_target multiplies --kl_coef, which is 0: give one, such as 0.2")
    if settings.ptx_coef and not settings.ptx_data:
        raise UserError("--ptx_coef needs --ptx_data: texts or demonstrations to keep predicting")
    method = METHODS[settings.advantage]
    if settings.kl_in == "auto":
        settings = replace(settings, kl_in=method.kl_in)
    if settings.length_norm == "auto":
        settings = replace(settings, length_norm=method.length_norm)
    return settings


def load_models(run: Run, policy: GPT) -> Models:
    """The policy, the reference, and with gae a value model.

    It starts from the first reward model (Stiennon 2020), or from --init where there is none.
    """
    settings = run.settings
    adapters = (settings.lora_rank, LORA_ALPHA, seed_of(settings.seed, "lora"))
    lora.add(run.place(policy, trained=True), *adapters)

    reference = run.open_reference(policy)
    value = None
    if settings.advantage == "gae":
        reward_models = rewards.models_named(settings.reward)
        start_from = reward_models[0] if reward_models else settings.init
        value = run.open(ScalarGPT, start_from, trained=True)
        if value.tokenizer.vocab != policy.tokenizer.vocab:
            raise UserError(
                f"the value model, made from --reward {start_from}, has other tokens than --init: "
                "use one of the same family, or --advantage rloo, which needs no value model"
            )
        if value.config.n_positions < policy.config.n_positions:
            raise UserError(
                f"the value model, made from --reward {start_from}, has a shorter context than "
                "--init: use one of the same length, or --advantage rloo, which needs none"
            )
        lora.add(value, *adapters)
    return Models(policy, reference, value)


def load_prompts(settings: Settings, policy: GPT) -> list[Prompt]:
    """Prompts that leave room for --max_tokens."""
    which = {"template": settings.template, "count": settings.count, "seed": settings.seed}
    columns = rewards.columns(settings.reward, settings.watch)
    prompts = mixed(read_prompts, settings.data, settings.data_weights, columns=columns, **which)
    return rollout.prompts_that_fit(policy, prompts, settings.max_tokens, settings.truncate)


def load_ptx(settings: Settings, policy: GPT) -> tuple[list, list]:
    """Rows of --ptx_data: to learn from, and held out."""
    if not settings.ptx_data:
        return [], []
    texts = read_demonstrations(settings.ptx_data, template=settings.template)
    rows = to_rows(policy, texts, cut=settings.truncate)
    train, validation = held_out(rows, key=row_prompt)
    return train, draw(validation, PTX_VALIDATION, settings.seed)


def sample(
    settings: Settings, policy: GPT, prompts: list[Prompt], generator: torch.Generator
) -> Rollout:
    return rollout.sample(
        policy,
        prompts,
        settings.max_tokens,
        generator,
        temperature=settings.temperature,
        samples_per_prompt=settings.samples_per_prompt,
    )


def score(reward_fn: rewards.RewardFn, batch: Rollout) -> Tensor:
    """Scores of whole texts (B,)."""
    return torch.tensor(reward_fn(batch.prompts, batch.responses), device=batch.tokens.device)


def score_all(reward_fn: rewards.RewardFn, batch: Rollout) -> tuple[Tensor, dict[str, float]]:
    """Scores (B,), NaN where the reward gave None; and the mean of each of several rewards."""
    if not isinstance(reward_fn, rewards.SeveralRewards):
        return score(reward_fn, batch), {}
    scores = reward_fn.each(batch.prompts, batch.responses)  # (M, B)
    means = {}
    for name, own in zip(reward_fn.names, scores):
        means[f"reward_{name}"] = own.nanmean()
    return reward_fn.combine(scores).to(batch.tokens.device), means


def penalised(settings: Settings, batch: Rollout, raw_scores: Tensor) -> Tensor:
    """Scores (B,) in which an unfinished response has --unfinished_score."""
    if not settings.penalise_unfinished:
        return raw_scores
    return batch.with_penalty(raw_scores, settings.unfinished_score)


def show_batch(settings: Settings, policy: GPT, prompts: list[Prompt]) -> None:
    """Prints some prompts with responses, the sampled tokens coloured."""
    generator = torch.Generator().manual_seed(settings.seed)
    batch = sample(settings, policy, prompts[:8], generator)
    for row in range(len(batch)):
        length = int(batch.lengths[row])
        ids = batch.tokens[row, :length].tolist()
        is_sampled = batch.is_response[row, :length].tolist()
        print(policy.tokenizer.show(ids, is_sampled), end="\n\n")


# --- what is logged and printed


def episode_metrics(
    episodes: Episodes, scores: Tensor, kl: Tensor, samples_per_prompt: int
) -> dict:
    """Numbers to log; minirlhf/health.py says what is healthy.

    scores: (B,)
    kl: (B, R) log policy - log reference
    """
    batch, mask = episodes.batch, episodes.batch.mask
    lengths = mask.sum(1).float()  # (B,)
    k3 = losses.kl_estimates(episodes.old_logprobs, episodes.reference_logprobs)[2]  # (B, R)
    known = scores[~scores.isnan()]
    within_prompt_std = nan_std(scores.view(-1, samples_per_prompt))  # (P,)
    numbers = {
        "score": known,
        "has_score": ~scores.isnan(),
        "score_std": known.std(correction=0) if len(known) else math.nan,
        "kl": kl.sum(1),
        "kl_k3": k3.sum(1),
        "entropy": -losses.masked_mean(episodes.old_logprobs, mask),
        "length": lengths,
        "finished": batch.finished,
        "distinct": len(set(batch.responses)) / len(batch),
        "length_correlation": correlation(known, lengths[~scores.isnan()]),
        "within_prompt_std": within_prompt_std,
    }
    if samples_per_prompt > 1:
        numbers["no_spread"] = within_prompt_std < 1e-6  # a group that teaches nothing
    if episodes.values is not None:
        has_score = mask & ~scores.isnan()[:, None]  # (B, R)
        explained = losses.explained_variance(episodes.values, episodes.returns, has_score)
        numbers["explained_variance"] = explained
    return numbers


def show(run: Run, step: int, episodes: Episodes, scores: Tensor, kl: Tensor) -> None:
    """Warnings and a sample of each prompt, for the eye; every token of the first sample, for the
    report."""
    for warning in health.warnings(run.row):
        say(f"    warning: {warning}")
    rows = sample_rows(episodes.batch, scores)
    for row, row_kl in zip(rows, kl.sum(1).tolist()):
        row["kl"] = row_kl
    rows = rows[:: run.settings.samples_per_prompt][:8]
    _, response = episodes.batch.sequences()[0]
    tokenizer = run.tracked["policy"].tokenizer
    rows[0]["tokens"] = [tokenizer.decode([token]) for token in response]
    rows[0]["token_kl"] = kl[0, : len(response)].tolist()
    rows[0]["token_advantages"] = episodes.advantages[0, : len(response)].tolist()
    run.samples(step, rows, show=4)


def sample_rows(batch: Rollout, scores: Tensor) -> list[dict]:
    rows = []
    for prompt, response, value in zip(batch.prompts, batch.responses, scores.tolist()):
        rows.append({"prompt": prompt.source, "response": response, "score": value})
    return rows


def load_fixed_prompts(settings: Settings, policy: GPT, prompts: list[Prompt]) -> list[Prompt]:
    """Four that are the same in all runs: held-out ones of a world, or the files' first."""
    fixed_prompts = prompts[:4]
    if world.find(settings.data):
        which = {"template": settings.template, "split": "test", "seed": HELD_OUT_SEED}
        known = read_prompts(settings.data, count=4, columns=None, **which)
        fixed_prompts = known + fixed_prompts
    fitting = rollout.prompts_that_fit(
        policy, fixed_prompts, settings.max_tokens, settings.truncate
    )
    return fitting[:4]


def write_fixed_samples(
    run: Run, step: int, policy: GPT, fixed_prompts: list[Prompt], reward_fn: rewards.RewardFn
) -> None:
    """Answers to the fixed prompts, drawn with the same random numbers at every step: what
    changes is the policy."""
    settings = run.settings
    generator = run.generator("requests")
    temperature = settings.temperature
    batch = rollout.sample(
        policy, fixed_prompts, settings.max_tokens, generator, temperature=temperature
    )
    scores = penalised(settings, batch, score(reward_fn, batch))  # (B,)
    run.samples(step, [{"fixed": True, **row} for row in sample_rows(batch, scores)])


def then(settings: Settings) -> list[str]:
    """The command that comes next."""
    policies = f"{settings.init},{settings.out}"
    words = ["python", "evaluate.py", "--policies", policies, "--reward", settings.reward]
    for flag in ("reward_weights", "ensemble", "template", "max_tokens", "unfinished_score"):
        if getattr(settings, flag) != getattr(Settings, flag):
            words += [f"--{flag}", str(getattr(settings, flag))]
    if settings.data != Settings.data:
        words += ["--data", "HELD_OUT_PROMPTS"]
    return words


if __name__ == "__main__":
    start(main, Settings, then)
