"""Stage 2, the reward model: rankings of responses -> a number that says how good a response is.

It starts from the SFT model with a fresh scalar head, reads prompt, response and EOS, and gives
its score at the EOS. All pairs of one prompt's K responses are one element of the batch: K scores,
C(K, 2) comparisons (Ouyang et al. 2022, equation 1). After training, scores are shifted and scaled
to mean 0 and std 1 on samples of a policy, usually the SFT model.

    python train_rm.py --init out/sft --data out/round1/rankings.jsonl --out out/round1/rm
    python train_rm.py --init out/sft --data helpful-base.jsonl.gz      # pairs: chosen, rejected
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from minirlhf import UserError, agreement, losses, readers, rollout
from minirlhf.batches import batch_indices, draw, held_out, steps_of
from minirlhf.cli import at_least, start
from minirlhf.data import Prompt, mixed, read_rankings
from minirlhf.model import GPT, ScalarGPT
from minirlhf.optim import adamw, cosine_decay, take_step
from minirlhf.preferences import Group, group_scores, micro_batches_of, to_groups, validate
from minirlhf.rewards import TrainedReward
from minirlhf.run import Run
from minirlhf.truncate import shorten_prompt

SMALLEST_STD = 1e-6  # scores that differ by less are equal but for rounding


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # model to start from: an SFT model, or a reward model that goes on
    data: str = "out/round1/rankings.jsonl"  # rankings or pairs: files, comma-separated
    data_weights: str = ""  # shares of several files, "0.3,0.7"; empty: all records of all
    out: str = "out/rm"  # the run's folder
    epochs: float = 1.0  # passes over the rankings, when --steps is 0
    steps: int = 0  # optimiser steps; 0: as many as --epochs needs
    batch_size: int = 8  # prompts a step, each with all its responses
    lr: float = 1.5e-3  # peak learning rate; falls to a tenth along a cosine

    # method
    soft: bool = True  # learn from an AI's preferences as chances; no: from the ranks alone
    warmup: int = 10  # steps until the peak; 0: none
    weight_decay: float = 0.01  # on matrices
    validation: float = 0.1  # share of prompts held out
    eval_every: int = 0  # steps between validations; 0: only at the end
    keep_best: bool = False  # end with the weights whose validation loss was the lowest
    truncate: bool = False  # cut rankings that are too long, instead of leaving them out
    template: Literal["chat", "raw"] = "chat"  # chat: a bare prompt is a user turn; raw: plain text

    # scale of the scores
    normalize_samples: int = 256  # samples on which scores get mean 0, std 1; 0: leave them
    normalize_on: str = ""  # the policy that is sampled; empty: --init, then no reward model
    max_tokens: int = 64  # longest of those samples
    temperature: float = 0.7  # of those samples

    # memory
    token_budget: int = 4096  # tokens in a micro-batch; lower it if memory runs out, results stay
    checkpointing: bool = False  # recompute activations: far less memory, a third more work
    compile: bool = False  # torch.compile the blocks: a minute at the start, faster steps on a GPU

    # run
    log_every: int = 20  # steps between lines on the console
    save_every: int = 100  # steps between checkpoints
    seed: int = 0  # seed of everything random
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products
    resume: bool = False  # go on with the run in --out
    overwrite: bool = False  # replace the run in --out
    show_batch: bool = False  # print the first batch, the scored tokens coloured, and exit


def prompts_to_sample(settings: Settings, model: ScalarGPT, prompts: list[Prompt]) -> list[Prompt]:
    """Prompts that leave room for --max_tokens in the sampled policy's context, each once.

    Called before training, so that a run cannot end in this error.
    """
    if not settings.normalize_samples:
        return []
    policy = GPT.from_pretrained(settings.normalize_on or settings.init)
    room = policy.config.n_positions - settings.max_tokens
    readable = model.config.n_positions - 2  # one token of a response, and EOS
    lengths = {}
    for prompt in prompts:
        if settings.truncate:
            turns = shorten_prompt(policy.tokenizer, prompt.turns, min(room, readable))
            prompt = replace(prompt, turns=turns)
        if len(model.tokenizer.encode_prompt(prompt.turns)) <= readable:
            lengths[prompt] = len(policy.tokenizer.encode_prompt(prompt.turns))
    fitting = [prompt for prompt, length in lengths.items() if length <= room]
    if not fitting:
        shortest = min(lengths.values(), default=0)
        raise UserError(
            f"--max_tokens {settings.max_tokens} leaves prompts {room} of the context's "
            f"{policy.config.n_positions} tokens, and the shortest has {shortest}: use a smaller "
            "--max_tokens, --truncate, or --normalize_samples 0"
        )
    return draw(fitting, settings.normalize_samples, settings.seed)


def score_scale(
    settings: Settings, run: Run, model: ScalarGPT, prompts: list[Prompt]
) -> tuple[float, float]:
    """Mean and std of the scores on a policy's samples (Ziegler et al. 2019, section 2.1)."""
    policy = run.open(GPT, settings.normalize_on or settings.init)
    batch = rollout.sample(
        policy,
        prompts,
        settings.max_tokens,
        run.generator("normalize"),
        temperature=settings.temperature,
    )
    scores = torch.tensor(TrainedReward(model)(batch.prompts, batch.responses))  # (B,)
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not math.isfinite(mean + std):
        raise UserError(
            f"the scores of {len(scores)} samples are not finite: train with a lower --lr"
        )
    if std < SMALLEST_STD:
        print("warning: all --normalize_samples score the same, so the scale stays as it is")
        std = 1.0
    return mean, std


def newest_of(groups: list[Group], data: str) -> list[Group]:
    """Those of the last of several names in --data: what people said of the newest policy."""
    names = readers.names(data)
    if len(names) < 2:
        return []
    last = tuple(f"{file}, " for file in readers.files(names[-1]))
    return [group for group in groups if group.where.startswith(last)]


def show(model: ScalarGPT, groups: list[Group]) -> None:
    for group in groups:
        for response, rank in zip(group.responses, group.ranks):
            ids = group.prompt_ids + response
            scored = [False] * (len(ids) - 1) + [True]
            print(f"rank {rank:g}: {model.tokenizer.show(ids, scored)}")
        print()


def add_gradient(model: ScalarGPT, batch: list[Group], token_budget: int) -> tuple[float, float]:
    """Loss and accuracy of a batch, in micro-batches whose gradients add up."""
    loss = 0.0
    right = 0.0
    pairs = 0
    for part in micro_batches_of(batch, token_budget):
        scores, ranks, mask, chances = group_scores(model, [batch[i] for i in part])
        part_loss, stats = losses.ranking_loss(scores, ranks, mask, len(batch), chances=chances)
        part_loss.backward()
        loss += float(part_loss.detach())
        right += float(stats["accuracy"] * stats["pairs"])
        pairs += int(stats["pairs"])
    return loss, right / max(1, pairs)


def validate_and_keep_best(
    model: ScalarGPT, validation: list[Group], run: Run, best: ScalarGPT | None
) -> dict:
    """Validation during training; `best` gets the model's weights if its loss is the lowest yet."""
    result = validate(model, validation, run.settings.token_budget)
    loss = result["validation_loss"]
    if best is not None and loss < run.extra.get("best_loss", math.inf):
        run.extra["best_loss"] = loss
        best.load_state_dict(model.state_dict())
    return {"validation_loss": loss, "validation_accuracy": result["validation_accuracy"]}


def check(settings: Settings) -> None:
    at_least(1, settings, "batch_size", "token_budget")
    if settings.keep_best and not (settings.eval_every and settings.validation):
        raise UserError(
            "--keep_best needs --eval_every N and a --validation above 0, to see which is the best"
        )


def main(settings: Settings) -> None:
    # 1. rankings, and the model: SFT's trunk with a head of zeros
    check(settings)
    which = {"seed": settings.seed, "template": settings.template}
    rankings = mixed(read_rankings, settings.data, settings.data_weights, **which)
    model = ScalarGPT.from_pretrained(settings.init, score_mean=0.0, score_std=1.0)
    context = model.config.n_positions
    groups = to_groups(model.tokenizer, rankings, context, settings.soft, settings.truncate)
    train, validation = held_out(groups, Group.first_request, settings.validation)
    newest = newest_of(validation, settings.data)
    if settings.show_batch:
        indices = batch_indices(len(train), 0, settings.batch_size, settings.seed)
        return show(model, [train[i] for i in indices])
    prompts = prompts_to_sample(settings, model, [group.prompt for group in train])

    run = Run(settings, "train_rm.py")
    if run.finished:
        return run.say_finished()
    run.place(model, trained=True)
    steps = settings.steps or steps_of(settings.epochs, len(train), settings.batch_size)
    optimizer = adamw([model], settings.lr, weight_decay=settings.weight_decay)
    tracked = {"model": model}  # what a checkpoint holds
    if settings.keep_best:
        tracked["best"] = ScalarGPT.from_pretrained(settings.init)
    best = tracked.get("best")
    run.restore(optimizer, **tracked)
    print(f"{len(train)} rankings, {len(validation)} held out, {steps} steps on {run.device}")
    if newest and "newest_before" not in run.extra:
        before = validate(model, newest, settings.token_budget)
        run.extra["newest_before"] = before["validation_accuracy"]
    run.say_memory()

    for step in run.steps(steps):
        # 2. the loss: the mean over prompts of the mean over a prompt's pairs
        began = time.monotonic()
        indices = batch_indices(len(train), step, settings.batch_size, settings.seed)
        batch = [train[i] for i in indices]
        loss, accuracy = add_gradient(model, batch, settings.token_budget)

        # 3. one step of AdamW
        lr = settings.lr * cosine_decay(step, steps, settings.warmup)
        grad_norm = take_step(optimizer, [model], lr, loss, step)
        seconds = max(1e-9, time.monotonic() - began)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_second": sum(group.tokens() for group in batch) / seconds,
        }
        if validation and run.is_due(step, settings.eval_every):
            metrics |= validate_and_keep_best(model, validation, run, best)
        shown = ("loss", "accuracy", "tokens_per_second", "validation_loss", "validation_accuracy")
        run.log(step, shown, **metrics)

    # 4. how good is it on prompts that it has not seen
    if "best_loss" in run.extra:
        model.load_state_dict(best.state_dict())
    result = report_accuracy(model, validation, newest, run)

    # 5. the scale of its scores
    if prompts:
        mean, std = score_scale(settings, run, model, prompts)
        model.config.score_mean, model.config.score_std = mean, std
    run.finish(model, **result)


def report_accuracy(
    model: ScalarGPT, validation: list[Group], newest: list[Group], run: Run
) -> dict:
    """Prints and returns the accuracy on held-out rankings, and on those of the newest policy."""
    if not validation:
        print("no prompt is held out, so the accuracy is unknown")
        return {}
    token_budget = run.settings.token_budget
    result = validate(model, validation, token_budget)
    accuracy, interval = result["validation_accuracy"], result["validation_interval"]
    longer_wins = result["beside_length"]["longer_wins"]
    print(
        f"validation accuracy {accuracy:.3f} ± {interval:.3f} on {result['validation_pairs']} "
        f"comparisons; choosing the longer response {longer_wins['mean']:.3f}"
    )
    if newest:
        before = run.extra["newest_before"]
        after = validate(model, newest, token_budget)["validation_accuracy"]
        result |= {"newest_before": before, "newest_after": after}
        print(f"on the newest rankings alone: {before:.3f} before training, {after:.3f} now")
    if said := agreement.warning(result["beside_length"]):
        print(f"warning: {said}")
    return result


def then(settings: Settings) -> list[str]:
    """The command that comes next."""
    policy = settings.normalize_on or settings.init
    words = ["python", "train_ppo.py", "--init", policy, "--reward", settings.out]
    if settings.template != Settings.template:
        words += ["--template", settings.template]
    return words


if __name__ == "__main__":
    start(main, Settings, then)
