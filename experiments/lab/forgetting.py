"""Kinds of requests that RL trains, text of the others, and how much of it is forgotten."""

import random

import toyworld
from lab import arms
from lab.intervals import means
from minirlhf.data import read_demonstrations
from minirlhf.device import open_model
from minirlhf.model import GPT
from minirlhf.supervised import to_rows, validation_loss

TRAINED = ("comfort", "ideas", "fact", "refuse", "lookalike", "unknown", "belief")


def is_trained(prompt) -> bool:
    return toyworld.kind(prompt) in TRAINED


def is_other(prompt) -> bool:
    return not is_trained(prompt)


def texts(L, folder, *, count, seed):
    """{name: file} of text of the kinds that RL does not train, and of RL's prompts. An arm."""
    train = toyworld.demonstrations("train", 2 * count, 500 + seed)
    test = toyworld.demonstrations("test", 1000, seed)
    train = [row for row in train if is_other(row["prompt"])]
    test = [row for row in test if is_other(row["prompt"])]
    rng = random.Random(seed)
    shuffled = []
    for row in train:
        words = row["completion"].split()
        rng.shuffle(words)
        shuffled.append({"prompt": row["prompt"], "completion": " ".join(words)})
    prompts = arms.toy_prompts("train", count, seed, is_trained)
    return {
        "text": arms.write(f"{folder}/text.jsonl", train),
        "shuffled": arms.write(f"{folder}/shuffled.jsonl", shuffled),
        "held_out": arms.write(f"{folder}/held_out.jsonl", test[:300]),
        "prompts": arms.write_prompts(f"{folder}/prompts.jsonl", prompts),
    }


def tax(L, folder, policy, held_out, questions, seed) -> dict:
    """Nats per token on the held-out text; gold on the kinds that RL trains, and elsewhere."""
    model = open_model(GPT, policy, L.device)
    rows = to_rows(model, read_demonstrations(held_out))
    gold = {}
    for name, keep in (("gold", is_trained), ("elsewhere", is_other)):
        asked = {"keep": keep, "samples": 2, "seed": 1000 + seed}
        answers = arms.answer(L, f"{folder}/{name}", policy, questions, **asked)
        gold[name] = answers.each(arms.gold)
    return {"lm_loss": validation_loss(model, rows, 4096), **means(**gold)}
