"""The shortcut: the policy learns from rankings directly, without a reward model and, unless
--online, without sampling.

log(policy/reference) of a whole response is its implicit reward, and the loss raises the better
response's over the worse one's (Rafailov et al. 2023). Its relatives are chosen with --loss; the
formulas and papers are in minirlhf/losses.py.

    python train_dpo.py --init out/sft --data out/round1/rankings.jsonl --out out/dpo
    python train_dpo.py --loss kto --data thumbs.jsonl     # {"prompt", "response", "label": true}
    python train_dpo.py --online --reward out/rm --data toyworld   # sample, rank, learn, again
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from operator import methodcaller
from typing import Literal

import torch
from torch import Tensor

from minirlhf import UserError, lora, losses, memory, rewards, rollout
from minirlhf.batches import batch_indices, draw, fit, held_out, micro_batches, steps_of
from minirlhf.cli import at_least, start
from minirlhf.console import waiting
from minirlhf.data import Prompt, distinct, mixed, read_labelled, read_prompts, read_rankings
from minirlhf.model import GPT
from minirlhf.optim import adamw, linear_decay, take_step
from minirlhf.preferences import Group
from minirlhf.rollout import in_micro_batches
from minirlhf.run import Run, seed_of
from minirlhf.stats import estimate, numbered, right
from minirlhf.truncate import encode


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # policy to start from
    data: str = "out/round1/rankings.jsonl"  # rankings, pairs; kto: also labels; --online: prompts
    data_weights: str = ""  # shares of several files, "0.3,0.7"; empty: all records of all
    out: str = "out/dpo"  # the run's folder
    loss: Literal["sigmoid", "ipo", "simpo", "orpo", "kto"] = "sigmoid"  # sigmoid is DPO
    beta: float = 0.0  # pull to the reference (simpo: scale; orpo: weight); 0: the paper's
    epochs: float = 1.0  # passes over the data
    steps: int = 0  # optimiser steps; 0: as many as --epochs needs
    batch_size: int = 32  # prompts a step, each with all its responses; kto: responses
    lr: float = 3e-4  # peak learning rate; decays linearly to 0

    # method
    reference: str = ""  # model that holds the policy back; empty: --init
    label_smoothing: float = 0.0  # sigmoid: chance that a label is wrong (conservative DPO)
    simpo_margin: float = 1.0  # simpo: by how much chosen must exceed rejected
    bad_weight: float = 1.0  # kto: weight of bad responses; good ones weigh 1
    warmup: int = 10  # steps until the learning rate's peak; 0: none
    lora_rank: int = 0  # train low-rank adapters of this rank; 0: train all weights
    truncate: bool = False  # cut records that are too long, instead of leaving them out

    # sampling
    online: bool = False  # learn from responses that the policy samples and --reward ranks
    reward: str = ""  # online: a reward model's folder, file.py:function or a world
    samples_per_prompt: int = 2  # online: responses to each prompt
    unfinished_score: float = -1.0  # online: score of a response without EOS
    count: int = 8000  # online: prompts that a world writes
    max_tokens: int = 64  # longest sampled response
    temperature: float = 0.7  # at which log-probs are taken and answers sampled; the papers: 1
    template: Literal["chat", "raw"] = "chat"  # chat: a text is a user turn; raw: it is continued

    # memory
    token_budget: int = 4096  # tokens in a micro-batch; lower it if memory runs out
    checkpointing: bool = False  # recompute activations in the backward pass

    # run
    validation: float = 0.1  # share of prompts held out
    eval_every: int = 50  # steps between validations, with samples
    log_every: int = 10  # steps between lines on the console
    save_every: int = 100  # steps between checkpoints
    seed: int = 0  # seed of everything random
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products
    resume: bool = False  # go on with the run in --out
    overwrite: bool = False  # replace the run in --out
    show_batch: bool = False  # print the first batch, trained tokens coloured, and exit


BETA = {"sigmoid": 0.1, "ipo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.1}  # the papers'
REFERENCE_FREE = ("simpo", "orpo")
LORA_ALPHA = 16.0
SHOWN = (
    "loss",
    "accuracy",
    "margin",
    "chosen_logp",
    "rejected_logp",
    "score",
    "validation_accuracy",
    "kl",
)
EVAL_SAMPLES = 64  # held-out prompts that are answered at a validation, for the KL


@dataclass
class Item(Group):
    """A prompt with K different ranked responses, as token ids; with KTO one, and no ranks."""

    good: bool = False  # kto
    reference_logprobs: list[float] = field(default_factory=list)  # one for each response


def read(settings: Settings, policy: GPT) -> list[Item]:
    """The data as token ids. What does not fit the model is skipped and counted, or cut."""
    which = {"seed": settings.seed, "template": settings.template}
    records = []  # prompt, responses, and what is known of them
    if settings.loss == "kto":
        for prompt, response, good in mixed(
            read_labelled, settings.data, settings.data_weights, **which
        ):
            records.append((prompt, [response], {"good": good}))
        good = sum(labels["good"] for _, _, labels in records)
        if not 0 < good < len(records):
            raise UserError(
                f"--data {settings.data}: {good} good and {len(records) - good} bad responses; "
                "KTO needs both"
            )
    else:
        for ranking in mixed(read_rankings, settings.data, settings.data_weights, **which):
            records.append((ranking.prompt, ranking.responses, {"ranks": ranking.ranks}))

    context = policy.config.n_positions
    texts = [(prompt.turns, responses) for prompt, responses, _ in records]
    encoded = encode(policy.tokenizer, texts, context, "records", settings.truncate)
    items = []
    for (prompt, _, labels), (prompt_ids, responses) in zip(records, encoded):
        items.append(Item(prompt, prompt_ids, responses, **labels))
    return fit(items, context, "records", length=Item.longest)


def read_online(settings: Settings, policy: GPT) -> list[Prompt]:
    """Prompts that leave room for --max_tokens."""
    which = {"template": settings.template, "count": settings.count, "seed": settings.seed}
    columns = rewards.columns(settings.reward)
    prompts = mixed(read_prompts, settings.data, settings.data_weights, columns=columns, **which)
    return rollout.prompts_that_fit(policy, prompts, settings.max_tokens, settings.truncate)


# --- log-probs of whole responses


def response_logprobs(model: GPT, items: list[Item], temperature: float) -> Tensor:
    """Log-probs of the items' responses, one after another, summed over tokens (N,)."""
    sequences = [sequence for item in items for sequence in item.sequences()]
    flat = rollout.sequence_logprobs(model, sequences, temperature)  # of all tokens
    lengths = [len(response) for _, response in sequences]
    return torch.stack([part.sum() for part in flat.split(lengths)])


@torch.no_grad()
def all_logprobs(model: GPT, items: list[Item], settings: Settings) -> list[list[float]]:
    """For each item the summed log-probs of its responses."""
    result = [[] for _ in items]
    parts = micro_batches([item.tokens() for item in items], settings.token_budget)
    with waiting("log-probs", len(items), "records") as bar:
        for part in parts:
            part_items = [items[i] for i in part]
            logprobs = response_logprobs(model, part_items, settings.temperature)
            sizes = [len(item.responses) for item in part_items]
            for i, own in zip(part, logprobs.split(sizes)):
                result[i] = own.tolist()
            bar.update(len(part))
    return result


def add_reference_logprobs(reference: GPT, items: list[Item], settings: Settings) -> None:
    for item, logprobs in zip(items, all_logprobs(reference, items, settings)):
        item.reference_logprobs = logprobs


# --- losses: the sum over items, and what there is to look at


def comparisons(items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """All untied pairs: the better and the worse response's number, and the item's, each (C,).

    Responses are counted through all items, to N; items within `items`.
    """
    pairs = []
    item_of_pair = []
    first = 0
    for number, item in enumerate(items):
        better = losses.untied_pairs(torch.tensor([item.ranks]))[0]  # (K, K)
        pairs.append(first + better.nonzero())  # (pairs of the item, 2)
        item_of_pair += [number] * len(pairs[-1])
        first += len(item.responses)
    chosen, rejected = torch.cat(pairs).unbind(1)
    return chosen, rejected, torch.tensor(item_of_pair)


def pair_loss(policy: GPT, items: list[Item], settings: Settings) -> tuple[Tensor, dict]:
    """DPO, IPO, SimPO, ORPO: an item's loss is the mean over its untied pairs."""
    beta = settings.beta or BETA[settings.loss]
    chosen, rejected, item_of_pair = comparisons(items)  # (C,)
    logprobs = response_logprobs(policy, items, settings.temperature)  # (N,)
    lengths = [len(ids) for item in items for ids in item.responses]
    lengths = torch.tensor(lengths, device=policy.device)  # (N,)

    policy_logprobs = logprobs[chosen], logprobs[rejected]
    pair_lengths = lengths[chosen], lengths[rejected]
    if settings.loss == "simpo":
        result = losses.simpo_loss(*policy_logprobs, *pair_lengths, beta, settings.simpo_margin)
    elif settings.loss == "orpo":
        result = losses.orpo_loss(*policy_logprobs, *pair_lengths, beta)
    else:
        reference_logprobs = [logprob for item in items for logprob in item.reference_logprobs]
        reference_logprobs = torch.tensor(reference_logprobs, device=policy.device)  # (N,)
        ref_logprobs = reference_logprobs[chosen], reference_logprobs[rejected]
        smoothing = settings.label_smoothing
        result = losses.dpo_loss(*policy_logprobs, *ref_logprobs, beta, smoothing, settings.loss)
    pair_losses, chosen_reward, rejected_reward = result  # (C,)
    pairs_of_its_item = item_of_pair.bincount()[item_of_pair].to(policy.device)  # (C,)
    return (pair_losses / pairs_of_its_item).sum(), {
        "chosen_logp": policy_logprobs[0],
        "rejected_logp": policy_logprobs[1],
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
        "right": right(chosen_reward - rejected_reward),
        "item": item_of_pair,
    }


def kto_loss(policy: GPT, items: list[Item], settings: Settings, kl: float) -> tuple[Tensor, dict]:
    """KTO: every response is good or bad by itself; kl is that of `mismatched_kl`."""
    beta = settings.beta or BETA["kto"]
    logprobs = response_logprobs(policy, items, settings.temperature)  # (B,)
    reference_logprobs = [item.reference_logprobs[0] for item in items]
    reference_logprobs = torch.tensor(reference_logprobs, device=policy.device)  # (B,)
    good = torch.tensor([item.good for item in items], device=policy.device)
    item_losses, reward = losses.kto_loss(
        logprobs, reference_logprobs, good, kl, beta, bad_weight=settings.bad_weight
    )
    return item_losses.sum(), {
        "chosen_logp": logprobs[good],
        "rejected_logp": logprobs[~good],
        "chosen_reward": reward[good],
        "rejected_reward": reward[~good],
        "right": ((reward > beta * kl) == good).float(),
        "item": torch.arange(len(items)),
    }


def mismatched_kl(policy: GPT, reference: GPT, items: list[Item], settings: Settings) -> float:
    """KTO's point of reference: mean log(policy/reference) of mismatched responses, at least 0.

    Each prompt is paired with the next item's response.
    """
    mismatched = []
    for item, following in zip(items, items[1:] + items[:1]):
        other = replace(item, responses=following.responses)
        if item.prompt != following.prompt and other.longest() <= policy.config.n_positions:
            mismatched.append(other)
    if not mismatched:
        return 0.0
    of_policy = sum(own[0] for own in all_logprobs(policy, mismatched, settings))
    of_reference = sum(own[0] for own in all_logprobs(reference, mismatched, settings))
    return max(0.0, (of_policy - of_reference) / len(mismatched))


def batch_loss(
    policy: GPT, reference: GPT, items: list[Item], settings: Settings
) -> tuple[float, dict]:
    """Mean loss and means to look at, in micro-batches. Gradients, where enabled, add up."""
    if not items:  # no samples of this step differ in score
        return 0.0, {}
    kl = 0.0
    if settings.loss == "kto":
        kl = mismatched_kl(policy, reference, items, settings)
    mean_loss = 0.0
    values = defaultdict(list)  # of each comparison
    requests = []  # that each of their conversations begins with
    for part in micro_batches([item.tokens() for item in items], settings.token_budget):
        part_items = [items[i] for i in part]
        if settings.loss == "kto":
            loss, part_values = kto_loss(policy, part_items, settings, kl)
        else:
            loss, part_values = pair_loss(policy, part_items, settings)
        loss = loss / len(items)
        if torch.is_grad_enabled():
            loss.backward()
        mean_loss += loss.item()
        requests += [part_items[i].first_request() for i in part_values.pop("item").tolist()]
        for name, tensor in part_values.items():
            values[name] += tensor.tolist()

    is_right = torch.tensor(values.pop("right"))
    accuracy = estimate(numbered(requests), [is_right], [torch.ones_like(is_right)], share=True)
    means = {name: sum(numbers) / len(numbers) for name, numbers in values.items() if numbers}
    means["margin"] = means.get("chosen_reward", 0.0) - means.get("rejected_reward", 0.0)
    return mean_loss, means | {"accuracy": accuracy["mean"], "interval": accuracy["interval"]}


# --- online


def sample_and_rank(
    settings: Settings, policy: GPT, prompts: list[Prompt], reward_fn, generator
) -> tuple[list[Item], Tensor]:
    """The policy's own responses, ranked by score -> items that differ in rank, all scores (B,)."""
    size = settings.samples_per_prompt
    batch = rollout.sample(
        policy,
        prompts,
        settings.max_tokens,
        generator,
        temperature=settings.temperature,
        samples_per_prompt=size,
    )
    scores = torch.tensor(reward_fn(batch.prompts, batch.responses), device=policy.device)
    scores = batch.with_penalty(scores, settings.unfinished_score)  # (B,)

    items = []
    sequences = batch.sequences()
    for first in range(0, len(sequences), size):
        responses = []
        own_scores = []
        group = slice(first, first + size)
        for (_, response), score in zip(sequences[group], scores[group].tolist()):
            if not math.isnan(score):
                responses.append(response)
                own_scores.append(score)
        ranks = [1 + sum(other > score for other in own_scores) for score in own_scores]
        kept, ranks = distinct(responses, ranks)
        if len(set(ranks)) > 1:
            prompt_ids, _ = sequences[first]
            responses = [responses[i] for i in kept]
            items.append(Item(batch.prompts[first], prompt_ids, responses, ranks=ranks))
    return items, scores


# --- main


def check(settings: Settings) -> None:
    at_least(1, settings, "batch_size", "eval_every", "log_every", "save_every")
    smoothing = settings.label_smoothing
    if smoothing >= 0.5 or (smoothing and settings.loss != "sigmoid"):
        raise UserError(
            f"--label_smoothing {smoothing} with --loss {settings.loss}: the chance of a wrong "
            "label is below 0.5 and goes with sigmoid only"
        )
    if settings.temperature == 0:
        raise UserError("--temperature 0: log-probs need a temperature above 0; the papers' is 1")
    if not settings.online:
        return
    if settings.show_batch:
        raise UserError("--show_batch shows the file's responses, and --online samples its own")
    if not settings.reward or settings.samples_per_prompt < 2 or settings.loss == "kto":
        raise UserError(
            "--online compares samples: it needs a --reward, 2 or more --samples_per_prompt and "
            "another --loss than kto"
        )


def prompts_to_answer(
    settings: Settings, policy: GPT, records: list[Item] | list[Prompt]
) -> list[Prompt]:
    """Different prompts for `validate_and_sample`; what leaves a response little room is cut."""
    prompts = [record if settings.online else record.prompt for record in records]
    prompts = draw(list(dict.fromkeys(prompts)), EVAL_SAMPLES, settings.seed)
    room = min(settings.max_tokens, policy.config.n_positions // 2)
    return rollout.prompts_that_fit(policy, prompts, room, cut=True)


def validate_and_sample(
    run: Run, policy: GPT, reference: GPT, validation: list, eval_prompts: list[Prompt], step: int
) -> dict:
    """Held-out comparisons, and the KL of the policy's own samples; some of them are printed."""
    settings = run.settings
    row = {}
    if validation and not settings.online:
        with torch.no_grad():
            _, means = batch_loss(policy, reference, validation, settings)
        for name in ("accuracy", "interval", "margin"):
            row[f"validation_{name}"] = means[name]
    temperature = settings.temperature
    batch = rollout.sample(
        policy,
        eval_prompts,
        settings.max_tokens,
        run.generator("look"),
        temperature=temperature,
    )
    logprobs = in_micro_batches(rollout.logprobs, policy, batch, temperature)  # (B, R)
    ref_logprobs = in_micro_batches(rollout.logprobs, reference, batch, temperature)  # (B, R)
    row["kl"] = (logprobs - ref_logprobs).sum(1)  # (B,)
    row["finished"] = batch.finished
    shown = zip(batch.prompts[:8], batch.responses, row["kl"].tolist())
    run.samples(step, [{"prompt": p.source, "response": r, "kl": kl} for p, r, kl in shown], show=4)
    return row


def show_batch(policy: GPT, items: list[Item]) -> None:
    for item in items:
        for i, response in enumerate(item.responses):
            label = f"rank {item.ranks[i]:g}" if item.ranks else f"good: {item.good}"
            trained = [False] * len(item.prompt_ids) + [True] * len(response)
            print(f"{label}: {policy.tokenizer.show(item.prompt_ids + response, trained)}\n")


def main(settings: Settings) -> None:
    # 1. data, policy, reference
    check(settings)
    policy = GPT.from_pretrained(settings.init)
    records = read_online(settings, policy) if settings.online else read(settings, policy)
    train, validation = held_out(records, methodcaller("first_request"), settings.validation)
    if settings.show_batch:
        first = batch_indices(len(train), 0, settings.batch_size, settings.seed)
        return show_batch(policy, [train[i] for i in first])
    eval_prompts = prompts_to_answer(settings, policy, validation or train)
    run = Run(settings, "train_dpo.py")
    if run.finished:
        return run.say_finished()
    run.place(policy, trained=True)
    lora.add(policy, settings.lora_rank, LORA_ALPHA, seed_of(settings.seed, "lora"))
    reference = run.open_reference(policy)
    steps = settings.steps or steps_of(settings.epochs, len(train), settings.batch_size)
    print(f"{len(train)} records, {len(validation)} held out, {steps} steps on {run.device}")
    run.say_memory(rollout.CACHED_AT_ONCE if settings.online else 0)
    if settings.online:
        reward_fn = rewards.load(settings.reward, run.device, settings.dtype)
    elif settings.loss not in REFERENCE_FREE:
        add_reference_logprobs(reference, train + validation, settings)
    optimizer = adamw([policy], settings.lr)
    run.restore(optimizer, policy=policy)

    for step in run.steps(steps):
        # 2. a batch: from the file, or answered by the policy and ranked now
        started = time.monotonic()
        row = {}
        indices = batch_indices(len(train), step, settings.batch_size, settings.seed)
        batch = [train[i] for i in indices]
        if settings.online:
            generator = run.generator("sample", step)
            batch, scores = sample_and_rank(settings, policy, batch, reward_fn, generator)
            row["score"] = scores.nanmean()
            if settings.loss not in REFERENCE_FREE:
                add_reference_logprobs(reference, batch, settings)

        # 3. its loss, one step of the optimiser
        loss, means = batch_loss(policy, reference, batch, settings)
        lr = settings.lr * linear_decay(step, steps, settings.warmup)
        grad_norm = take_step(optimizer, [policy], lr, loss, step)
        row |= means | {"loss": loss, "lr": lr, "grad_norm": grad_norm, "compared": len(batch)}

        # 4. held-out comparisons, and how far the policy's own samples have moved
        if run.is_due(step, settings.eval_every):
            row |= validate_and_sample(run, policy, reference, validation, eval_prompts, step)
        run.log(step, SHOWN, **row, seconds=time.monotonic() - started)

    policy.temperature = settings.temperature  # its folder says at which it is to be sampled
    final = {name: x for name, x in run.row.items() if name.startswith(("validation", "kl"))}
    run.finish(lora.merge(policy), peak_gib=memory.peak(run.device), **final)


def then(settings: Settings) -> list[str]:
    """The command that comes next."""
    return ["python", "sample.py", "--init", settings.out, "--chat"]


if __name__ == "__main__":
    start(main, Settings, then)
