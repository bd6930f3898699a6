"""The methods on one axis: each gets the same reward, the same number of sampled episodes and the same five learning rates.

A trained reward scores everything. RL methods and online DPO sample `episodes` responses while they learn; DPO, IPO and KTO
learn from rankings of as many responses of the SFT model, ranked by that reward with Bradley-Terry noise of scale 1, so that
all aim at the same optimum, SFT * exp(reward / beta). Of a method's learning rates the one with the highest reward - beta * KL
is reported; gold never chooses. The figure has the sampled optimum: no method may lie above it by more than noise.

    python experiments/methods.py --init out/sft --reward out/round1/rm        # 40 small runs; a killed one goes on
    python experiments/methods.py --init out/sft --reward out/round1/rm --methods RLOO,GRPO --episodes 960
"""
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import evaluate
import sample
import train_dpo
import train_ppo
from minirlhf import UserError, losses, rewards, stats, winrate
from minirlhf.cli import start
from minirlhf.data import Prompt
from minirlhf.device import pick_device
from minirlhf.feedback.rankings import rank_by
from minirlhf.files import read_jsonl, write_atomically
from minirlhf.run import Stopped, describe_result

METHODS = ("best-of-16", "DPO", "IPO", "KTO", "online DPO", "RLOO", "GRPO", "PPO", "REINFORCE")
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass
class Settings:
    init: str = "out/sft"         # the SFT model: start and reference of all
    reward: str = "out/round1/rm"    # what all of them maximise: see minirlhf/rewards.py
    out: str = "out/methods"      # everything is written below this folder
    methods: str = ",".join(METHODS)    # which ones
    episodes: int = 3840          # responses that a method may sample: a multiple of 64
    beta: float = 0.2             # reward per nat of KL
    questions: int = 300          # held-out prompts of the evaluation, four responses each
    optimum_samples: int = 1024   # responses of the SFT model to each of 60 prompts, for the sampled optimum
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu


def arm(s: Settings, method: str, lr: float):
    """(script, its settings)."""
    out = f"{s.out}/{method.replace(' ', '_')}_{lr:g}"
    common = {"init": s.init, "out": out, "lr": lr, "seed": s.seed, "device": s.device, "resume": True}
    if method in ("PPO", "RLOO", "GRPO", "REINFORCE"):
        samples = 4 if method in ("RLOO", "GRPO") else 1
        return train_ppo, train_ppo.Settings(advantage="gae" if method == "PPO" else method.lower(), samples_per_prompt=samples,
                                             prompts_per_step=64 // samples, steps=s.episodes // 64, reward=s.reward,
                                             kl_coef=s.beta, **common)
    common |= {"beta": s.beta, "temperature": 0.7, "steps": s.episodes // 64}
    if method == "online DPO":
        return train_dpo, train_dpo.Settings(online=True, data="toyworld", reward=s.reward, batch_size=32, **common)
    loss, batch = {"DPO": ("sigmoid", 16), "IPO": ("ipo", 16), "KTO": ("kto", 64)}[method]       # 64 responses a step, as RL has
    data = f"{s.out}/{'labels' if loss == 'kto' else 'rankings'}.jsonl"
    return train_dpo, train_dpo.Settings(loss=loss, data=data, batch_size=batch, validation=0.05, **common)


def draw(s: Settings, name: str, **options) -> list[dict]:
    """Prompts with responses of the SFT model, from the cache if they are there."""
    path = Path(s.out) / f"{name}.jsonl"
    if not path.exists():
        sample.main(sample.Settings(init=s.init, data="toyworld", temperature=0.7, candidates_out=str(path), device=s.device, **options))
    return read_jsonl(path)


def scored(reward_fn, rows: list[dict]) -> torch.Tensor:
    """(P, S)"""
    flat = reward_fn([Prompt.of(r["prompt"]) for r in rows for _ in r["responses"]], [x for r in rows for x in r["responses"]])
    return torch.tensor(flat).view(len(rows), -1)


def write_feedback(s: Settings, reward_fn) -> None:
    """rankings.jsonl, and labels.jsonl for KTO: good are the responses ranked in the upper half."""
    rows = draw(s, "candidates", count=s.episodes // 4, samples=4, seed=s.seed)
    rankings, labels = [], []
    for row, scores in zip(rows, scored(reward_fn, rows).tolist()):
        ranks = rank_by(scores, 1.0, random.Random(f"{s.seed}/{row['prompt']}"))
        rankings.append({"prompt": row["prompt"], "responses": row["responses"], "ranks": ranks})
        labels += [{"prompt": row["prompt"], "response": x, "label": r <= 2} for x, r in zip(row["responses"], ranks)]
    for name, records in (("rankings", rankings), ("labels", labels)):
        write_atomically(Path(s.out) / f"{name}.jsonl", "".join(json.dumps(r) + "\n" for r in records).encode())


def best_of_16(s: Settings, reward_fn) -> dict:
    """No training: the best of 16 responses to each held-out prompt; its KL is the bound."""
    common, began = {"split": "test", "count": s.questions, "samples": 4}, time.time()
    best = draw(s, "best", best_of=16, reward=s.reward, seed=1000, **common)
    minutes, one = (time.time() - began) / 60, draw(s, "one", seed=1000, **common)
    gold = [scored(rewards.load("toyworld"), rows) for rows in (best, one)]
    kl = losses.best_of_n_kl_bound(16)
    return {"lr": None, "win_rate": stats.mean_of(winrate.wins(*gold)), "gold": stats.mean_of(gold[0]), "minutes": minutes,
            "reward": stats.mean_of(scored(reward_fn, best)), "kl": {"mean": kl, "interval": 0.0}}


def result_of(s: Settings, method: str, lr: float) -> dict | None:
    """Trains and evaluates one arm, unless it is done; None if it diverged."""
    module, settings = arm(s, method, lr)
    path = Path(settings.out) / "evaluation.json"
    try:
        module.main(settings)
    except Stopped as error:
        return print(f"{settings.out} diverged: {error}")
    if not path.exists():
        evaluate.main(evaluate.Settings(policies=settings.out, baseline=s.init, reward=s.reward, count=s.questions, out=str(path),
                                        device=s.device))
    baseline, result = json.loads(path.read_text(encoding="utf-8"))["results"][:2]
    keep = ("win_rate", "gold", "reward", "kl")
    return {"lr": lr, "minutes": describe_result(settings.out)["seconds"] / 60, "SFT": {k: baseline[k] for k in keep}} | {
        k: result[k] for k in keep}


def optimum(s: Settings, reward_fn) -> list[tuple[float, float]]:
    """(KL, reward) of the best possible policies, mean over prompts, where the effective sample size is 50 or more."""
    scores = scored(reward_fn, draw(s, "optimum", split="test", count=60, samples=s.optimum_samples, seed=2000))
    curve = [losses.sampled_optimum(scores, beta) for beta in (10, 5, 3, 2, 1.5, 1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, s.beta)]
    return [(float(kl.mean()), float(r.mean())) for r, kl, size in curve if float(size.median()) >= 50]


def main(s: Settings) -> None:
    chosen = [m.strip() for m in s.methods.split(",")]
    if unknown := set(chosen) - set(METHODS) or s.episodes % 64:
        raise UserError(f"--methods {s.methods} --episodes {s.episodes}: {unknown} will not do; take some of {', '.join(METHODS)}, "
                        "and a multiple of 64")
    Path(s.out).mkdir(parents=True, exist_ok=True)
    device = pick_device(s.device)
    reward_fn = rewards.load(s.reward, device)
    write_feedback(s, reward_fn)
    best, everything = {}, {}
    for method in chosen:
        arms = [best_of_16(s, reward_fn)] if method == "best-of-16" else [result_of(s, method, lr) for lr in LEARNING_RATES]
        everything[method] = arms
        if alive := [a for a in arms if a]:
            best[method] = max(alive, key=lambda a: a["reward"]["mean"] - s.beta * a["kl"]["mean"])
    sft = next((a["SFT"] for a in best.values() if "SFT" in a), None)
    best = ({"SFT": {"lr": None, "minutes": 0.0} | sft} if sft else {}) | best
    lines = ["| method | learning rate | gold win rate against SFT | gold | reward | KL, nats | minutes |", "|---" * 7 + "|"]
    for method, r in best.items():
        win, gold, reward, kl = (f"{r[k]['mean']:.3f} ± {r[k]['interval']:.3f}" for k in ("win_rate", "gold", "reward", "kl"))
        lines.append(f"| {method} | {r['lr'] or '–'} | {win} | {gold} | {reward} | {kl} | {r['minutes']:.1f} |")
    frontier = optimum(s, reward_fn)
    write_atomically(Path(s.out) / "methods.md", ("\n".join(lines) + "\n").encode())
    report = {"chosen": best, "all": everything, "optimum": frontier}
    write_atomically(Path(s.out) / "methods.json", json.dumps(report, indent=1).encode())
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.plot(*zip(*frontier), color="black", linestyle="--", label="sampled optimum")
    for method, r in best.items():
        x, y = r["kl"], r["reward"]
        ax.errorbar(x["mean"], y["mean"], xerr=x["interval"], yerr=y["interval"], fmt="o", label=method)
    ax.set(xlabel="KL to SFT, nats per response", ylabel="reward, held-out prompts", title="Equal episodes, five learning rates")
    ax.legend(fontsize=8)
    fig.savefig(Path(s.out) / "methods.png", dpi=150)
    print("\n".join(lines) + f"\nwrote {s.out}/methods.md, methods.json, methods.png")


if __name__ == "__main__":
    start(main, Settings)
