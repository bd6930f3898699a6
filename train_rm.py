"""Stage 2, the reward model: rankings of responses -> one number that says how much people would like a response.

It starts from the SFT model with a fresh scalar head, reads prompt, response and EOS, and gives its score at the EOS. All
pairs of one prompt's K responses are one element of the batch, the prompt computed once for all of them: K scores, C(K,2)
comparisons (Ouyang et al. 2022, equation 1). Afterwards its scores are shifted and scaled to mean 0, std 1 on samples of
the model it started from.

    python train_rm.py --init out/sft --data out/round1/rankings.jsonl --out out/round1/rm
    python train_rm.py --init out/sft --data helpful-base.jsonl.gz          # pairs: prompt, chosen, rejected
"""
import time
from dataclasses import dataclass

import torch

from minirlhf import losses, probes, rollout
from minirlhf.cli import start
from minirlhf.data import Ranking, batch_indices, fit, held_out, micro_batches, read_rankings
from minirlhf.model import GPT, ScalarGPT
from minirlhf.rewards import TrainedReward
from minirlhf.run import Run, cosine_decay


@dataclass
class Settings:
    init: str = "out/sft"         # model folder to start from: an SFT model, or a reward model that goes on learning
    data: str = "out/round1/rankings.jsonl"   # rankings (prompt, responses, ranks) or pairs (prompt, chosen, rejected)
    out: str = "out/rm"           # the run's folder
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the response continues it as it is
    soft: bool = True             # learn from an AI's preferences as chances; no: from the ranks alone
    steps: int = 0                # optimiser steps; 0: as many as --epochs needs
    epochs: float = 2.0           # passes over the rankings, when --steps is 0
    batch_size: int = 8           # prompts a step, each with all its responses
    lr: float = 7e-4              # peak learning rate; cosine to a tenth
    warmup: int = 10              # steps until the peak; 0: none
    weight_decay: float = 0.01    # on matrices
    token_budget: int = 4096      # tokens in a micro-batch; lower it if memory runs out, results stay
    checkpointing: bool = False   # recompute activations in the backward pass: far less memory, a third more work
    compile: bool = False         # torch.compile the blocks: a minute at the start, faster steps on a GPU
    validation: float = 0.1       # share of prompts held out
    normalize_samples: int = 256  # samples of a policy on which scores get mean 0, std 1; 0: leave them
    normalize_on: str = ""        # that policy; empty: --init, which is then a language model
    max_tokens: int = 64          # length of those samples
    temperature: float = 0.7      # of those samples
    log_every: int = 20           # steps between lines on the console
    save_every: int = 100         # steps between checkpoints
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16
    resume: bool = False          # go on with the run in --out
    overwrite: bool = False       # replace the run in --out
    show_batch: bool = False      # print the first batch, the tokens that are scored coloured, and exit


# one prompt: its ids, its K responses' ids, their K ranks, and what the loss takes: [i][j], the chance that i is better than j
Group = tuple[list[int], list[list[int]], list[int], list[list[float]]]


def to_groups(tokenizer, rankings: list[Ranking], limit: int, soft: bool = True) -> list[Group]:
    """Rankings -> token ids; a ranking of which one response does not fit is skipped whole, and counted."""
    groups = [(tokenizer.encode_prompt(r.prompt), [tokenizer.encode_response(r.prompt, x) for x in r.responses], r.ranks,
               r.preferences if soft and r.preferences else [[float(a < b) for b in r.ranks] for a in r.ranks]) for r in rankings]
    return fit(groups, limit, "rankings", length=lambda group: len(group[0]) + max(map(len, group[1])))


def tokens_of(group: Group) -> int:
    """The prompt counts once: its responses share it."""
    return len(group[0]) + sum(map(len, group[1]))


def scores_of(model: ScalarGPT, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B prompts) -> scores (B, K), ranks (B, K), mask (B, K): K is the largest number of responses."""
    flat = model.score_groups([(prompt, responses) for prompt, responses, *_ in groups])
    K = torch.tensor([len(ranks) for _, _, ranks, _ in groups], device=model.device)
    mask = torch.arange(int(K.max()), device=model.device) < K[:, None]
    ranks = torch.zeros(mask.shape, device=model.device)
    ranks[mask] = torch.tensor([float(x) for _, _, ranks, _ in groups for x in ranks], device=model.device)
    return torch.zeros(mask.shape, device=model.device).masked_scatter(mask, flat), ranks, mask


def preferences_of(groups: list[Group], scores: torch.Tensor) -> torch.Tensor:
    """(B, K, K) beside the scores (B, K)."""
    out = scores.new_zeros(*scores.shape, scores.shape[1])
    for i, (*_, p) in enumerate(groups):
        out[i, : len(p), : len(p)] = torch.tensor(p)
    return out


def parts(groups: list[Group], token_budget: int) -> list[list[int]]:
    """Whole prompts in micro-batches of similar length."""
    return micro_batches(list(map(tokens_of, groups)), token_budget)


@torch.no_grad()
def validate(model: ScalarGPT, groups: list[Group], token_budget: int) -> dict:
    """Accuracy on held-out comparisons with its 95 % interval (prompts are the independent units), and calibration."""
    prompt, differences = [], []
    for part in parts(groups, token_budget):
        scores, ranks, mask = scores_of(model, [groups[i] for i in part])
        better = losses.untied_pairs(ranks, mask)                                           # (B, K, K): row beats column
        differences += (scores[:, :, None] - scores[:, None, :])[better].tolist()
        prompt += [part[i] for i in better.nonzero()[:, 0].tolist()]
    prompt, d = torch.tensor(prompt, dtype=torch.long), torch.tensor(differences, dtype=torch.float64)      # (N,) each, N pairs
    accuracy = probes.accuracy(prompt, d)
    return {"validation_accuracy": accuracy["mean"], "validation_interval": accuracy["interval"], "validation_pairs": len(d),
            "validation_loss": float(torch.nn.functional.softplus(-d).mean()), "calibration": probes.calibration(prompt, d)}


def normalization(run: Run, model: ScalarGPT, parent: GPT, settings: Settings, prompts: list[str]) -> tuple[float, float]:
    """Mean and std of the raw scores on samples of the policy that is to be improved (Ziegler et al. 2019, section 2.1)."""
    run.place(parent, frozen=True)
    room = parent.config.n_positions - settings.max_tokens
    prompts = [p for p in dict.fromkeys(prompts) if len(parent.tokenizer.encode_prompt(p)) <= room]
    batch = rollout.sample(parent, prompts[: settings.normalize_samples], settings.max_tokens, run.generator("normalize"),
                           temperature=settings.temperature)
    scores = torch.tensor(TrainedReward(model)(batch.prompts, batch.responses))
    return float(scores.mean()), max(float(scores.std()), 1e-6)


def main(settings: Settings) -> None:
    # 1. rankings and the model: SFT's trunk, a head of zeros
    rankings = read_rankings(settings.data, template=settings.template)
    model = ScalarGPT.from_pretrained(settings.init, score_mean=0.0, score_std=1.0)
    parent = None                                          # whose samples get scores of mean 0, std 1
    if settings.normalize_samples:
        parent = GPT.from_pretrained(settings.normalize_on or settings.init)
    train, validation = held_out(rankings, key=lambda r: r.prompt, fraction=settings.validation)
    prompts = [r.prompt for r in train]
    newest = [r for r in validation if r.where.startswith(settings.data.split(",")[-1].strip())]
    train, validation, newest = (to_groups(model.tokenizer, x, model.config.n_positions, settings.soft)
                                 for x in (train, validation, newest))
    if settings.show_batch:
        for i in batch_indices(len(train), 0, settings.batch_size, settings.seed):
            prompt, responses, ranks, _ = train[i]
            for response, rank in zip(responses, ranks):
                row = prompt + response
                print(f"rank {rank}: {model.tokenizer.show(row, [False] * (len(row) - 1) + [True])}")
            print()
        return
    run = Run(settings, "train_rm.py")
    if run.finished:
        return print(f"{run.folder} is finished already")
    run.place(model)
    steps = settings.steps or max(1, round(settings.epochs * len(train) / settings.batch_size))
    optimizer = run.adamw([model], settings.lr, weight_decay=settings.weight_decay)
    run.track(optimizer, model=model)
    print(f"{len(train)} rankings, {len(validation)} held out, {steps} steps on {run.device}")
    if "newest_before" not in run.extra and newest:        # a reward model that goes on: what was it worth on new samples?
        run.extra["newest_before"] = validate(model, newest, settings.token_budget)["validation_accuracy"]
    run.memory()

    for step in run.steps(steps):
        # 2. a batch of prompts with all their responses; the loss is the mean over prompts of the mean over their pairs
        began, loss, accuracy, tokens = time.time(), 0.0, 0.0, 0
        batch = [train[i] for i in batch_indices(len(train), step, settings.batch_size, settings.seed)]
        for part in parts(batch, settings.token_budget):
            groups = [batch[i] for i in part]
            scores, ranks, mask = scores_of(model, groups)
            part_loss, stats = losses.ranking_loss(scores, ranks, mask, len(batch), preferences_of(groups, scores))
            part_loss.backward()
            loss += float(part_loss.detach())
            accuracy += float(stats["accuracy"]) * len(part) / len(batch)
        tokens = sum(map(tokens_of, batch))

        # 3. one step of AdamW
        lr = settings.lr * cosine_decay(step, steps, settings.warmup)
        norm = run.update(optimizer, [model], lr, loss, step)
        run.log(step, ("loss", "accuracy", "tokens_per_second"), loss=loss, accuracy=accuracy, lr=lr, grad_norm=norm,
                tokens_per_second=tokens / (time.time() - began))

    # 4. how good is it on prompts it has not seen, and on which scale are its scores
    result = validate(model, validation, settings.token_budget)
    print("validation accuracy {validation_accuracy:.3f} ± {validation_interval:.3f} on {validation_pairs} comparisons"
          .format(**result))
    if newest:
        result |= {"newest_before": run.extra["newest_before"],
                   "newest_after": validate(model, newest, settings.token_budget)["validation_accuracy"]}
        print("on the newest rankings alone: {newest_before:.3f} before training, {newest_after:.3f} now".format(**result))
    if result["validation_accuracy"] - result["validation_interval"] < 0.5:
        print("warning: 0.5 lies inside the interval: this reward model has not been seen to beat a coin")
    if parent:
        model.config.score_mean, model.config.score_std = normalization(run, model, parent, settings, prompts)
    run.finish(model, peak_gib=run.peak_memory(), **result)


if __name__ == "__main__":
    start(main, Settings)
