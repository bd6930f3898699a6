"""The methods on one axis: the same reward, as many sampled episodes, five learning rates each.

A trained reward scores everything. RL methods and online DPO sample `episodes` responses while they
learn; DPO, IPO and KTO learn from rankings of as many responses of the SFT model, ranked by that
reward with Bradley-Terry noise of scale 1, so that all aim at the same optimum, SFT * exp(reward /
beta). On the first seed every learning rate is tried, and the one with the highest reward - beta *
KL is taken, also for the other seeds; gold never chooses. The figure has the sampled optimum: no
method may lie above it by more than noise. What is finished is kept: the same command goes on.

    python experiments/methods.py --init out/sft --reward out/round1/rm    # 56 small runs
"""

from dataclasses import dataclass

import torch
from lab import attainable, figures, training
from lab.intervals import estimate

from minirlhf import UserError, rewards
from minirlhf.cli import start
from minirlhf.files import write_json

METHODS = (*training.FROM_FEEDBACK, "online DPO", *training.RL)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
MEASURED = {"win_rate": ".3f", "gold": ".2f", "reward": ".2f", "kl": ".2f"}


@dataclass
class Settings:
    init: str = "out/sft"  # the SFT model: start and reference of all
    reward: str = "out/round1/rm"  # what all of them maximise: see minirlhf/rewards.py
    out: str = "out/methods"  # everything is written below this folder
    episodes: int = 3840  # responses that a method may sample: a multiple of 64
    beta: float = 0.2  # reward per nat of KL
    seeds: int = 3  # repetitions, after the same SFT model with the same reward
    device: str = "auto"  # auto, cuda, mps, cpu


def of_all_rates(s: Settings, method: str) -> list[dict]:
    """The method's numbers on the first seed, for each learning rate that did not diverge."""
    rows = [training.evaluated(s, method, lr, 0) for lr in LEARNING_RATES]
    return [row for row in rows if row]


def of_all_seeds(s: Settings, method: str, tried: list[dict]) -> list[dict]:
    """Its numbers for each seed, at the best of these learning rates."""
    best = max(tried, key=lambda row: row["reward"] - s.beta * row["kl"])
    rows = [training.evaluated(s, method, best["lr"], seed) for seed in range(s.seeds)]
    return [row for row in rows if row]


def table(chosen: dict[str, list[dict]]) -> str:
    lines = [
        "| method | learning rate | win rate against SFT | gold | reward | KL, nats | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, rows in chosen.items():
        cells = [f"{estimate(rows, name):{style}}" for name, style in MEASURED.items()]
        rate, minutes = "–", "–"
        if rows[0]["lr"]:  # it was trained
            rate, minutes = rows[0]["lr"], f"{estimate(rows, 'minutes').mean:.1f}"
        lines.append(f"| {method} | {rate} | {' | '.join(cells)} | {minutes} |")
    return "\n".join(lines) + "\n"


def main(s: Settings) -> None:
    if s.episodes % training.EPISODES:
        raise UserError(f"--episodes {s.episodes}: use a multiple of {training.EPISODES}")
    for seed in range(s.seeds):
        training.prepare(s, seed)
    chosen = {
        "SFT": [training.unchanged(s, seed) for seed in range(s.seeds)],
        "best-of-16": [training.best_of_16(s, seed) for seed in range(s.seeds)],
    }
    tried = {}
    for method in METHODS:
        tried[method] = of_all_rates(s, method)
        chosen[method] = of_all_seeds(s, method, tried[method])
    options = {"split": "test", "count": 60, "samples": 1024, "seed": 2000}
    samples = training.draw(f"{s.out}/optimum.jsonl", s.init, s.device, **options)
    optimum = attainable.optimum(samples.scores(rewards.load(s.reward, s.device)))

    write_json(f"{s.out}/methods.json", {"chosen": chosen, "tried": tried, "optimum": optimum})
    fig, [ax] = figures.new(
        ("Equal episodes", "KL to SFT, nats per response", "reward, held-out prompts")
    )
    ax.plot(*torch.tensor(optimum).T, "k--", label="sampled optimum")
    for number, (method, rows) in enumerate(chosen.items()):
        kl = estimate(rows, "kl").mean
        marker = "o" if number < len(figures.COLOURS) else "s"  # the colours begin again
        figures.points(ax, [kl], [estimate(rows, "reward")], method, fmt=marker)
    ax.legend()
    fig.savefig(f"{s.out}/methods.png", dpi=150)
    print(f"{table(chosen)}wrote {s.out}/methods.json, methods.png")


if __name__ == "__main__":
    start(main, Settings)
