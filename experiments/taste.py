"""A taste that no gold score knows: how many rankings by hand until the policy has it?

Somebody ranks 50, 100 or 200 prompts and likes one thing alone: responses of one sentence (--taste
brief) or stories that mention the sea (--taste sea). The annotator here is scripted, but goes
through the labelling page's HTTP interface; where it likes all or none it says that they tie. Then
a reward model and a short PPO run for each number of rankings: how many responses to held-out
prompts have what it likes? What is rare is learnt later: prompts whose responses tie teach nothing.

    python experiments/taste.py --init out/sft              # some six minutes on two CPU cores
    python experiments/taste.py --init out/sft --taste sea --seeds 3

A seed that is finished is not computed again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lab import arms, by_hand
from lab.intervals import estimate, where

import sample
import train_ppo
import train_rm
from minirlhf import rollout, stats
from minirlhf.cli import start
from minirlhf.data import Prompt
from minirlhf.device import open_model
from minirlhf.files import read_json, read_jsonl, write_json
from minirlhf.model import GPT
from minirlhf.rollout import in_micro_batches, logprobs

SIZES = (50, 100, 200)  # how many prompts the annotator ranks
TEMPERATURE = 0.7


@dataclass
class Settings:
    taste: Literal["brief", "sea"] = "brief"  # one sentence; stories that mention the sea
    init: str = "out/sft"  # SFT model of the toy world
    seeds: int = 1  # repetitions, after the same SFT model
    out: str = "out/taste"  # everything is written below this folder
    device: str = "auto"  # auto, cuda, mps, cpu


def measure(settings: Settings, folder: str, seed: int) -> dict:
    """Share of held-out responses that are liked, and the KL to the SFT model, nats."""
    policy = open_model(GPT, folder, settings.device)
    reference = open_model(GPT, settings.init, settings.device)
    sources = by_hand.prompts_of(settings.taste, "test", 200, seed)
    prompts = [Prompt.of(source) for source in sources]
    generator = torch.Generator(policy.device).manual_seed(seed)
    batch = rollout.sample(policy, prompts, 64, generator, temperature=TEMPERATURE)
    likes = by_hand.TASTES[settings.taste]
    liked = torch.tensor([likes(response) > 0 for response in batch.responses])
    new = in_micro_batches(logprobs, policy, batch, TEMPERATURE)  # (B, R)
    old = in_micro_batches(logprobs, reference, batch, TEMPERATURE)  # (B, R)
    share = stats.mean_of(liked, share=True)
    return {
        "share": share["mean"],
        "share_interval": share["interval"],
        "kl": float((new - old).sum(1).mean()),
        "distinct": len(set(batch.responses)) / len(batch),
        "example": batch.responses[0],
    }


def one_seed(settings: Settings, seed: int, out: str) -> list[dict]:
    """What comes of each number of rankings, none first."""
    common = {"init": settings.init, "seed": seed, "device": settings.device}
    pool = by_hand.prompts_of(settings.taste, "train", 1200, seed)
    prompts = arms.write_prompts(f"{out}/prompts.jsonl", pool)
    sampling = {"count": max(SIZES), "samples": 4, "temperature": 1.0}
    sampling["candidates_out"] = f"{out}/candidates.jsonl"
    sample.main(sample.Settings(data=prompts, **sampling, **common))
    file = f"{out}/rankings.jsonl"
    if not Path(file).exists():
        likes = by_hand.TASTES[settings.taste]
        answers = by_hand.annotate(sampling["candidates_out"], file, likes)
        print(f"{answers} questions answered over HTTP")
    rankings = [row for row in read_jsonl(file) if "repeat" not in row]

    results = [{"rankings": 0, "untied": 0, **measure(settings, settings.init, seed)}]
    for size in SIZES:
        data = arms.write(f"{out}/{size}.jsonl", rankings[:size])
        rm, policy = f"{out}/rm{size}", f"{out}/ppo{size}"
        run = {"resume": True, **common}
        train_rm.main(train_rm.Settings(data=data, out=rm, steps=60, **run))
        rl = {"steps": 40, "kl_coef": 0.05, "data": prompts}
        train_ppo.main(train_ppo.Settings(reward=rm, out=policy, **rl, **run))
        untied = sum(len(set(row["ranks"])) > 1 for row in rankings[:size])
        results.append({"rankings": size, "untied": untied, **measure(settings, policy, seed)})
    return results


def table(rows: list[dict]) -> str:
    """A line for each number of rankings, over seeds."""
    lines = [
        "| rankings | not all tied | answers as liked | KL, nats | distinct |",
        "|---" * 5 + "|",
    ]
    for size in (0, *SIZES):
        same = where(rows, rankings=size)
        untied, share, kl, distinct = (
            estimate(same, name) for name in ("untied", "share", "kl", "distinct")
        )
        lines.append(f"| {size} | {untied:.0f} | {share:.3f} | {kl:.1f} | {distinct.mean:.2f} |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    rows = []
    for seed in range(settings.seeds):
        out = Path(settings.out, settings.taste, f"seed{seed}")
        file = out / "taste.json"
        if not file.exists():
            write_json(file, {"rows": one_seed(settings, seed, str(out))})
        rows += read_json(file)["rows"]
    report = f"{settings.out}/taste_{settings.taste}.json"
    write_json(report, {"rows": rows})
    for row in rows:
        print(f"{row['rankings']:>5} rankings: {row['example'][:70]!r}")
    print(f"{table(rows)}wrote {report}")


if __name__ == "__main__":
    start(main, Settings)
