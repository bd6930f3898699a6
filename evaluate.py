"""Policies against a baseline, on held-out prompts: who wins, at what KL, and what could be wrong.

Who wins is decided by gold (a hidden judge), by a reward, or by a judge that compares. Win rates
(ties count half) and means come with 95 % intervals; prompts are the independent units. With
--reward, that reward and the policies are probed as well (minirlhf/report/probes.py).

    python evaluate.py --policies out/sft,out/round1/ppo --reward out/round1/rm
    python evaluate.py --policies out/sft,out/dpo --data prompts.jsonl --judge my_judges.py:shorter
    python evaluate.py --policies out/sft,a/ppo,b/ppo --reward out/rm --out ab/evaluation.json
    python -m minirlhf.report ab
    python evaluate.py --reward out/rm --data pairs.jsonl     # the reward itself, on people's pairs
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

import torch

from minirlhf import UserError, agreement, checkpoint, hub, rewards, rollout, user_function, world
from minirlhf.answers import Answers, grouped, measure, score, win_rates
from minirlhf.batches import draw
from minirlhf.cli import at_least, start, wrapped
from minirlhf.console import waiting
from minirlhf.data import Prompt, holds_rankings, read_prompts, read_rankings
from minirlhf.device import open_model
from minirlhf.files import check_target, write_json
from minirlhf.inputs import check_output
from minirlhf.model import GPT
from minirlhf.report import probes
from minirlhf.rewards import RewardFn
from minirlhf.rollout import Rollout
from minirlhf.run import seed_of
from minirlhf.winrate import OTHER, assess, kinds_of

EXAMPLES = 24  # prompts whose responses are kept side by side


@dataclass
class Settings:
    # everyday
    policies: str = ""  # model folders, comma-separated; empty: out/sft,out/ppo, or with pairs none
    baseline: str = ""  # whom they are compared with; empty: the first of them
    reward: str = ""  # reward model, file.py:function or world: scores, probes, best of n
    data: str = "toyworld"  # prompts: files with a "prompt" field, or a world's module
    gold: str = "toyworld"  # hidden judge: a world, or a reward that no policy was trained on
    judge: str = "auto"  # who wins by: gold, reward, or file.py:function(prompt, [a, b])
    out: str = "out/evaluation.json"  # every number
    count: int = 400  # prompts to draw, of which each different one is asked once; pairs: all

    # method
    reference: str = ""  # model that the KL is measured against; empty: the baseline
    ensemble: Literal["mean", "min", "uwo"] = "mean"  # of several rewards
    reward_weights: str = ""  # of several rewards, "0.7,0.3": a weighted sum, as in train_ppo.py
    watch: str = ""  # other rewards, comma-separated, that no policy was trained on
    template: Literal["chat", "raw"] = "chat"  # chat: a bare prompt is a user turn; raw: plain text
    split: Literal["train", "test"] = "test"  # of a world's prompts; test: held out

    # sampling
    samples: int = 4  # responses per prompt; with --reward also the best of n, up to this
    truncate: bool = False  # cut prompts that are too long, instead of leaving them out
    max_tokens: int = 64  # longest response
    temperature: float = -1.0  # of sampling; -1: that of the policies' training
    unfinished_score: float = -1.0  # of the reward "as trained", as in train_ppo.py

    # run
    seed: int = 1000  # seed of prompts and samples
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products


# ---- who is asked what, and who judges


def common_temperature(folders: list[str]) -> float:
    """Of the policies' training; the baseline's, the first, where no other folder names one."""
    temperatures = [checkpoint.read_temperature(hub.model_folder(folder)) for folder in folders]
    trained = set(temperatures[1:]) - {None}
    if len(trained) > 1:
        raise UserError(
            f"the policies were trained at different temperatures ({sorted(trained)}): choose one "
            "to compare them at, with --temperature"
        )
    if trained:
        return trained.pop()
    return temperatures[0] or rollout.TEMPERATURE


def load_prompts(settings: Settings, count: int, reference: GPT) -> list[Prompt]:
    """Prompts that leave room for --max_tokens; fewer than `count` where there are no more."""
    which = {"split": settings.split, "count": count, "seed": settings.seed}
    columns = rewards.columns(settings.reward, settings.watch)
    prompts = read_prompts(settings.data, template=settings.template, columns=columns, **which)
    fitting = rollout.prompts_that_fit(reference, prompts, settings.max_tokens, settings.truncate)
    return draw(fitting, count, settings.seed)


def load_beliefs(settings: Settings, module: ModuleType | None, reference: GPT) -> list[Prompt]:
    """Prompts in which the user is wrong, if a reward is to be probed and the world can tell."""
    needed = ("features", "gold_parts", "without_belief")
    if not settings.reward or not all(hasattr(module, name) for name in needed):
        return []
    beliefs = []
    for prompt in load_prompts(settings, 6 * settings.count, reference):
        if module.features(prompt.source, "You are right.").get("agreement"):
            beliefs.append(prompt)
    return beliefs[: math.ceil(settings.count / 8)]


def find_world(settings: Settings, prompts: list[Prompt]) -> ModuleType | None:
    """What tells kinds: the gold's world if it knows all the prompts, else the data's."""
    module = world.find(settings.gold)
    if OTHER in kinds_of(prompts, module):
        module = world.find(settings.data)
    return module


def load_reward(settings: Settings) -> RewardFn:
    return rewards.load(
        settings.reward,
        settings.device,
        settings.dtype,
        weights=settings.reward_weights,
        ensemble=settings.ensemble,
    )


def load_scorers(settings: Settings, prompts: list[Prompt]) -> dict[str, RewardFn]:
    """gold, reward and watch_NAME. A world that tells kinds only judges prompts of its own."""
    place = {"device": settings.device, "dtype": settings.dtype}
    scorers = {}
    gold_world = world.find(settings.gold)
    is_foreign = hasattr(gold_world, "kind") and OTHER in kinds_of(prompts, gold_world)
    if settings.gold and not is_foreign:
        scorers["gold"] = rewards.load(settings.gold, **place)
    if settings.reward:
        scorers["reward"] = load_reward(settings)
    elif settings.watch:
        raise UserError("--watch compares its gain with that of --reward: name that reward too")
    for name in filter(None, settings.watch.split(",")):
        scorers[f"watch_{name}"] = rewards.load(name, **place)
    return scorers


def who_decides(settings: Settings, scorers: dict[str, RewardFn]) -> tuple[str, Callable | None]:
    """The name of a scorer, or the name of a judge that compares, and the judge."""
    name = settings.judge
    if user_function.file_of(name):
        return name, user_function.load(name, "--judge")
    if name == "auto":
        name = "gold" if "gold" in scorers else "reward"
    if name not in scorers:
        raise UserError(
            f"--judge {settings.judge}: nobody says who wins; a world judges only its own prompts. "
            "Use --gold REWARD, --reward REWARD, or --judge file.py:function"
        )
    return name, None


# ---- the responses


def sample(
    settings: Settings, policy: GPT, prompts: list[Prompt], generator: torch.Generator
) -> Rollout:
    options = {"temperature": settings.temperature, "samples_per_prompt": settings.samples}
    return rollout.sample(policy, prompts, settings.max_tokens, generator, **options)


def demonstrations(settings: Settings, module: ModuleType | None, gold: RewardFn | None) -> dict:
    """The numbers of what a world's demonstrators wrote for the same prompts; {} if nothing."""
    data_world = world.find(settings.data)
    if gold is None or not hasattr(data_world, "demonstrations"):
        return {}
    written = {}
    for record in data_world.demonstrations(settings.split, settings.count, settings.seed):
        if record.keys() >= {"prompt", "completion"}:
            written.setdefault(Prompt.of(record["prompt"]), record["completion"])
    if not written:
        return {}
    prompts, texts = list(written), list(written.values())
    scores = torch.tensor(gold(prompts, texts))[:, None]  # (P, 1)
    return {"policy": "demonstrations"} | assess(prompts, grouped(texts, 1), module, scores)


def probe_beliefs(
    settings: Settings,
    policy: GPT,
    prompts: list[Prompt],
    module: ModuleType,
    generator: torch.Generator,
) -> dict:
    """Ask the same with and without the user's wrong belief."""
    neutral = [Prompt.of(module.without_belief(prompt.source)) for prompt in prompts]
    batch = sample(settings, policy, prompts + neutral, generator)
    texts = grouped(batch.responses, settings.samples)
    told, untold = texts[: len(prompts)], texts[len(prompts) :]
    return probes.of_beliefs(module, prompts, told, untold)


# ---- the evaluation


def side_by_side(prompts: list[Prompt], answers: dict[str, Answers]) -> list[dict]:
    """All policies' first responses to each prompt."""
    examples = []
    for i, prompt in enumerate(prompts):
        responses = {}
        for folder, answer in answers.items():
            scores = {name: float(values[i, 0]) for name, values in answer.scores.items()}
            responses[folder] = {"response": answer.texts[i][0], **scores}
        examples.append({"prompt": prompt.source, "answers": responses})
    return examples


def show(results: list[dict]) -> None:
    """A table of the policies' main numbers, and what their probes found."""
    names = ("win_rate", "gold", "reward", "kl", "words", "finished")
    names = [name for name in names if name in results[0]]
    rows = [["policy", *names]]
    for result in results:
        cells = [probes.measured(result[name]) for name in names[:-1]]
        rows.append([result["policy"], *cells, f"{result['finished']:.0%}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for policy, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:]))
        print(policy.ljust(widths[0]), *numbers, sep="  ")
    for result in results:
        if result["finished"] < 1 and "reward_as_trained" in result:
            penalised = probes.measured(result["reward_as_trained"])
            print(f"{result['policy']}: with the penalty for unfinished answers reward {penalised}")
        for row in result.get("probes", ()):
            if row["verdict"] == "look here":
                print(wrapped(f"{result['policy']}: look here: {row['says']}", indent=4))


def judge_reward(settings: Settings) -> dict:
    """How well --reward agrees with the pairs or rankings of --data."""
    reward = load_reward(settings)
    which = {"split": settings.split, "count": settings.count, "seed": settings.seed}
    rankings = read_rankings(settings.data, template=settings.template, **which)
    report = {"reward": settings.reward, "data": settings.data}
    report |= agreement.measure(reward, rankings)
    for line in agreement.sentences(report):
        print(line)
    write_json(settings.out, report)
    return report


def main(settings: Settings) -> dict:
    # 1. the policies, what they are asked, and who judges
    at_least(1, settings, "count", "samples", "max_tokens")
    check_target("--out", settings.out)
    check_output("out", settings.out, settings)
    if settings.reward and not settings.policies and holds_rankings(settings.data):
        return judge_reward(settings)
    place = {"device": settings.device, "dtype": settings.dtype}
    policies = settings.policies or "out/sft,out/ppo"
    folders = [name.strip() for name in policies.split(",") if name.strip()]
    if not folders:
        raise UserError("--policies names no model folder")
    baseline = settings.baseline or folders[0]
    folders = list(dict.fromkeys([baseline, *folders]))
    if settings.temperature < 0:
        settings = replace(settings, temperature=common_temperature(folders))
    reference_folder = settings.reference or baseline
    reference = open_model(GPT, reference_folder, **place)
    prompts = load_prompts(settings, settings.count, reference)
    module = find_world(settings, prompts)
    scorers = load_scorers(settings, prompts)
    wins_by, judge = who_decides(settings, scorers)
    beliefs = load_beliefs(settings, module, reference)

    # 2. each policy answers, and is measured, compared and probed
    results = []
    answers = {}
    for folder in folders:
        policy = reference
        if folder != reference_folder:
            policy = open_model(GPT, folder, **place)
            if len(rollout.prompts_that_fit(policy, prompts, settings.max_tokens)) < len(prompts):
                raise UserError(
                    f"{folder} has a shorter context than {reference_folder}: lower --max_tokens, "
                    f"or give --reference {folder}"
                )
        generator = torch.Generator(policy.device).manual_seed(seed_of(settings.seed, "evaluate"))
        batch = sample(settings, policy, prompts, generator)
        with waiting("scoring"):
            answer = score(
                batch, settings.samples, policy, reference, scorers, settings.temperature
            )
        answers[folder] = answer
        result = {"policy": folder} | measure(prompts, answer, module, settings.unfinished_score)
        result |= win_rates(prompts, list(answers.values()), wins_by, judge)
        if settings.reward:
            with waiting("probing"):
                result["probes"] = probes.of_policy(answer, answers[baseline], scorers)
        if beliefs:
            row = probe_beliefs(settings, policy, beliefs, module, generator)
            result["probes"].append(row)
        results.append(result)
    if settings.reward and "gold" in scorers:
        probes.add_frontier(results, answers)
    show(results)

    # 3. write all of it down
    if written := demonstrations(settings, module, scorers.get("gold")):
        results.append(written)
    report = {
        "baseline": baseline,
        "judge": wins_by,
        "prompts": len(prompts),
        "samples": settings.samples,
        "temperature": settings.temperature,
        "reward": settings.reward,
        "results": results,
        "examples": side_by_side(prompts[:EXAMPLES], answers),
    }
    write_json(settings.out, report)
    return report


if __name__ == "__main__":
    start(main, Settings)
