"""The shortcut: the policy learns from rankings directly, without a reward model and, unless --online, without sampling.

log(policy/reference) of a whole response is its implicit reward; the loss raises the better response's over the worse one's
(Rafailov et al. 2023). Relatives by --loss: ipo, robust, simpo, orpo, kto; formulas and papers in minirlhf/losses.py.

    python train_dpo.py --init out/sft --data out/round1/rankings.jsonl --out out/dpo
    python train_dpo.py --loss kto --data thumbs.jsonl            # {"prompt", "response", "label": true or false}
    python train_dpo.py --online --reward out/rm --data toy       # sample, rank by the reward, one step, again
"""
import time
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minirlhf import UserError, data, lora, losses, rewards, rollout
from minirlhf.cli import start
from minirlhf.feedback import rank_by
from minirlhf.model import GPT
from minirlhf.run import Run, linear_decay, seed_of

BETA = {"sigmoid": 0.1, "robust": 0.1, "ipo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.1}      # the papers'


@dataclass
class Settings:
    init: str = "out/sft"         # policy to start from
    reference: str = ""           # model that holds the policy back, and that the KL is measured against; empty: --init
    data: str = "out/round1/rankings.jsonl"   # rankings or pairs; for kto also labelled responses; with --online prompts, or toy
    out: str = "out/dpo"          # the run's folder
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the response continues it as it is
    loss: str = "sigmoid"         # sigmoid (DPO), ipo, simpo, orpo, kto, robust
    beta: float = 0.0             # how dear it is to leave the reference (simpo: scale; orpo: weight); 0: the paper's
    ranking: str = "pairs"        # of K responses: pairs (all untied ones), or plackett_luce (sigmoid only)
    label_smoothing: float = 0.0  # chance that a label is wrong: conservative DPO with sigmoid; robust needs it
    simpo_margin: float = 1.0     # by which simpo's chosen reward must exceed the rejected one
    bad_weight: float = 1.0       # of kto's bad responses; good ones weigh 1
    online: bool = False          # responses are sampled from the policy at every step and ranked by --reward
    reward: str = ""              # online: what ranks: a reward model's folder, or file.py:function, or toy (the gold score)
    count: int = 8000             # online: how many prompts the toy world writes
    samples_per_prompt: int = 2   # online: responses to each prompt
    unfinished_score: float = -1.0  # online: score of a response that did not end with EOS, on the normalised scale
    max_tokens: int = 64          # longest sampled response
    temperature: float = 0.7      # of the policy that is trained and sampled: log-probs use it too; 1 is the papers'
    steps: int = 0                # optimiser steps; 0: as many as --epochs needs
    epochs: float = 1.0           # passes over the data, when --steps is 0
    batch_size: int = 32          # prompts a step, each with all its responses; kto: responses
    lr: float = 3e-4              # decays linearly to 0
    warmup: int = 10              # steps until the peak; 0: none
    lora_rank: int = 0            # train low-rank adapters of this rank and leave the weights as they are; 0: train all
    lora_alpha: float = 16.0      # the adapters' scale is alpha / rank
    token_budget: int = 4096      # tokens in a micro-batch; lower it if memory runs out, results stay
    validation: float = 0.1       # share of prompts held out
    eval_every: int = 50          # steps between looks at held-out accuracy and at samples
    eval_samples: int = 64        # held-out prompts that are answered then, for the KL
    log_every: int = 10           # steps between lines on the console
    save_every: int = 100         # steps between checkpoints
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16
    resume: bool = False          # go on with the run in --out
    overwrite: bool = False       # replace the run in --out
    show_batch: bool = False      # print the first batch with its ranks, trained tokens coloured, and exit


@dataclass
class Item:
    """A prompt with K responses that differ, as token ids."""
    text: str                     # the prompt
    prompt: list[int]
    responses: list[list[int]]    # kto: K = 1
    ranks: list[float]            # 1 = best, ties share a number; kto: 1 good, 2 bad
    reference: list[float]        # log-probs of the responses under the reference

    def longest(self) -> int:
        return len(self.prompt) + max(map(len, self.responses))

    def __len__(self) -> int:     # tokens to compute
        return len(self.responses) * self.longest()


def check(settings: Settings) -> None:
    """What does not go together is a UserError."""
    loss, flip = settings.loss, settings.label_smoothing
    if loss not in BETA or settings.ranking not in ("pairs", "plackett_luce") or settings.beta < 0:
        raise UserError(f"--loss {loss} --ranking {settings.ranking} --beta {settings.beta}: losses are {', '.join(BETA)}; "
                        "rankings pairs and plackett_luce; beta is positive, or 0 for the paper's")
    if settings.ranking == "plackett_luce" and (loss != "sigmoid" or flip):
        raise UserError("--ranking plackett_luce is DPO's: it goes with --loss sigmoid, without --label_smoothing")
    if not 0 <= flip < 0.5 or (loss == "robust" and not flip) or (flip and loss not in ("sigmoid", "robust")):
        raise UserError(f"--label_smoothing {flip} with --loss {loss}: the chance of a wrong label, 0 to under 0.5; sigmoid may "
                        "have it, robust must, no other loss can")
    if settings.online and (not settings.reward or settings.samples_per_prompt < 2 or loss == "kto"):
        raise UserError("--online compares samples: it needs a --reward, 2 or more --samples_per_prompt and another loss than kto")


def read(settings: Settings, policy: GPT) -> list[Item]:
    """The data as token ids; what does not fit the model is skipped and counted."""
    if settings.loss == "kto":
        found = [(p, [x], [2 - good]) for p, x, good in data.read_labelled(settings.data, template=settings.template)]
    else:
        rankings = data.read_rankings(settings.data, template=settings.template)
        found = [(r.prompt, *data.distinct(r.responses, r.ranks)) for r in rankings]
    t = policy.tokenizer
    items = [Item(prompt, t.encode_prompt(prompt) or [t.eos_id], [t.encode_response(prompt, x) for x in responses], ranks, [])
             for prompt, responses, ranks in found]
    return data.fit(items, policy.config.n_positions, "records", length=Item.longest)


def sample_and_rank(settings: Settings, policy: GPT, prompts: list[str], reward_fn, generator) -> tuple[list[Item], Tensor]:
    """Online: the policy's own responses, ranked by their scores -> what can be compared, and all the scores (B,)."""
    K, items = settings.samples_per_prompt, []
    batch = rollout.sample(policy, prompts, settings.max_tokens, generator, temperature=settings.temperature, samples_per_prompt=K)
    scores = torch.tensor(reward_fn(batch.prompts, batch.responses))
    scores = torch.where(batch.finished.cpu(), scores, settings.unfinished_score)
    rows = [row[:length] for row, length in zip(batch.tokens.tolist(), batch.lengths.tolist())]     # not encoded anew
    for i in range(0, len(rows), K):
        P = int(batch.prompt_lengths[i])
        responses, ranks = data.distinct([row[P:] for row in rows[i : i + K]], rank_by(scores[i : i + K].tolist()))
        items += [Item(batch.prompts[i], rows[i][:P], responses, ranks, [])] * (len(set(ranks)) > 1)
    return items, scores


def logprobs(model: GPT, items: list[Item], temperature: float) -> Tensor:
    """Of all responses, each summed over its tokens, one after another (N,): chosen and rejected in one forward."""
    rows = [(item.prompt, response) for item in items for response in item.responses]
    tokens, lengths = (x.to(model.device) for x in data.pad([prompt + response for prompt, response in rows]))  # (N, T), (N,)
    prompt_lengths = torch.tensor([len(prompt) for prompt, _ in rows], device=model.device)                  # (N,)
    return rollout.logprobs(model, rollout.Rollout([], [], tokens, prompt_lengths, lengths, lengths > 0), temperature).sum(1)


@torch.no_grad()
def with_reference(model: GPT, items: list[Item], settings: Settings) -> list[Item]:
    """The items with their responses' log-probs under this model."""
    out = list(items)
    for part in data.micro_batches(list(map(len, items)), settings.token_budget):
        found = iter(logprobs(model, [items[i] for i in part], settings.temperature).tolist())
        for i in part:
            out[i] = replace(items[i], reference=[next(found) for _ in items[i].responses])
    return out


def mismatched_kl(policy: GPT, reference: GPT, items: list[Item], settings: Settings) -> float:
    """KTO's point of reference: mean log(policy/reference), at least 0, of prompts with the next item's response."""
    pairs = [replace(a, responses=b.responses) for a, b in zip(items, items[1:] + items[:1]) if a.prompt != b.prompt]
    pairs = [pair for pair in pairs if pair.longest() <= policy.config.n_positions and settings.loss == "kto"]
    p, q = (sum(x.reference[0] for x in with_reference(model, pairs, settings)) for model in (policy, reference))
    return max(0.0, (p - q) / max(1, len(pairs)))


def loss_of(policy: GPT, items: list[Item], settings: Settings, kl: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the items' losses, an item's being its pairs' mean; and, of each pair (kto: response), what there is to look at."""
    def table(rows) -> Tensor:
        return pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True).to(policy.device)

    beta, flip = settings.beta or BETA[settings.loss], settings.label_smoothing
    ref, ranks = table(item.reference for item in items), table(item.ranks for item in items)       # (B, K)
    n = table(list(map(len, item.responses)) for item in items)                                     # (B, K), 0: no response
    logp = rollout.per_token(logprobs(policy, items, settings.temperature), n > 0)                  # (B, K)
    if settings.loss == "kto":
        good = ranks[:, 0] == 1                                                                     # (B,)
        each, reward = losses.kto_loss(logp[:, 0], ref[:, 0], good, kl, beta, 1.0, settings.bad_weight)
        loss, c, r, chosen, rejected = each.sum(), (good, 0), (~good, 0), reward[good], reward[~good]
        right, pairs = (reward > beta * kl) == good, torch.ones_like(good)
    else:
        better = losses.untied_pairs(ranks, n > 0)                                                  # (B, K, K)
        pairs, (row, i, j) = better.sum((1, 2)), better.nonzero(as_tuple=True)                      # (B,); (N,) of all pairs
        c, r = (row, i), (row, j)                                                                   # chosen, rejected
        if settings.loss == "simpo":
            each, chosen, rejected = losses.simpo_loss(logp[c], logp[r], n[c], n[r], beta, settings.simpo_margin)
        elif settings.loss == "orpo":
            each, chosen, rejected = losses.orpo_loss(logp[c], logp[r], n[c], n[r], beta)
        else:
            each, chosen, rejected = losses.dpo_loss(logp[c], logp[r], ref[c], ref[r], beta, flip, settings.loss)
        whole = settings.ranking == "plackett_luce"
        loss = (losses.plackett_luce_loss(beta * (logp - ref), better) if whole else each / pairs[row]).sum()
        right = torch.zeros(len(items)).to(each).index_add(0, row, (1 + (chosen - rejected).sign()) / 2)
    return loss, {"chosen_logp": logp.detach()[c], "rejected_logp": logp.detach()[r], "chosen_reward": chosen,
                  "rejected_reward": rejected, "right": right, "pairs": pairs}


def in_micro_batches(policy: GPT, items: list[Item], settings: Settings, kl: float) -> tuple[float, dict[str, float]]:
    """The items' mean loss, and means of what there is to look at. Where gradients are enabled they are added up."""
    loss, seen = 0.0, defaultdict(list)
    for part in data.micro_batches(list(map(len, items)), settings.token_budget):
        part_loss, stats = loss_of(policy, [items[i] for i in part], settings, kl)
        if torch.is_grad_enabled():
            (part_loss / len(items)).backward()
        loss += float(part_loss.detach()) / len(items)
        for name, values in stats.items():
            seen[name] += values.tolist()
    right, pairs = (torch.tensor(seen.pop(name, [])) for name in ("right", "pairs"))
    accuracy = losses.estimate(torch.arange(len(pairs)), [right], [pairs])
    means = {name: sum(values) / len(values) for name, values in seen.items() if values}
    means["margin"] = means.get("chosen_reward", 0.0) - means.get("rejected_reward", 0.0)     # kto's step may have one side only
    return loss, means | ({"accuracy": accuracy["mean"], "interval": accuracy["interval"]} if items else {})


def main(settings: Settings) -> None:
    # 1. policy, reference, data
    check(settings)
    policy = GPT.from_pretrained(settings.init)
    shared = settings.lora_rank and settings.reference in ("", settings.init)
    reference = None if shared else GPT.from_pretrained(settings.reference or settings.init)
    if reference and reference.tokenizer.vocab != policy.tokenizer.vocab:
        raise UserError(f"--reference {settings.reference} has another vocabulary than {settings.init}: both give log-probs of the "
                        "same tokens, so take models of one family")
    prompts = {"count": settings.count, "seed": settings.seed, "template": settings.template}
    train = data.read_prompts(settings.data, **prompts) if settings.online else read(settings, policy)
    train, validation = data.held_out(train, key=lambda x: getattr(x, "text", x), fraction=settings.validation)
    questions = list(dict.fromkeys(getattr(x, "text", x) for x in validation or train))
    if settings.show_batch:
        first = data.batch_indices(len(train), 0, settings.batch_size, settings.seed)
        for item in [] if settings.online else [train[i] for i in first]:
            for rank, x in zip(item.ranks, item.responses):
                print(f"rank {rank:g}: {policy.tokenizer.show(item.prompt + x, [False] * len(item.prompt) + [True] * len(x))}\n")
        return
    run = Run(settings, "train_dpo.py")
    if run.finished:
        return print(f"{run.folder} is finished already")
    lora.add(run.place(policy), settings.lora_rank, settings.lora_alpha, seed_of(settings.seed, "lora"))
    reference = lora.base(policy) if shared else run.place(reference, frozen=True)
    reward_fn = rewards.load(settings.reward, run.place) if settings.reward else None
    if not settings.online:
        train, validation = (with_reference(reference, items, settings) for items in (train, validation))
    steps = settings.steps or max(1, round(settings.epochs * len(train) / settings.batch_size))
    optimizer = run.adamw([policy], settings.lr)
    run.track(optimizer, policy=policy)
    print(f"{len(train)} {'prompts' if settings.online else 'records'}, {len(validation)} held out, {steps} steps on {run.device}")

    for step in run.steps(steps):
        # 2. a batch: from the file, or answered by the policy and ranked now
        began, row = time.time(), {}
        batch = [train[i] for i in data.batch_indices(len(train), step, settings.batch_size, settings.seed)]
        if settings.online:
            batch, row["score"] = sample_and_rank(settings, policy, batch, reward_fn, run.generator("sample", step))
            batch = with_reference(reference, batch, settings)

        # 3. its loss, one step of AdamW
        loss, means = in_micro_batches(policy, batch, settings, mismatched_kl(policy, reference, batch, settings))
        lr = settings.lr * linear_decay(step, steps, settings.warmup)
        norm = run.update(optimizer, [policy], lr, loss, step)
        row |= means | {"loss": loss, "lr": lr, "grad_norm": norm, "compared": len(batch)}

        # 4. look at it: held-out comparisons, and how far from the reference the policy's own samples are
        if (step + 1) % settings.eval_every == 0 or step + 1 == steps:
            if validation and not settings.online:
                with torch.no_grad():
                    _, held = in_micro_batches(policy, validation, settings, mismatched_kl(policy, reference, validation, settings))
                row |= {f"validation_{k}": held[k] for k in ("accuracy", "interval", "margin") if k in held}
            said = rollout.sample(policy, questions[: settings.eval_samples], settings.max_tokens, run.generator("look"),
                                  temperature=settings.temperature)
            row["kl"] = (rollout.in_parts(rollout.logprobs, policy, said, settings.temperature)
                         - rollout.in_parts(rollout.logprobs, reference, said, settings.temperature)).sum(1)
            row["finished"] = said.finished
            run.samples(step, [{"prompt": p, "response": r} for p, r in zip(said.prompts[:8], said.responses)], show=1)
        run.log(step, ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp", "score", "validation_accuracy", "kl"),
                **row, seconds=time.time() - began)

    run.finish(lora.merge(policy), peak_gib=run.peak_memory(),
               **{k: x for k, x in run.row.items() if k.startswith(("validation", "kl"))})


if __name__ == "__main__":
    start(main, Settings)
