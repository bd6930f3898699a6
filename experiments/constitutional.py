"""Constitutional AI on the toy world, both halves, without a single human label (Bai et al. 2022b).

The starting model was made helpful and nothing else: it goes along with most harmful requests. It
also learnt to judge, criticise and revise by the toy world's principles (toyworld/lessons.py). Then

    supervised half   it criticises and revises its own responses to harmful requests, and is
                      fine-tuned on the revisions and on its own unrevised responses to others
    RL half           it ranks the fine-tuned model's responses to requests of both sorts by the
                      principles; its preferences, as chances, train a reward model; then PPO

In the paper people still say what is helpful. Here a principle does, the one against declining what
is fine: with principles that only forbid, PPO learns to decline everything. Gold judges at the end.

    python experiments/constitutional.py     # some twenty minutes
    python experiments/constitutional.py --seeds 3

A seed that is finished is not computed again.
"""

from dataclasses import dataclass
from pathlib import Path

from lab import principles
from lab.intervals import estimate, where

import evaluate
import label
import sample
import train_ppo
import train_rm
import train_sft
from examples import revise
from minirlhf.cli import start
from minirlhf.feedback import annotators
from minirlhf.files import read_json, read_jsonl, write_json

CONSTITUTION = "toyworld.lessons"
SORTS = ("harmful", "other")  # of requests
STAGES = ("before", "supervised half", "RL half")
PARTS = ("harmless", "helpful")  # of gold
PROMPTS = 400  # of each sort, to revise or to keep; twice as many to rank
MANY = 10**6  # all that there are


@dataclass
class Settings:
    out: str = "out/constitutional"  # everything is written below this folder
    init: str = ""  # the helpful model, if it is trained already (train_sft.py, toyworld.lessons)
    seeds: int = 1  # repetitions, each below OUT/seed0, OUT/seed1, ...
    device: str = "auto"  # auto, cuda, mps, cpu


def train(settings: Settings, seed: int, out: str) -> list[str]:
    """The folders of three models: before, after the supervised half, after the RL half."""
    common = {"seed": seed, "device": settings.device}
    run = {**common, "resume": True}

    # 1. the helpful model
    helpful = settings.init
    if not helpful:
        helpful = principles.teach(out, *principles.HELPFUL, **common)

    # 2. the supervised half
    demonstrations = []
    for sort, revisions in (("harmful", 4), ("other", 0)):
        file = f"{out}/{sort}.jsonl"
        data = principles.write_prompts(file, "train", PROMPTS, seed, sort)
        revised = f"{out}/revised_{sort}.jsonl"
        ask = {"constitution": CONSTITUTION, "revisions": revisions}
        revise.main(revise.Settings(helpful, data=data, count=MANY, out=revised, **ask, **common))
        demonstrations.append(revised)
    supervised = f"{out}/sl"
    tune = {"lr": 1e-3, "warmup": 5, "steps": 40}
    data = ",".join(demonstrations)
    train_sft.main(train_sft.Settings(init=helpful, data=data, out=supervised, **tune, **run))

    # 3. the reinforcement half
    prompts, ranked = [], []
    for sort in SORTS:
        file = f"{out}/more_{sort}.jsonl"
        data = principles.write_prompts(file, "train", 2 * PROMPTS, seed + 1, sort)
        candidates = f"{out}/candidates_{sort}.jsonl"
        sampling = {"count": MANY, "samples": 4, "candidates_out": candidates, "temperature": 1.0}
        sample.main(sample.Settings(init=supervised, data=data, **sampling, **common))
        rankings_file = f"{out}/ranked_{sort}.jsonl"
        ai = {"annotator": "ai", "judge": helpful, "constitution": CONSTITUTION}
        label.main(label.Settings(candidates=candidates, out=rankings_file, **ai, **common))
        prompts.append(data)
        ranked.append(rankings_file)
    rm = f"{out}/rm"
    train_rm.main(train_rm.Settings(init=supervised, data=",".join(ranked), out=rm, **run))
    policy = f"{out}/rl"
    rl = {"steps": 40, "kl_coef": 0.2, "data": ",".join(prompts)}
    train_ppo.main(train_ppo.Settings(init=supervised, reward=rm, out=policy, **rl, **run))
    return [helpful, supervised, policy]


def evaluation_file(out: str, sort: str) -> str:
    return f"{out}/evaluation_{sort}.json"


def one_seed(settings: Settings, seed: int, out: str) -> None:
    """Train, and let gold judge the three models on requests of both sorts."""
    Path(out).mkdir(parents=True, exist_ok=True)
    policies = ",".join(train(settings, seed, out))
    for sort in SORTS:
        data = principles.write_prompts(f"{out}/test_{sort}.jsonl", "test", 200, seed, sort)
        asked = {"policies": policies, "data": data, "count": 200, "seed": seed}
        report = evaluation_file(out, sort)
        evaluate.main(evaluate.Settings(out=report, device=settings.device, **asked))


def numbers(out: str) -> dict:
    """What came of one seed: the judge's agreement and bias, and a row for each stage and sort."""
    rankings = f"{out}/ranked_harmful.jsonl"
    rows = []
    for sort in SORTS:
        results = read_json(evaluation_file(out, sort))["results"]
        for stage, result in zip(STAGES, results):
            parts = {part: result["parts"][part]["mean"] for part in PARTS}
            kl = result["kl"]["mean"] if "kl" in result else 0.0
            rows.append({"stage": stage, "sort": sort, "kl": kl, **parts})
    return {
        "agreement": principles.agreement_with_gold(rankings)["mean"],
        "bias": annotators.position_bias(read_jsonl(rankings))["flips"],
        "rows": rows,
    }


def table(found: list[dict]) -> str:
    """A line for each stage, over seeds."""
    rows = [row for seed in found for row in seed["rows"]]
    lines = [
        "| | harmless, harmful requests | KL, nats | helpful, other requests | KL, nats |",
        "|---|---|---|---|---|",
    ]
    for stage in STAGES:
        cells = []
        for sort, part in (("harmful", "harmless"), ("other", "helpful")):
            same = where(rows, stage=stage, sort=sort)
            cells += [f"{estimate(same, part):.3f}", f"{estimate(same, 'kl'):.1f}"]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    agreement = estimate(found, "agreement")
    bias = estimate(found, "bias")
    lines += [
        "",
        f"The judge orders pairs that differ in harm as gold does in {agreement:.3f} of cases, and "
        f"names the same letter in both orders in {bias:.3f}.",
    ]
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> list[dict]:
    found = []
    for seed in range(settings.seeds):
        out = f"{settings.out}/seed{seed}"
        if not Path(evaluation_file(out, SORTS[-1])).exists():
            one_seed(settings, seed, out)
        found.append(numbers(out))
    report = f"{settings.out}/constitutional.json"
    write_json(report, {"seeds": found})
    print(f"{table(found)}wrote {report}")
    return found


if __name__ == "__main__":
    start(main, Settings)
