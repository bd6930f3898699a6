"""A taste that no gold score knows: somebody ranks 50, 100 or 200 prompts by hand and likes one thing alone, either
answers of one sentence (--taste brief) or stories that mention the sea (--taste sea).

The annotator here is scripted, but it goes through the page's own HTTP interface and knows only the texts it is shown; where it
likes all or none it says that they tie. Then a reward model and a short PPO run for each number of rankings: how many answers to
held-out prompts have what it likes? What is rare is learnt later: prompts whose answers all tie teach nothing.

    python experiments/taste.py --init out/sft                          # some six minutes on two CPU cores
    python experiments/taste.py --init out/sft --taste sea
"""
import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import sample
import toyworld
import train_ppo
import train_rm
from minirlhf import UserError, rollout
from minirlhf.cli import start
from minirlhf.data import Prompt
from minirlhf.device import pick_device
from minirlhf.files import read_jsonl, write_atomically
from minirlhf.model import GPT

LABEL = Path(__file__).parents[1] / "label.py"
SEA = re.compile(r"\b(sea|beach|boats?|shells?|waves?)\b", re.I)


@dataclass
class Settings:
    taste: str = "brief"          # what the annotator likes: brief, one sentence; sea, stories that mention it
    init: str = "out/sft"         # SFT model of the toy world
    out: str = "out/taste"        # everything is written to OUT/<taste>
    rankings: str = "50,100,200"  # how many prompts the annotator ranks
    responses: int = 4            # to each of them
    rm_steps: int = 60            # of the reward model
    ppo_steps: int = 40           # of PPO
    kl_coef: float = 0.05         # of PPO
    questions: int = 200          # held-out prompts
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu


def sea(text: str) -> int:
    """How many words of the sea there are, of which two are enough."""
    return min(2, len(SEA.findall(text)))


def brief(text: str) -> int:
    return len(re.findall(r"[.!?]+(?=\s|$)", text.strip())) <= 1


# taste -> what the annotator likes, from the text alone; the prompts it is asked about: for the sea, stories that name none of it
TASTES = {"brief": (brief, lambda prompt: True),
          "sea": (sea, lambda prompt: toyworld.kind(prompt) == "story" and not SEA.search(str(prompt)))}


def prompts_of(taste: str, split: str, count: int, seed: int) -> list[str]:
    drawn = {json.dumps(r['prompt']): r['prompt'] for r in toyworld.prompts(split, 30 * count, seed)}
    return list(filter(TASTES[taste][1], drawn.values()))[:count]


def annotate(candidates: Path, out: Path, likes) -> int:
    """Ranks all candidates as a browser would: over HTTP, one question after the other. Returns how many answers were given."""
    words = [sys.executable, str(LABEL), "--candidates", str(candidates), "--out", str(out), "--name", "anna", "--no-open"]
    answers = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as label:
        url, _, token = label.stdout.readline().split()[-1].partition("?token=")

        def call(path: str, content: dict | None = None) -> dict:
            request = urllib.request.Request(url + path, content and json.dumps(content).encode(), {"X-Token": token})
            return json.load(urllib.request.urlopen(request, timeout=30))

        state = call("question")
        while "question" in state:
            likings = [likes(card) for card in state["cards"]]
            ranks = [1 + sum(other > mine for other in set(likings)) for mine in likings]
            state = call("answer", {"question": state["question"], "ranks": ranks})
            answers += 1
        label.stdout.read()
    if label.returncode:
        raise SystemExit("label.py failed")
    return answers


@torch.no_grad()
def measure(folder: str, reference: str, settings: Settings) -> dict:
    """Share of held-out answers that have what is liked, with its 95 % half-width, and KL to the reference, nats per response."""
    device = pick_device(settings.device)
    policy, ref = (GPT.from_pretrained(f).to(device) for f in (folder, reference))
    likes, prompts = TASTES[settings.taste][0], prompts_of(settings.taste, "test", settings.questions, settings.seed)
    batch = rollout.sample(policy, [Prompt.of(p) for p in prompts], 64, torch.Generator(device).manual_seed(settings.seed), temperature=0.7)
    share = sum(likes(r) > 0 for r in batch.responses) / len(prompts)
    new, old = (rollout.in_micro_batches(rollout.logprobs, model, batch, 0.7) for model in (policy, ref))      # (B, R)
    return {"share": share, "interval": 1.96 * (share * (1 - share) / len(prompts)) ** 0.5, "kl": float((new - old).sum(1).mean()),
            "distinct": len(set(batch.responses)) / len(prompts), "example": batch.responses[0]}


def main(settings: Settings) -> None:
    if settings.taste not in TASTES:
        raise UserError(f"--taste {settings.taste}: unknown; take {', '.join(TASTES)}")
    out, common = Path(settings.out) / settings.taste, {"seed": settings.seed, "device": settings.device}
    out.mkdir(parents=True, exist_ok=True)
    pool = prompts_of(settings.taste, "train", 1200, settings.seed)
    write_atomically(out / "prompts.jsonl", "".join(json.dumps({"prompt": p}) + "\n" for p in pool).encode())
    sizes = [int(n) for n in settings.rankings.split(",")]
    sample.main(sample.Settings(init=settings.init, data=str(out / "prompts.jsonl"), count=max(sizes), samples=settings.responses,
                                candidates_out=str(out / "candidates.jsonl"), **common))
    if not (out / "rankings.jsonl").exists():
        likes = TASTES[settings.taste][0]
        print(f"{annotate(out / 'candidates.jsonl', out / 'rankings.jsonl', likes)} questions answered over HTTP")
    rankings = [r for r in read_jsonl(out / "rankings.jsonl") if "repeat" not in r]
    found = {"0": measure(settings.init, settings.init, settings)}
    for n in sizes:
        write_atomically(out / f"{n}.jsonl", "".join(json.dumps(r) + "\n" for r in rankings[:n]).encode())
        train_rm.main(train_rm.Settings(init=settings.init, data=f"{out}/{n}.jsonl", out=f"{out}/rm{n}", steps=settings.rm_steps,
                                        resume=True, **common))
        train_ppo.main(train_ppo.Settings(init=settings.init, reward=f"{out}/rm{n}", data=f"{out}/prompts.jsonl",
                                          out=f"{out}/ppo{n}", steps=settings.ppo_steps, kl_coef=settings.kl_coef, resume=True,
                                          **common))
        found[str(n)] = measure(f"{out}/ppo{n}", settings.init, settings) | {
            "informative": sum(len(set(r["ranks"])) > 1 for r in rankings[:n])}
    write_atomically(out / "taste.json", json.dumps(found, indent=1).encode())
    for n, row in found.items():
        print(f"{n:>5} rankings, {row.get('informative', 0)} untied: {row['share']:.1%} ± {row['interval']:.1%} {settings.taste}, "
              f"KL {row['kl']:.1f}, {row['distinct']:.0%} distinct   {row['example'][:70]!r}")


if __name__ == "__main__":
    start(main, Settings)
