"""How good are they: policies against a baseline on held-out prompts, by the toy world's gold score.

Win rates (ties count half) and means come with 95 % intervals; prompts, not responses, are the independent units.

    python evaluate.py --policies out/sft,out/round1/ppo --reward out/round1/rm
"""
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from minirlhf import UserError, losses, rewards, rollout, toyworld
from minirlhf.cli import start
from minirlhf.data import fit, read_prompts
from minirlhf.model import GPT, write_atomically
from minirlhf.run import pick_autocast, pick_device, seed_of


@dataclass
class Settings:
    policies: str = "out/sft,out/ppo"   # model folders, comma-separated
    baseline: str = ""            # whom they are compared with, and the reference of the KL; empty: the first of them
    reward: str = ""              # reward model's folder or file.py:function whose scores are reported beside gold
    data: str = "toy"             # prompts: toy, or JSONL files with a "prompt" field (gold knows the toy world's only)
    gold: str = "toy"             # who judges: toy, or for other data a reward (see --reward) that no policy was trained on
    split: str = "test"           # toy prompts: test (held out), or train
    count: int = 400              # how many prompts
    samples: int = 4              # responses per prompt
    max_tokens: int = 64          # longest response
    temperature: float = 0.7      # of sampling
    examples: int = 24            # prompts whose answers are kept side by side
    out: str = "out/evaluation.json"    # every number
    seed: int = 1000              # of prompts and samples
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16


def mean_of(per_prompt: torch.Tensor) -> dict[str, float]:
    """(P,) or (P, S) -> mean over prompts with its 95 % interval's half width."""
    per_prompt = per_prompt.double().reshape(len(per_prompt), -1).mean(1)
    mean, half = losses.ratio_interval(per_prompt.tolist(), [1.0] * len(per_prompt))
    return {"mean": mean, "interval": half}


def wins(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """(P, S) scores -> share of each prompt's S x S comparisons won, ties half: (P,)."""
    difference = mine[:, :, None] - theirs[:, None, :]                        # (P, S, S)
    tie = difference.abs() < 1e-9
    return ((difference > 0) & ~tie).double().mean((1, 2)) + tie.double().mean((1, 2)) / 2


def ranked_right(scores: torch.Tensor, gold: torch.Tensor) -> dict[str, float]:
    """How often a reward orders two responses to one prompt (P, S) as gold does, where gold sees a difference."""
    better = gold[:, :, None] - gold[:, None, :] > 1e-9                       # (P, S, S): row beats column
    margin = scores[:, :, None] - scores[:, None, :]
    right = ((margin > 0).double() + (margin == 0).double() / 2) * better
    accuracy, half = losses.ratio_interval(right.sum((1, 2)).tolist(), better.sum((1, 2)).tolist())
    return {"mean": accuracy, "interval": half, "pairs": int(better.sum())}


def assess(prompts: list[str], responses: list[list[str]], judge: rewards.RewardFn | None = None) -> dict:
    """P prompts with S responses each -> what the texts alone tell. judge: instead of the toy world's gold score."""
    P, S = len(prompts), len(responses[0])
    if judge:
        scores = judge([p for p in prompts for _ in range(S)], [r for rs in responses for r in rs])
        judged = [[{"total": x} for x in scores[i : i + S]] for i in range(0, P * S, S)]
    else:
        judged = [[toyworld.gold(p, r) for r in rs] for p, rs in zip(prompts, responses)]
    gold = torch.tensor([[g["total"] for g in gs] for gs in judged])                     # (P, S)
    parts = {name: mean_of(torch.tensor([[g[name] for g in gs] for gs in judged])) for name in judged[0][0]}
    kinds = [toyworld.kind(p) for p in prompts]
    open_ended = [r for k, rs in zip(kinds, responses) if k in (*toyworld.OPEN_ENDED, "other") for r in rs]
    by_kind = {k: mean_of(gold[[i for i in range(P) if kinds[i] == k]]) for k in sorted(set(kinds))}
    words = torch.tensor([[len(r.split()) for r in rs] for rs in responses], dtype=torch.float64)
    return {"scores": gold, "gold": parts.pop("total"), "parts": parts, "kinds": by_kind, "words": mean_of(words),
            "distinct_open_ended": len(set(open_ended)) / max(1, len(open_ended)), "responses": P * S}


def main(settings: Settings) -> dict:
    folders = [x for x in settings.policies.split(",") if x]
    if not folders:
        raise UserError("--policies names no model folder")
    baseline = settings.baseline or folders[0]
    folders = [baseline, *(f for f in folders if f != baseline)]
    device = pick_device(settings.device)

    def place(model, frozen=True):
        model.autocast_dtype = pick_autocast(settings.dtype, device)
        return model.to(device).requires_grad_(False)

    prompts = read_prompts(settings.data, split=settings.split, count=settings.count, seed=settings.seed)[: settings.count]
    reward_fn = rewards.load(settings.reward, place) if settings.reward else None
    judge = rewards.load(settings.gold, place) if settings.gold != "toy" else None
    results, answers = [], {}
    for folder in folders:
        policy = place(GPT.from_pretrained(folder))
        if folder == baseline:                # the first of them
            reference = policy
            prompts = fit(prompts, policy.config.n_positions - settings.max_tokens, "prompts",
                          length=lambda p, tokenizer=policy.tokenizer: len(tokenizer.encode_prompt(p)))
        generator = torch.Generator(device).manual_seed(seed_of(settings.seed, "evaluate"))
        batch = rollout.sample(policy, prompts, settings.max_tokens, generator, temperature=settings.temperature,
                               samples_per_prompt=settings.samples)
        responses = [batch.responses[i : i + settings.samples] for i in range(0, len(batch.responses), settings.samples)]
        result = {"policy": folder} | assess(prompts, responses, judge)
        first = results[0] if results else result
        result["win_rate"] = mean_of(wins(result["scores"], first["scores"]))
        for k in result["kinds"]:
            rows = [i for i, p in enumerate(prompts) if toyworld.kind(p) == k]
            result["kinds"][k]["win_rate"] = mean_of(wins(result["scores"][rows], first["scores"][rows]))["mean"]
        kl = (rollout.in_parts(rollout.logprobs, policy, batch, settings.temperature)
              - rollout.in_parts(rollout.logprobs, reference, batch, settings.temperature)).sum(1)
        result["kl"] = mean_of(kl.view(len(prompts), -1))
        result["finished"] = float(batch.finished.float().mean())
        if reward_fn:
            scores = torch.tensor(reward_fn(batch.prompts, batch.responses)).view(len(prompts), -1)
            result["reward"] = mean_of(scores)
            result["reward_accuracy"] = ranked_right(scores, result["scores"])
        results.append(result)
        answers[folder] = responses
    if settings.data == "toy":          # what the demonstrators wrote for the same prompts
        written = toyworld.demonstrations(settings.split, settings.count, settings.seed)
        written = list({d["prompt"]: d for d in reversed(written)}.values())
        demonstrations = {"policy": "demonstrations"} | assess([d["prompt"] for d in written], [[d["completion"]] for d in written])
        results.append(demonstrations)

    examples = defaultdict(list)        # some of every kind
    for i, prompt in enumerate(prompts):
        examples[toyworld.kind(prompt)].append(
            {"prompt": prompt, "answers": {f: {"response": answers[f][i][0], "gold": float(results[j]["scores"][i, 0])}
                                           for j, f in enumerate(folders)}})
    share = -(-settings.examples // len(examples))
    for result in results:
        result.pop("scores")
    report = {"baseline": baseline, "prompts": len(prompts), "samples": settings.samples, "reward": settings.reward,
              "results": results, "examples": [e for k in sorted(examples) for e in examples[k][:share]]}
    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(settings.out), json.dumps(report, indent=1, ensure_ascii=False).encode())
    print(table(report))
    return report


def table(report: dict) -> str:
    """The results as aligned text."""
    lines = [f"{'policy':<24}{'gold':>14}{'win rate':>14}{'KL':>8}{'words':>7}{'finished':>9}{'distinct':>9}"]
    for r in report["results"]:
        def cell(name, r=r):
            return f"{r[name]['mean']:.3f} ±{r[name]['interval']:.3f}" if name in r else ""
        lines.append(f"{r['policy'][-23:]:<24}{cell('gold'):>14}{cell('win_rate'):>14}"
                     + (f"{r['kl']['mean']:>8.2f}" if "kl" in r else " " * 8) + f"{r['words']['mean']:>7.1f}"
                     + (f"{r['finished']:>9.1%}" if "finished" in r else " " * 9) + f"{r['distinct_open_ended']:>9.1%}")
    policies = [r for r in report["results"] if "win_rate" in r]
    lines += ["", f"{'gold by kind':<24}" + "".join(f"{r['policy'][-16:]:>18}" for r in report["results"])]
    lines += [f"{k:<24}" + "".join(f"{r['kinds'][k]['mean']:>18.3f}" if k in r["kinds"] else " " * 18 for r in report["results"])
              for k in policies[0]["kinds"]]
    if any("reward_accuracy" in r for r in policies):
        lines += ["", *(f"reward model orders {r['policy']}'s responses as gold does: {r['reward_accuracy']['mean']:.3f} "
                        f"±{r['reward_accuracy']['interval']:.3f}" for r in policies if "reward_accuracy" in r)]
    return "\n".join(lines)


if __name__ == "__main__":
    start(main, Settings)
