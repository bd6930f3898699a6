"""The methods on one axis: the same reward, as many sampled episodes, five learning rates each.

A trained reward scores everything. RL methods and online DPO sample `episodes` responses while they
learn; DPO, IPO and KTO learn from rankings of as many responses of the SFT model, ranked by that
reward with Bradley-Terry noise of scale 1, so that all aim at the same optimum, SFT * exp(reward /
beta). Of a method's learning rates the one with the highest reward - beta * KL is reported; gold
never chooses. The figure has the sampled optimum: no method may lie above it by more than noise.

    python experiments/methods.py --init out/sft --reward out/round1/rm    # 40 small runs
    python experiments/methods.py --reward out/round1/rm --methods RLOO,GRPO --episodes 960
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lab import attainable, figures
from lab.arms import flat, gold
from lab.intervals import estimate, means
from lab.training import EPISODES, FROM_FEEDBACK, RL, draw, train, write_feedback

import evaluate
from minirlhf import UserError, losses, rewards, winrate
from minirlhf.cli import start
from minirlhf.files import read_json, write_atomically, write_json
from minirlhf.rewards import RewardFn
from minirlhf.run import Stopped, read_run

BEST_OF_16 = "best-of-16"
METHODS = (BEST_OF_16, *FROM_FEEDBACK, "online DPO", *RL)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
MEASURED = ("win_rate", "gold", "reward", "kl")


@dataclass
class Settings:
    init: str = "out/sft"  # the SFT model: start and reference of all
    reward: str = "out/round1/rm"  # what all of them maximise: see minirlhf/rewards.py
    out: str = "out/methods"  # everything is written below this folder
    methods: str = ",".join(METHODS)  # which ones
    episodes: int = 3840  # responses that a method may sample: a multiple of 64
    beta: float = 0.2  # reward per nat of KL
    questions: int = 300  # held-out prompts of the evaluation, four responses each
    optimum_samples: int = 1024  # responses to each of 60 prompts, for the sampled optimum
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu


def best_of_16(s: Settings, reward_fn: RewardFn) -> dict:
    """No training: the best of 16 responses to each held-out prompt. Its KL is the bound."""
    options = {"split": "test", "count": s.questions, "samples": 4, "seed": 1000}
    choice = {"best_of": 16, "reward": s.reward}
    began = time.time()
    best = draw(f"{s.out}/best.jsonl", s.init, s.device, **options, **choice)
    minutes = (time.time() - began) / 60
    baseline = draw(f"{s.out}/baseline.jsonl", s.init, s.device, **options)
    best_gold = best.each(gold)  # (P, S)
    row = means(
        win_rate=winrate.wins(best_gold, baseline.each(gold)),
        gold=best_gold,
        reward=best.scores(reward_fn),
    )
    row |= {"kl": losses.best_of_n_kl_bound(16), "kl_interval": 0.0}
    return {"lr": None, "minutes": minutes, **row}


def trained(s: Settings, method: str, lr: float) -> dict | None:
    """A policy's numbers, and the SFT model's under "sft"; None if the training diverged."""
    out = f"{s.out}/{method.replace(' ', '_')}_{lr:g}"
    common = {"init": s.init, "out": out, "lr": lr, "seed": s.seed, "device": s.device}
    shared = {"episodes": s.episodes, "reward": s.reward, "beta": s.beta, "feedback": s.out}
    try:
        train(method, **shared, **common)
    except Stopped as error:
        print(f"{out} diverged: {error}")
        return None
    file = f"{out}/evaluation.json"
    if not Path(file).exists():
        compared = {"policies": out, "baseline": s.init, "reward": s.reward}
        run = {"count": s.questions, "out": file, "device": s.device}
        evaluate.main(evaluate.Settings(**compared, **run))
    sft, policy, *_ = read_json(file)["results"]
    minutes = read_run(out)["seconds"] / 60
    return {"lr": lr, "minutes": minutes, "sft": flat(sft), **flat(policy)}


def best_learning_rate(s: Settings, arms: list[dict | None]) -> dict | None:
    converged = [row for row in arms if row]
    if not converged:
        return None
    return max(converged, key=lambda row: row["reward"] - s.beta * row["kl"])


def table(best: dict[str, dict]) -> str:
    lines = [
        "| method | learning rate | win rate against SFT | gold | reward | KL, nats | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, row in best.items():
        cells = [f"{estimate([row], name):.3f}" for name in MEASURED]
        cells = [method, str(row["lr"] or "–"), *cells, f"{row['minutes']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(s: Settings) -> None:
    chosen = [name.strip() for name in s.methods.split(",")]
    if not set(chosen) <= set(METHODS):
        raise UserError(f"--methods {s.methods}: choose from {', '.join(METHODS)}")
    if s.episodes % EPISODES:
        raise UserError(f"--episodes {s.episodes}: use a multiple of {EPISODES}")
    Path(s.out).mkdir(parents=True, exist_ok=True)
    reward_fn = rewards.load(s.reward, s.device)
    options = {"count": s.episodes // 4, "samples": 4, "seed": s.seed}
    candidates = draw(f"{s.out}/candidates.jsonl", s.init, s.device, **options)
    write_feedback(s.out, candidates, reward_fn, s.seed)

    everything, best = {}, {}
    for method in chosen:
        if method == BEST_OF_16:
            everything[method] = [best_of_16(s, reward_fn)]
        else:
            everything[method] = [trained(s, method, lr) for lr in LEARNING_RATES]
        row = best_learning_rate(s, everything[method])
        if row and "sft" in row:
            best["SFT"] = {"lr": None, "minutes": 0.0, **row["sft"]}
        if row:
            best[method] = row
    options = {"split": "test", "count": 60, "samples": s.optimum_samples, "seed": 2000}
    samples = draw(f"{s.out}/optimum.jsonl", s.init, s.device, **options)
    optimum = attainable.optimum(samples.scores(reward_fn))

    write_atomically(f"{s.out}/methods.md", table(best).encode())
    report = {"chosen": best, "all": everything, "optimum": optimum}
    write_json(f"{s.out}/methods.json", report)
    fig, [ax] = figures.new(
        ("Equal episodes", "KL to SFT, nats per response", "reward, held-out prompts")
    )
    ax.plot(*torch.tensor(optimum).T, "k--", label="sampled optimum")
    for method, row in best.items():
        figures.runs(ax, [row], "kl", "reward", method)
    ax.legend()
    fig.savefig(f"{s.out}/methods.png", dpi=150)
    print(f"{table(best)}wrote {s.out}/methods.md, methods.json, methods.png")


if __name__ == "__main__":
    start(main, Settings)
