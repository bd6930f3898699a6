"""The methods on one axis: the same reward, as many sampled episodes, five learning rates each.

A trained reward scores everything. RL methods and online DPO sample `episodes` responses while they
learn; DPO, IPO and KTO learn from rankings of as many responses of the SFT model, ranked by that
reward with Bradley-Terry noise of scale 1, so that all aim at the same optimum, SFT * exp(reward /
beta). Of a method's learning rates the one with the highest reward - beta * KL is reported; gold
never chooses. The figure has the sampled optimum: no method may lie above it by more than noise.

    python experiments/methods.py --init out/sft --reward out/round1/rm    # 40 small runs
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from lab import attainable, figures, training
from lab.intervals import estimate

from minirlhf import UserError, rewards
from minirlhf.cli import start
from minirlhf.files import write_atomically, write_json

BEST_OF_16 = "best-of-16"
METHODS = (BEST_OF_16, *training.FROM_FEEDBACK, "online DPO", *training.RL)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
MEASURED = ("win_rate", "gold", "reward", "kl")


@dataclass
class Settings:
    init: str = "out/sft"  # the SFT model: start and reference of all
    reward: str = "out/round1/rm"  # what all of them maximise: see minirlhf/rewards.py
    out: str = "out/methods"  # everything is written below this folder
    episodes: int = 3840  # responses that a method may sample: a multiple of 64
    beta: float = 0.2  # reward per nat of KL
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu


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
    if s.episodes % training.EPISODES:
        raise UserError(f"--episodes {s.episodes}: use a multiple of {training.EPISODES}")
    Path(s.out).mkdir(parents=True, exist_ok=True)
    reward_fn = rewards.load(s.reward, s.device)
    options = {"count": s.episodes // 4, "samples": 4, "seed": s.seed}
    candidates = training.draw(f"{s.out}/candidates.jsonl", s.init, s.device, **options)
    training.write_feedback(s.out, candidates, reward_fn, s.seed)

    everything, best = {}, {}
    for method in METHODS:
        if method == BEST_OF_16:
            everything[method] = [training.best_of_16(s, reward_fn)]
        else:
            everything[method] = [training.evaluated(s, method, lr) for lr in LEARNING_RATES]
        row = best_learning_rate(s, everything[method])
        if row and "sft" in row:
            best["SFT"] = {"lr": None, "minutes": 0.0, **row["sft"]}
        if row:
            best[method] = row
    options = {"split": "test", "count": 60, "samples": 1024, "seed": 2000}
    samples = training.draw(f"{s.out}/optimum.jsonl", s.init, s.device, **options)
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
