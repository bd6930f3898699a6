"""Stage 1, supervised fine-tuning: the model learns to answer as the demonstrations do.

The loss counts the assistant's tokens and the end of each turn alone (Ouyang et al. 2022, section
3.5). Pretraining is the same with plain text, where every token counts. Without --init the model
is a fresh GPT, and its tokenizer is trained on the data.

    python train_sft.py                              # the toy world, about two minutes on a CPU
    python train_sft.py --init out/sft --data my_demonstrations.jsonl --out out/my_sft
"""

import time
from dataclasses import dataclass
from typing import Literal

import torch

from minirlhf import UserError, lora
from minirlhf.batches import batch_indices, held_out, steps_of
from minirlhf.chat import PLAIN, Turns
from minirlhf.cli import at_least, start
from minirlhf.console import waiting
from minirlhf.data import mixed, read_demonstrations
from minirlhf.model import GPT, Config
from minirlhf.optim import adamw, linear_decay, muon, take_step
from minirlhf.run import Run, resumed_tokenizer, seed_of
from minirlhf.supervised import add_gradient, row_length, row_prompt, to_rows, validation_loss
from minirlhf.tokenizer import Tokenizer


@dataclass
class Settings:
    # everyday
    init: str = ""  # model to start from: a folder or a Hugging Face name; empty: a fresh model
    data: str = "toyworld"  # demonstrations: files, comma-separated, or a world's module
    out: str = "out/sft"  # the run's folder
    data_weights: str = ""  # shares of several files, "0.3,0.7"; empty: all records of all
    steps: int = 750  # optimiser steps
    epochs: float = 0.0  # passes over the demonstrations, instead of --steps
    batch_size: int = 64  # sequences a step
    lr: float = -1.0  # peak; falls linearly to 0; -1: fresh 2e-2, by AdamW 5e-3; with --init 1e-4

    # method
    optimizer: Literal["auto", "muon", "adamw"] = "auto"  # auto: muon for a fresh model, else adamw
    warmup: int = 20  # steps until the peak; 0: none
    weight_decay: float = 0.1  # on matrices
    lora_rank: int = 0  # train low-rank adapters of this rank; 0: train all weights
    lora_alpha: float = 16.0  # the adapters' scale is alpha / rank
    validation: float = 0.01  # share of prompts held out
    eval_every: int = 250  # steps between validation losses

    # data and fresh model
    count: int = 65000  # how many demonstrations a world writes
    truncate: bool = False  # cut demonstrations that are too long, instead of leaving them out
    template: Literal["chat", "raw"] = "chat"  # chat: a bare prompt is a user turn; raw: plain text
    chat_format: Literal["auto", "plain", "chatml", "llama3"] = "auto"  # auto: the model's own
    n_layer: int = 4  # fresh model: blocks
    n_head: int = 2  # fresh model: attention heads
    n_embd: int = 128  # fresh model: width
    n_positions: int = 192  # fresh model: longest sequence in tokens
    vocab_size: int = 2048  # fresh model: tokens of its tokenizer
    arch: Literal["gpt2", "llama"] = "gpt2"  # fresh model: whose blocks it has

    # memory
    token_budget: int = 4096  # tokens in a micro-batch; lower it if memory runs out, results stay
    checkpointing: bool = False  # recompute activations: far less memory, a third more work
    compile: bool = False  # torch.compile the blocks: a minute at the start, faster steps on a GPU

    # run
    log_every: int = 50  # steps between lines on the console
    save_every: int = 250  # steps between checkpoints
    seed: int = 0  # seed of everything random
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products
    resume: bool = False  # go on with the run in --out
    overwrite: bool = False  # replace the run in --out
    show_batch: bool = False  # print the first batch, supervised tokens coloured, and exit


def check(settings: Settings) -> None:
    """UserError for settings that do not go together."""
    at_least(1, settings, "steps", "batch_size", "token_budget", "eval_every")
    at_least(1, settings, "n_layer", "n_head", "n_embd", "n_positions")
    if settings.epochs and settings.steps != Settings.steps:
        raise UserError("--steps and --epochs both say how long to train: give one of the two")
    if settings.lora_rank and (not settings.init or settings.optimizer == "muon"):
        raise UserError("--lora_rank needs --init, a model to adapt, and goes with AdamW only")
    if not settings.init and settings.chat_format not in ("auto", "plain"):
        raise UserError(
            f"--chat_format {settings.chat_format} needs --init, a model whose tokenizer has its "
            "special tokens"
        )
    if settings.n_embd % settings.n_head:
        raise UserError(
            f"--n_embd {settings.n_embd} must be a multiple of --n_head {settings.n_head}"
        )
    if settings.arch == "llama" and settings.n_embd // settings.n_head % 2:
        raise UserError(
            f"--n_embd {settings.n_embd} --n_head {settings.n_head}: --arch llama needs an even "
            "width of heads"
        )


def fresh_model(settings: Settings, demonstrations: list[Turns]) -> GPT:
    """A GPT of the given sizes with its own tokenizer. Weights depend on the seed alone."""
    tokenizer = resumed_tokenizer(settings)
    if tokenizer is None:
        texts = [PLAIN.text(turns) for turns in demonstrations]
        with waiting("training the tokenizer"):
            tokenizer = Tokenizer.train(texts, settings.vocab_size)
    config = Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=settings.n_positions,
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        model_type=settings.arch,
        activation_function="gelu",  # on a CPU in a quarter of the time that the tanh takes
    )
    if settings.arch == "llama":
        config.n_inner = 8 * round(settings.n_embd / 3)  # three matrices as large as GPT-2's two
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, "init"))
        return GPT(config, tokenizer)


def main(settings: Settings) -> None:
    # 1. demonstrations, tokenizer, model
    check(settings)
    which = {"template": settings.template, "count": settings.count, "seed": settings.seed}
    demonstrations = mixed(read_demonstrations, settings.data, settings.data_weights, **which)
    if settings.init:
        model = GPT.from_pretrained(settings.init, settings.chat_format)
    else:
        model = fresh_model(settings, demonstrations)
    with waiting("encoding"):
        rows = to_rows(model, demonstrations, cut=settings.truncate)
        train, validation = held_out(rows, key=row_prompt, fraction=settings.validation)
    if settings.show_batch:
        for i in batch_indices(len(train), 0, settings.batch_size, settings.seed):
            print(model.tokenizer.show(*train[i]), end="\n\n")
        return

    run = Run(settings, "train_sft.py")
    if run.finished:
        return run.say_finished()
    run.place(model, trained=True)
    lora.add(model, settings.lora_rank, settings.lora_alpha, seed_of(settings.seed, "lora"))
    uses_muon = settings.optimizer == "muon" or (settings.optimizer == "auto" and not settings.init)
    peak_lr = settings.lr
    if peak_lr == -1:
        fresh_lr = 2e-2 if uses_muon else 5e-3
        peak_lr = 1e-4 if settings.init else fresh_lr
    if uses_muon:
        optimizer = muon(model, peak_lr, settings.weight_decay)
    else:
        optimizer = adamw([model], peak_lr, weight_decay=settings.weight_decay)
    run.restore(optimizer, model=model)
    steps = settings.steps
    if settings.epochs:
        steps = steps_of(settings.epochs, len(train), settings.batch_size)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(train)} demonstrations, {len(validation)} held out, {steps} steps, "
        f"{parameters / 1e6:.2f} M parameters, vocabulary {model.tokenizer.vocab_size}, "
        f"on {run.device}"
    )
    run.say_memory()

    for step in run.steps(steps):
        # 2. the loss of a batch
        began = time.monotonic()
        indices = batch_indices(len(train), step, settings.batch_size, settings.seed)
        batch = [train[i] for i in indices]
        loss = add_gradient(model, batch, settings.token_budget)

        # 3. one step of the optimiser
        lr = peak_lr * linear_decay(step, steps, settings.warmup)
        grad_norm = take_step(optimizer, [model], lr, loss, step)

        # 4. look at it
        seconds = max(1e-9, time.monotonic() - began)
        metrics = {
            "loss": loss,
            "lr": lr,
            "tokens_per_second": sum(map(row_length, batch)) / seconds,
            "grad_norm": grad_norm,
        }
        if validation and run.is_due(step, settings.eval_every):
            metrics["validation_loss"] = validation_loss(model, validation, settings.token_budget)
        run.log(step, ("loss", "lr", "tokens_per_second", "validation_loss"), **metrics)

    run.finish(lora.merge(model), validation_loss=run.row.get("validation_loss"))


def then(settings: Settings) -> list[str]:
    """The command that comes next."""
    return ["python", "sample.py", "--init", settings.out, "--chat"]


if __name__ == "__main__":
    start(main, Settings, then)
