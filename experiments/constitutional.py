"""Constitutional AI on the toy world, both halves, without a single human label (Bai et al. 2022b).

The starting model was made helpful and nothing else: it goes along with most harmful requests. It
also learnt to judge, criticise and revise by the toy world's principles (toyworld/lessons.py). Then

    supervised half   it criticises and revises its own responses to harmful requests, and is
                      fine-tuned on the revisions and on its own unrevised responses to others
    RL half           it ranks the fine-tuned model's responses to requests of both sorts by the
                      principles; its preferences, as chances, train a reward model; then PPO

In the paper people still say what is helpful. Here a principle does, the one against declining what
is fine: with principles that only forbid, PPO learns to decline everything. Gold is looked at only
at the end: harmlessness and helpfulness on held-out requests after each half.

    python experiments/constitutional.py     # a quarter of an hour; out/constitutional/result.json
"""

from dataclasses import dataclass
from pathlib import Path

from lab import arms

import evaluate
import label
import sample
import toyworld
import train_ppo
import train_rm
import train_sft
from examples import revise
from minirlhf.cli import start
from minirlhf.feedback import annotators, rankings
from minirlhf.files import read_jsonl, write_json

CONSTITUTION = "toyworld.lessons"
SORTS = ("harmful", "other")  # of requests
MANY = 10**6  # all that there are


@dataclass
class Settings:
    out: str = "out/constitutional"  # everything is written below this folder
    init: str = ""  # the helpful model, if it is trained already (train_sft.py, toyworld.lessons)
    sft_steps: int = 900  # of the helpful model
    prompts: int = 400  # of each sort, to revise or to keep; twice as many to rank
    revisions: int = 4  # critiques and revisions of a response
    tune_steps: int = 40  # of fine-tuning on the revisions
    ppo_steps: int = 40  # of PPO
    kl_coef: float = 0.2  # of PPO: reward lost per nat of log(policy/reference)
    evaluation: int = 200  # held-out prompts of each sort
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu


def write_prompts(file: str, split: str, count: int, seed: int, sort: str) -> str:
    """`count` different prompts that ask for help with harm, or none of which does."""

    def keep(prompt) -> bool:
        return arms.is_harmful(prompt) == (sort == "harmful")

    return arms.write_prompts(file, arms.toy_prompts(split, count, seed, keep))


def agreement_with_gold(file: str) -> dict:
    """Of an AI's rankings, on pairs of which one response helps with harm."""
    by_ai = read_jsonl(file)
    by_gold = []
    for ranking in by_ai:
        prompt = ranking["prompt"]
        parts = [toyworld.gold_parts(prompt, response) for response in ranking["responses"]]
        ranks = rankings.rank_by([part["harmless"] for part in parts])
        by_gold.append({**ranking, "ranks": ranks})
    differing = {pair: order for pair, order in annotators.comparisons(by_gold).items() if order}
    share, interval, pairs = annotators.agreement(annotators.comparisons(by_ai), differing)
    return {"mean": share, "interval": interval, "pairs": pairs}


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
        steps = settings.sft_steps
        train_sft.main(train_sft.Settings(steps=steps, out=helpful, **lessons, **run))

    # 2. the supervised half
    demonstrations = []
    for sort, turns in (("harmful", settings.revisions), ("other", 0)):
        file = f"{out}/{sort}.jsonl"
        data = write_prompts(file, "train", settings.prompts, settings.seed, sort)
        revised = f"{out}/revised_{sort}.jsonl"
        ask = {"constitution": CONSTITUTION, "revisions": turns}
        revise.main(revise.Settings(helpful, data=data, count=MANY, out=revised, **ask, **common))
        demonstrations.append(revised)
    supervised = f"{out}/sl"
    tune = {"lr": 1e-3, "warmup": 5, "steps": settings.tune_steps}
    data = ",".join(demonstrations)
    train_sft.main(train_sft.Settings(init=helpful, data=data, out=supervised, **tune, **run))

    # 3. the reinforcement half
    prompts, ranked = [], []
    for sort in SORTS:
        file = f"{out}/more_{sort}.jsonl"
        count = 2 * settings.prompts
        data = write_prompts(file, "train", count, settings.seed + 1, sort)
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
    rl = {"steps": settings.ppo_steps, "kl_coef": settings.kl_coef, "data": ",".join(prompts)}
    train_ppo.main(train_ppo.Settings(init=supervised, reward=rm, out=policy, **rl, **run))

    # 4. what came of it, by gold
    agreement = agreement_with_gold(ranked[0])
    result = {
        "judge_agrees_on_harm": agreement,
        "position_bias": annotators.position_bias(read_jsonl(ranked[0])),
    }
    print("of {pairs} pairs it ranks {mean:.1%} ± {interval:.1%} as gold does".format(**agreement))
    policies = f"{helpful},{supervised},{policy}"
    for sort in SORTS:
        file = f"{out}/test_{sort}.jsonl"
        data = write_prompts(file, "test", settings.evaluation, settings.seed, sort)
        report = evaluate.main(
            evaluate.Settings(
                policies=policies,
                data=data,
                count=settings.evaluation,
                out=f"{out}/evaluation_{sort}.json",
                **common,
            )
        )
        result[sort] = {}
        for row in report["results"]:
            parts = {"gold": row["gold"], **row["parts"]}
            result[sort][row["policy"]] = parts
            cells = [f"{name} {part['mean']:.2f}" for name, part in parts.items()]
            print(f"{row['policy']}, {sort} requests: {', '.join(cells)}")
    write_json(f"{out}/result.json", result)
    return result


if __name__ == "__main__":
    start(main, Settings)
