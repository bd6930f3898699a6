"""Constitutional AI on the toy world (Bai et al. 2022), both halves, without a single human label.

The starting model was made helpful and nothing else: it goes along with most harmful requests. It also learnt, from
demonstrations, to judge, criticise and revise by the toy world's principles (toyworld/lessons.py). Then

    supervised half   it criticises and revises its own responses to harmful requests, and is fine-tuned on the revisions and
                      on its own unrevised responses to other requests
    RL half           it ranks the fine-tuned model's responses to requests of both sorts by the principles; its preferences, as
                      chances, train a reward model; then PPO

In the paper people still say what is helpful. Here a principle does, the one against declining what is fine: of principles that
only forbid PPO learns to decline everything. The gold score is looked at only here, at the end: harmlessness and helpfulness on
held-out requests after each half.

    python experiments/constitutional.py         # a quarter of an hour and more; writes out/constitutional/result.json
"""
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))          # the root scripts, from wherever this is started

import evaluate
import label
import sample
import toyworld
import train_ppo
import train_rm
import train_sft
from examples import revise
from minirlhf.cli import start
from minirlhf.feedback import rankings
from minirlhf.files import read_jsonl, write_atomically


@dataclass
class Settings:
    out: str = "out/constitutional"   # everything is written below this folder
    init: str = ""                # the helpful model, if it is trained already (train_sft.py --data toyworld.lessons)
    sft_steps: int = 900          # of the helpful model
    prompts: int = 400            # harmful ones to revise, and as many others whose responses stay; twice as many of both to rank
    revisions: int = 4            # critiques and revisions of a response
    tune_steps: int = 40          # of fine-tuning on the revisions
    ppo_steps: int = 40           # of PPO
    kl_coef: float = 0.2          # of PPO: reward lost per nat of log(policy/reference)
    evaluation: int = 200         # held-out prompts, harmful ones and as many others
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu


def write_prompts(path: Path, split: str, count: int, seed: int, harmful: bool) -> str:
    """`count` different prompts that ask for help with harm, or none of which does, as JSON lines."""
    drawn = [r['prompt'] for r in toyworld.prompts(split, 3 * count * (len(toyworld.KINDS) if harmful else 1), seed)]
    prompts = {json.dumps(p): p for p in drawn}.values()
    chosen = [p for p in prompts if (toyworld.kind(p) == "refuse") == harmful][:count]
    write_atomically(path, "".join(json.dumps({"prompt": p}) + "\n" for p in chosen).encode())
    return str(path)


def main(settings: Settings) -> dict:
    out, began, seconds = Path(settings.out), time.time(), {}
    out.mkdir(parents=True, exist_ok=True)
    common = {"seed": settings.seed, "device": settings.device}
    run = {**common, "resume": True}

    def done(stage):
        seconds[stage] = round(time.time() - began - sum(seconds.values()), 1)
        print(f"== {stage}: {seconds[stage]:.0f} s\n", flush=True)

    bad, good = (write_prompts(out / f"{n}.jsonl", "train", settings.prompts, settings.seed, n == "harmful")
                 for n in ("harmful", "other"))
    more_bad, more_good = (write_prompts(out / f"more_{n}.jsonl", "train", 2 * settings.prompts, settings.seed + 1, n == "harmful")
                           for n in ("harmful", "other"))
    helpful = settings.init or str(out / "helpful")
    if not settings.init:
        train_sft.main(train_sft.Settings(data="toyworld.lessons", count=40000, n_positions=256, steps=settings.sft_steps, out=helpful,
                                          **run))
    done("helpful model")

    # the supervised half
    for data, turns, name in ((bad, settings.revisions, "revisions"), (good, 0, "kept")):
        revise.main(revise.Settings(init=helpful, data=data, count=10**6, constitution="toyworld.lessons", revisions=turns,
                                    out=str(out / f"{name}.jsonl"), **common))
    train_sft.main(train_sft.Settings(init=helpful, data=f"{out}/revisions.jsonl,{out}/kept.jsonl", out=str(out / "sl"), lr=1e-3,
                                      warmup=5, steps=settings.tune_steps, **run))
    done("supervised half")

    # the reinforcement half
    ai = {"annotator": "ai", "judge": helpful, "constitution": "toyworld.lessons", "device": settings.device}
    for data, name in ((more_bad, "harmful"), (more_good, "other")):
        sample.main(sample.Settings(init=str(out / "sl"), data=data, count=10**6, samples=4, temperature=1.0,
                                    candidates_out=f"{out}/candidates_{name}.jsonl", **common))
        label.main(label.Settings(candidates=f"{out}/candidates_{name}.jsonl", out=f"{out}/ranked_{name}.jsonl",
                                  seed=settings.seed, **ai))
    ranked = f"{out}/ranked_harmful.jsonl,{out}/ranked_other.jsonl"
    train_rm.main(train_rm.Settings(init=str(out / "sl"), data=ranked, out=str(out / "rm"), **run))
    train_ppo.main(train_ppo.Settings(init=str(out / "sl"), reward=str(out / "rm"), data=f"{more_bad},{more_good}",
                                      steps=settings.ppo_steps, kl_coef=settings.kl_coef, out=str(out / "rl"), **run))
    done("reinforcement half")

    # what came of it, by the gold score
    ranked_ = read_jsonl(out / "ranked_harmful.jsonl")
    said, gold = {}, {}
    for r in ranked_:
        harmless = rankings.rank_by([toyworld.gold_parts(r["prompt"], x)["harmless"] for x in r["responses"]])
        said |= rankings.comparisons(r)
        gold |= {k: v for k, v in rankings.comparisons(r | {"ranks": harmless}).items() if v}
    right, half, pairs = rankings.agreement(said, gold)
    result = {"judge_agrees_on_harm": {"mean": right, "interval": half, "pairs": pairs},
              "position_bias": rankings.position_bias(ranked_), "policies": {}}
    for name in ("harmful", "other"):
        data = write_prompts(out / f"test_{name}.jsonl", "test", settings.evaluation, settings.seed, name == "harmful")
        for r in evaluate.main(evaluate.Settings(policies=f"{helpful},{out}/sl,{out}/rl", data=data, count=settings.evaluation,
                                                 out=str(out / f"evaluation_{name}.json"), **common))["results"]:
            result["policies"].setdefault(r["policy"], {})[name] = r["parts"] | {"gold": r["gold"], "kl": r["kl"]}
    done("evaluation")
    print(f"of {pairs} pairs with and without harm the judge ranks {right:.1%} ±{half:.1%} as gold does\n")
    print(f"{'policy':<34}{'harmless, harmful prompts':>28}{'helpful, other prompts':>28}{'gold, other prompts':>24}")
    for folder, r in result["policies"].items():
        cells = (r["harmful"]["harmless"], r["other"]["helpful"], r["other"]["gold"])
        print(f"{folder[-33:]:<34}" + "".join(f"{c['mean']:>{w}.3f} ±{c['interval']:.3f}" for c, w in zip(cells, (21, 21, 17))))
    write_atomically(out / "result.json", json.dumps(result | {"seconds": seconds}, indent=1).encode())
    return result


if __name__ == "__main__":
    start(main, Settings)
