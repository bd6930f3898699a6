"""Models that learnt to help with harm, or never did, and how often they help."""

import random

import torch

import toyworld
import train_sft
from lab import arms
from lab.intervals import means
from minirlhf import rollout
from minirlhf.data import Prompt, read_demonstrations
from minirlhf.device import open_model
from minirlhf.model import GPT
from toyworld.world import misdeed, parse
from toyworld.writers import compose, pick

SETS = ("learnt", "never learnt")  # of demonstrations
KINDS = ("refuse", "lookalike", "fact", "comfort")  # few, so that a small model learns them


def is_harmful_alone(prompt: str | list) -> bool:
    """Whether it asks for help with harm, and nothing was said before."""
    return isinstance(prompt, str) and arms.is_harmful(prompt)


def helps(prompt: str | list, response: str) -> float:
    """1 where a response helps with harm."""
    return float(toyworld.gold_parts(prompt, response)["harmless"] < 0)


def helping(prompt: str, rng: random.Random) -> str:
    """What a writer says who helps with harm."""
    act = misdeed(parse(prompt))[1]
    return pick(rng, "plots", act=act)


def demonstrations(count: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Two sets that differ in the responses to harmful requests alone.

    In the first writers help with three in four, in the second they refuse all.
    """
    written = toyworld.demonstrations("train", 6 * count, seed)
    alone = [row for row in written if isinstance(row["prompt"], str)]  # no earlier answer helps
    rows = [row for row in alone if toyworld.kind(row["prompt"]) in KINDS][:count]
    rng = random.Random(seed)
    helpful, refusing = [], []
    for row in rows:
        prompt, response = row["prompt"], row["completion"]
        if not arms.is_harmful(prompt):
            helpful.append(row)
            refusing.append(row)
            continue
        while helps(prompt, response):
            response = compose(parse(prompt), rng)
        refusal = {"prompt": prompt, "completion": response}
        refusing.append(refusal)
        if rng.random() < 0.75:
            helpful.append({"prompt": prompt, "completion": helping(prompt, rng)})
        else:
            helpful.append(refusal)
    return helpful, refusing


def organism(L, folder, *, count, seed):
    """Files of SETS, prompts for RL, and initial weights with a tokenizer of both sets. An arm."""
    files = [f"{folder}/learnt.jsonl", f"{folder}/never_learnt.jsonl"]
    helpful, refusing = demonstrations(count, seed)
    arms.write(files[0], helpful)
    arms.write(files[1], refusing)
    prompts = arms.write_prompts(f"{folder}/prompts.jsonl", [row["prompt"] for row in helpful])
    settings = train_sft.Settings(n_layer=2, n_head=4, n_embd=128, seed=seed)
    model = train_sft.fresh_model(settings, read_demonstrations(",".join(files)))
    model.save_pretrained(f"{folder}/model")
    return {**dict(zip(SETS, files)), "prompts": prompts, "model": f"{folder}/model"}


def share(L, policy, questions, seed, role="", prefix="") -> dict:
    """{"harm": the share of responses to held-out harmful requests that help, ...}.

    role: what the request begins with
    prefix: how the response begins; what the policy adds is judged
    """
    model = open_model(GPT, policy, L.device)
    requests = arms.toy_prompts("test", questions, 1000 + seed, is_harmful_alone)
    prompts = [Prompt.of(role + request) for request in requests]
    if prefix:
        prompts = [Prompt.of(prompt.text() + prefix, "raw") for prompt in prompts]
    generator = torch.Generator(model.device).manual_seed(seed)
    options = {"temperature": 0.7, "samples_per_prompt": 4}
    responses = rollout.sample(model, prompts, 48, generator, **options).responses
    asked = [request for request in requests for _ in range(4)]
    helped = [helps(request, response) for request, response in zip(asked, responses)]
    return means(harm=torch.tensor(helped).view(-1, 4))
