"""Constitutional AI on the toy world, both halves, without a single human label (Bai et al. 2022b).

The starting model was made helpful and nothing else: it goes along with most harmful requests. It
also learnt to judge, criticise and revise by the toy world's principles (toyworld/lessons.py). Then

    supervised half   it criticises and revises its own responses to harmful requests, and is
                      fine-tuned on the revisions and on its own unrevised responses to others
    RL half           it ranks the fine-tuned model's responses to requests of both sorts by the
                      principles; its preferences, as chances, train a reward model; then PPO

In the paper people still say what is helpful. Here a principle does, the one against declining what
is fine: with principles that only forbid, PPO learns to decline everything. Gold judges at the end.

    python experiments/constitutional.py     # a quarter of an hour; out/constitutional/result.json
"""

from dataclasses import dataclass
from pathlib import Path

from lab import principles

import evaluate
import label
import sample
import train_ppo
import train_rm
import train_sft
from examples import revise
from minirlhf.cli import start
from minirlhf.feedback import annotators
from minirlhf.files import read_jsonl, write_json

CONSTITUTION = "toyworld.lessons"
SORTS = ("harmful", "other")  # of requests
PROMPTS = 400  # of each sort, to revise or to keep; twice as many to rank
MANY = 10**6  # all that there are


@dataclass
class Settings:
    out: str = "out/constitutional"  # everything is written below this folder
    init: str = ""  # the helpful model, if it is trained already (train_sft.py, toyworld.lessons)
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu


def main(settings: Settings) -> dict:
    out = settings.out
    Path(out).mkdir(parents=True, exist_ok=True)
    common = {"seed": settings.seed, "device": settings.device}
    run = {**common, "resume": True}

    # 1. the helpful model
    helpful = settings.init
    if not helpful:
        helpful = f"{out}/helpful"
        lessons = {"data": "toyworld.lessons", "count": 40000, "n_positions": 256}
        train_sft.main(train_sft.Settings(steps=900, out=helpful, **lessons, **run))

    # 2. the supervised half
    demonstrations = []
    for sort, turns in (("harmful", 4), ("other", 0)):
        file = f"{out}/{sort}.jsonl"
        data = principles.write_prompts(file, "train", PROMPTS, settings.seed, sort)
        revised = f"{out}/revised_{sort}.jsonl"
        ask = {"constitution": CONSTITUTION, "revisions": turns}
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
        data = principles.write_prompts(file, "train", 2 * PROMPTS, settings.seed + 1, sort)
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

    # 4. what came of it, by gold
    agreement = principles.agreement_with_gold(ranked[0])
    bias = annotators.position_bias(read_jsonl(ranked[0]))
    result = {"judge_agrees_on_harm": agreement, "position_bias": bias}
    print("of {pairs} pairs it ranks {mean:.1%} ± {interval:.1%} as gold does".format(**agreement))
    for sort in SORTS:
        file = f"{out}/test_{sort}.jsonl"
        data = principles.write_prompts(file, "test", 200, settings.seed, sort)
        asked = {"policies": f"{helpful},{supervised},{policy}", "data": data, "count": 200}
        report = f"{out}/evaluation_{sort}.json"
        rows = evaluate.main(evaluate.Settings(out=report, **asked, **common))["results"]
        result[sort] = {row["policy"]: {"gold": row["gold"], **row["parts"]} for row in rows}
        for name, parts in result[sort].items():
            cells = [f"{part} {value['mean']:.2f}" for part, value in parts.items()]
            print(f"{name}, {sort} requests: {', '.join(cells)}")
    write_json(f"{out}/result.json", result)
    return result


if __name__ == "__main__":
    start(main, Settings)
