"""A taste that no gold score knows: how many rankings by hand until the policy has it?

Somebody ranks 50, 100 or 200 prompts and likes one thing alone: responses of one sentence (--taste
brief) or stories that mention the sea (--taste sea). The annotator here is scripted, but goes
through the labelling page's HTTP interface and knows only the texts that it is shown; where it
likes all or none it says that they tie. Then a reward model and a short PPO run for each number of
rankings: how many responses to held-out prompts have what it likes? What is rare is learnt later:
prompts whose responses all tie teach nothing.

    python experiments/taste.py --init out/sft              # some six minutes on two CPU cores
    python experiments/taste.py --init out/sft --taste sea
"""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lab import arms

import label
import sample
import toyworld
import train_ppo
import train_rm
from minirlhf import UserError, rollout, stats
from minirlhf.cli import start
from minirlhf.data import Prompt
from minirlhf.device import open_model
from minirlhf.feedback.rankings import rank_by
from minirlhf.files import read_jsonl, write_json
from minirlhf.model import GPT
from minirlhf.rollout import in_micro_batches, logprobs

SEA = re.compile(r"\b(sea|beach|boats?|shells?|waves?)\b", re.I)
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
TEMPERATURE = 0.7


@dataclass
class Settings:
    taste: Literal["brief", "sea"] = "brief"  # one sentence; stories that mention the sea
    init: str = "out/sft"  # SFT model of the toy world
    out: str = "out/taste"  # everything is written to OUT/<taste>
    rankings: str = "50,100,200"  # how many prompts the annotator ranks
    responses: int = 4  # to each of them
    rm_steps: int = 60  # of the reward model
    ppo_steps: int = 40  # of PPO
    kl_coef: float = 0.05  # of PPO
    questions: int = 200  # held-out prompts
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu


def sea(text: str) -> int:
    """How many words of the sea there are, of which two are enough."""
    return min(2, len(SEA.findall(text)))


def brief(text: str) -> int:
    return int(len(SENTENCE_END.findall(text.strip())) <= 1)


TASTES = {"brief": brief, "sea": sea}  # how much a text is liked


def prompts_of(taste: str, split: str, count: int, seed: int) -> list[str | list]:
    """For the sea: stories that name none of it. Else all kinds of requests."""

    def keep(prompt) -> bool:
        return toyworld.kind(prompt) == "story" and not SEA.search(str(prompt))

    if taste == "sea":
        return arms.toy_prompts(split, count, seed, keep)
    return arms.toy_prompts(split, count, seed)


def annotate(candidates: str, out: str, likes: Callable[[str], int]) -> int:
    """Rank all candidates as a browser would, over HTTP. Returns the number of answers given."""
    command = [sys.executable, label.__file__, "--candidates", candidates, "--out", out]
    command += ["--name", "anna", "--no-open"]
    answers = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        url, _, token = page.stdout.readline().split()[-1].partition("?token=")

        def call(path: str, content: dict | None = None) -> dict:
            body = None
            if content:
                body = json.dumps(content).encode()
            request = urllib.request.Request(url + path, body, {"X-Token": token})
            return json.load(urllib.request.urlopen(request, timeout=30))

        state = call("question")
        while "question" in state:
            ranks = rank_by([likes(card) for card in state["cards"]])
            state = call("answer", {"question": state["question"], "ranks": ranks})
            answers += 1
        call("finish", {"done": True})
        page.stdout.read()
    if page.returncode:
        raise UserError("label.py failed: its message stands above")
    return answers


def measure(folder: str, reference: str, settings: Settings) -> dict:
    """Share of held-out responses that are liked, and the KL to the reference, nats."""
    policy = open_model(GPT, folder, settings.device)
    reference = open_model(GPT, reference, settings.device)
    sources = prompts_of(settings.taste, "test", settings.questions, settings.seed)
    prompts = [Prompt.of(source) for source in sources]
    generator = torch.Generator(policy.device).manual_seed(settings.seed)
    batch = rollout.sample(policy, prompts, 64, generator, temperature=TEMPERATURE)
    likes = TASTES[settings.taste]
    liked = torch.tensor([likes(response) > 0 for response in batch.responses])
    share = stats.mean_of(liked, share=True)
    new = in_micro_batches(logprobs, policy, batch, TEMPERATURE)  # (B, R)
    old = in_micro_batches(logprobs, reference, batch, TEMPERATURE)  # (B, R)
    return {
        "share": share["mean"],
        "interval": share["interval"],
        "kl": float((new - old).sum(1).mean()),
        "distinct": len(set(batch.responses)) / len(batch),
        "example": batch.responses[0],
    }


def main(settings: Settings) -> None:
    out = f"{settings.out}/{settings.taste}"
    common = {"init": settings.init, "seed": settings.seed, "device": settings.device}
    pool = prompts_of(settings.taste, "train", 1200, settings.seed)
    prompts = arms.write_prompts(f"{out}/prompts.jsonl", pool)
    sizes = [int(size) for size in settings.rankings.split(",")]
    candidates = f"{out}/candidates.jsonl"
    sampling = {"count": max(sizes), "samples": settings.responses, "temperature": 1.0}
    sampling["candidates_out"] = candidates
    sample.main(sample.Settings(data=prompts, **sampling, **common))
    file = f"{out}/rankings.jsonl"
    if not Path(file).exists():
        answers = annotate(candidates, file, TASTES[settings.taste])
        print(f"{answers} questions answered over HTTP")
    rankings = [row for row in read_jsonl(file) if "repeat" not in row]

    results = {0: {"informative": 0, **measure(settings.init, settings.init, settings)}}
    for size in sizes:
        data = arms.write(f"{out}/{size}.jsonl", rankings[:size])
        rm, policy = f"{out}/rm{size}", f"{out}/ppo{size}"
        run = {"resume": True, **common}
        steps = settings.rm_steps
        train_rm.main(train_rm.Settings(data=data, out=rm, steps=steps, **run))
        rl = {"steps": settings.ppo_steps, "kl_coef": settings.kl_coef}
        train_ppo.main(train_ppo.Settings(reward=rm, data=prompts, out=policy, **rl, **run))
        informative = sum(len(set(row["ranks"])) > 1 for row in rankings[:size])
        measured = measure(policy, settings.init, settings)
        results[size] = {"informative": informative, **measured}
    write_json(f"{out}/taste.json", results)
    for size, row in results.items():
        print(
            f"{size:>5} rankings, {row['informative']} untied: {row['share']:.1%} ± "
            f"{row['interval']:.1%} {settings.taste}, KL {row['kl']:.1f}, {row['distinct']:.0%} "
            f"distinct   {row['example'][:70]!r}"
        )


if __name__ == "__main__":
    start(main, Settings)
