"""Stage 1, supervised fine-tuning: the model learns to answer as the demonstrations do.

Loss on the assistant's tokens and their EOS only. Pretraining is the same thing: plain text, every token supervised.
Ouyang et al. 2022, section 3.5. With no --init it starts from nothing: a fresh GPT and a tokenizer trained on the data.

    python train_sft.py                              # the toy world, about three minutes on two CPU cores
    python train_sft.py --init out/sft --data my_demonstrations.jsonl --out out/my_sft
"""
import time
from dataclasses import dataclass

import torch

from minirlhf import UserError, lora
from minirlhf.cli import start
from minirlhf.data import batch_indices, fit, held_out, micro_batches, pad, read_demonstrations
from minirlhf.model import GPT, Config
from minirlhf.run import Run, cosine_decay, seed_of
from minirlhf.tokenizer import Tokenizer


@dataclass
class Settings:
    init: str = ""                # model folder to start from; empty: a fresh model of the sizes below
    data: str = "toy"             # demonstrations: toy, or JSONL files (text | prompt, completion | messages), comma-separated
    out: str = "out/sft"          # the run's folder
    count: int = 65000            # how many demonstrations the toy world writes
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the completion continues it as it is
    steps: int = 1000             # optimiser steps
    batch_size: int = 64          # sequences a step
    optimizer: str = "auto"       # muon, adamw; auto: muon for a fresh model, adamw for one that goes on from --init
    lr: float = 5e-3              # peak learning rate; cosine to a tenth
    warmup: int = 50              # steps until the peak; 0: none
    weight_decay: float = 0.1     # on matrices
    n_layer: int = 4              # fresh model: blocks
    n_head: int = 4               # fresh model: attention heads
    n_embd: int = 128             # fresh model: width
    n_positions: int = 192        # fresh model: longest sequence in tokens
    vocab_size: int = 2048        # fresh model: tokens of its tokenizer
    lora_rank: int = 0            # train low-rank adapters of this rank on --init's weights; 0: train the weights
    lora_alpha: float = 16.0      # the adapters' scale is alpha / rank
    token_budget: int = 4096      # tokens in a micro-batch; lower it if memory runs out, results stay
    checkpointing: bool = False   # recompute activations in the backward pass: far less memory, a third more work
    compile: bool = False         # torch.compile the blocks: a minute at the start, faster steps on a GPU
    validation: float = 0.01      # share of prompts held out
    eval_every: int = 250         # steps between validation losses
    log_every: int = 50           # steps between lines on the console
    save_every: int = 250         # steps between checkpoints
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16
    resume: bool = False          # go on with the run in --out
    overwrite: bool = False       # replace the run in --out
    show_batch: bool = False      # print the first batch, supervised tokens coloured, and exit


def fresh_model(settings: Settings, texts: list[str]) -> GPT:
    """A GPT-2 of the given sizes with its own tokenizer; initial weights depend on the seed alone."""
    tokenizer = Tokenizer.train(texts, settings.vocab_size)
    if settings.n_embd % settings.n_head:
        raise UserError(f"--n_embd {settings.n_embd} must be a multiple of --n_head {settings.n_head}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, "init") % 2**63)
        return GPT(Config(tokenizer.vocab_size, settings.n_positions, settings.n_embd, settings.n_layer, settings.n_head),
                   tokenizer)


def to_rows(model: GPT, demonstrations: list, needed: bool = True) -> list[tuple[list[int], list[bool]]]:
    """Segments -> (ids, supervised). Plain text longer than the context becomes several rows; over-long dialogues are skipped."""
    size, rows, dialogues = model.config.n_positions, [], []
    for segments in demonstrations:
        ids, mask = model.tokenizer.render(segments)
        if all(mask):
            rows += [(ids[i : i + size], mask[i : i + size]) for i in range(0, len(ids), size) if len(ids) - i > 1]
        else:
            dialogues.append((ids, mask))
    return rows + fit(dialogues, size, "demonstrations", length=lambda row: len(row[0]), needed=needed)


def loss_of(model: GPT, rows: list[tuple[list[int], list[bool]]], total: int) -> torch.Tensor:
    """Sum of -log p over the rows' supervised tokens, divided by `total`: micro-batches of a step add up to its mean."""
    tokens, _ = pad([ids for ids, _ in rows])                                # (B, T)
    wanted, _ = pad([mask for _, mask in rows])                              # (B, T)
    tokens, wanted = tokens.to(model.device), wanted[:, 1:].bool().to(model.device)
    hidden = model.hidden(tokens[:, :-1], wanted=wanted)                     # (N, D): only where a token is supervised
    return -model.token_logprobs(hidden, tokens[:, 1:][wanted]).sum() / total


def supervised(rows) -> int:
    return sum(sum(mask[1:]) for _, mask in rows)      # a row's first token has nothing to be predicted from


@torch.no_grad()
def validation_loss(model: GPT, rows: list, token_budget: int) -> float:
    total = supervised(rows)
    return sum(float(loss_of(model, [rows[i] for i in part], total))
               for part in micro_batches([len(ids) for ids, _ in rows], token_budget))


def main(settings: Settings) -> None:
    # 1. demonstrations, model, tokenizer
    demonstrations = read_demonstrations(settings.data, count=settings.count, seed=settings.seed, template=settings.template)
    if settings.lora_rank and (not settings.init or settings.optimizer == "muon"):
        raise UserError("--lora_rank adapts, with AdamW, a model that has learnt something: give it as --init, without "
                        "--optimizer muon, or train all weights")
    if settings.init:
        model = GPT.from_pretrained(settings.init)
    else:
        model = fresh_model(settings, ["".join(text for text, _ in segments) for segments in demonstrations])
    train, validation = held_out(demonstrations, key=lambda segments: segments[0][0], fraction=settings.validation)
    train, validation = to_rows(model, train), to_rows(model, validation, needed=False)
    if settings.optimizer not in ("auto", "muon", "adamw"):
        raise UserError(f"--optimizer {settings.optimizer}: unknown; take auto, muon or adamw")
    if settings.show_batch:
        for i in batch_indices(len(train), 0, settings.batch_size, settings.seed):
            print(model.tokenizer.show(*train[i]), end="\n\n")
        return
    run = Run(settings, "train_sft.py")
    if run.finished:
        return print(f"{run.folder} is finished already")
    lora.add(run.place(model), settings.lora_rank, settings.lora_alpha, seed_of(settings.seed, "lora"))
    if settings.optimizer == "adamw" or (settings.optimizer == "auto" and settings.init):
        optimizer = run.adamw([model], settings.lr, weight_decay=settings.weight_decay)
    else:
        optimizer = run.muon(model, settings.lr, settings.weight_decay)
    run.track(optimizer, model=model)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(train)} demonstrations, {len(validation)} held out, {parameters / 1e6:.2f} M parameters, "
          f"vocabulary {model.tokenizer.vocab_size}, on {run.device}")
    run.memory()

    for step in run.steps(settings.steps):
        # 2. one batch, in micro-batches of similar length, so that little is padding
        began = time.time()
        batch = [train[i] for i in batch_indices(len(train), step, settings.batch_size, settings.seed)]
        total, loss, computed = supervised(batch), 0.0, 0
        for part in micro_batches([len(ids) for ids, _ in batch], settings.token_budget):
            part_loss = loss_of(model, [batch[i] for i in part], total)
            part_loss.backward()
            loss += float(part_loss.detach())
            computed += len(part) * max(len(batch[i][0]) for i in part)

        # 3. one step of the optimiser
        lr = settings.lr * cosine_decay(step, settings.steps, settings.warmup)
        norm = run.update(optimizer, [model], lr, loss, step)

        # 4. look at it
        more = {}
        if validation and ((step + 1) % settings.eval_every == 0 or step + 1 == settings.steps):
            more["validation_loss"] = validation_loss(model, validation, settings.token_budget)
        real = sum(len(ids) for ids, _ in batch)
        run.log(step, ("loss", "lr", "tokens_per_second", *more), loss=loss, lr=lr, grad_norm=norm,
                padding=1 - real / computed, tokens_per_second=real / (time.time() - began), **more)

    run.finish(lora.merge(model), validation_loss=run.row.get("validation_loss"), peak_gib=run.peak_memory())


if __name__ == "__main__":
    start(main, Settings)
