"""Arms that many experiments use, and responses to prompts of the toy world."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import evaluate
import label
import sample
import toyworld
import train_ppo
import train_rm
from lab.intervals import column
from lab.laboratory import Lab
from minirlhf import preferences
from minirlhf.data import Prompt, read_rankings
from minirlhf.device import open_model
from minirlhf.files import read_jsonl, to_json, write_jsonl
from minirlhf.model import ScalarGPT
from minirlhf.preferences import to_groups
from minirlhf.rewards import TOKENS_AT_ONCE, RewardFn
from minirlhf.run import read_run

# ---- arms


def rankings(
    L: Lab,
    folder: str,
    *,
    count: int,
    samples: int = 2,
    noise: float = 0.2,
    bias: str = "",
    seed: int = 0,
    init: str = "",
    split: str = "train",
) -> dict:
    """{"data": file}: `samples` responses of a model (init, or SFT) to each of `count` prompts.

    A simulated annotator ranks them. An arm.
    """
    candidates = f"{folder}/candidates.jsonl"
    sample.main(
        sample.Settings(
            init=init or L.sft,
            data="toyworld",
            count=count,
            samples=samples,
            temperature=0.7,
            seed=seed,
            split=split,
            candidates_out=candidates,
            device=L.device,
        )
    )
    data = f"{folder}/rankings.jsonl"
    annotator = {"annotator": "toyworld", "noise": str(noise), "bias": bias}
    label.main(label.Settings(candidates=candidates, out=data, seed=seed, **annotator))
    return {"data": data}


def ranked(L: Lab, **key) -> list[dict]:
    """The records of an arm `rankings`."""
    return read_jsonl(L.arm(rankings, **key)["data"])


def reward_model(L: Lab, folder: str, *, data: str, seed: int = 0, **settings) -> dict:
    """train_rm.py on `data`: {"rm": its folder, "validation_accuracy", ...}. An arm."""
    out = f"{folder}/rm"
    settings = {"init": L.sft, **settings}
    common = {"seed": seed, "device": L.device, "resume": True}
    train_rm.main(train_rm.Settings(data=data, out=out, **common, **settings))
    result = {"rm": out}
    for name, value in read_run(out).items():
        if name.startswith("validation"):
            result[name] = value
    return result


def validate(L: Lab, rm: str, file: str) -> dict:
    """On a file of rankings: {"accuracy", "loss", "calibration", "claims_too_much"}.

    The last is the accuracy that a reward model claims, less the one it has.
    """
    model = open_model(ScalarGPT, rm, L.device)
    groups = to_groups(model.tokenizer, read_rankings(file), model.config.n_positions)
    result = preferences.validate(model, groups, TOKENS_AT_ONCE)
    accuracy, calibration = result["validation_accuracy"], result["calibration"]
    claimed = sum(part["pairs"] * part["predicted"] for part in calibration)
    return {
        "accuracy": accuracy,
        "loss": result["validation_loss"],
        "calibration": calibration,
        "claims_too_much": claimed / result["validation_pairs"] - accuracy,
    }


def evaluation(
    L: Lab,
    folder: str,
    *,
    policy: str,
    reward: str = "",
    count: int = 200,
    samples: int = 4,
    seed: int,
) -> dict:
    """evaluate.py of a policy against the SFT model, on held-out prompts of the toy world. An arm.

    seed: the training's, so that each repetition has prompts of its own

    Returns {"gold", "gold_interval", "win_rate", "win_rate_interval", "kl", "words", ...}.
    """
    settings = evaluate.Settings(
        policies=policy,
        baseline=L.sft,
        reward=reward,
        count=count,
        samples=samples,
        seed=1000 + seed,
        out=f"{folder}/evaluation.json",
        device=L.device,
    )
    results = evaluate.main(settings)["results"]
    result = next(result for result in results if result["policy"] == policy)
    return flat(result)


def flat(result: dict) -> dict[str, float]:
    """A policy's numbers in evaluate.py's report, as {name: mean, name_interval: half width}."""
    row = {}
    for name, value in result.items():
        if isinstance(value, dict) and "mean" in value:
            row[name] = value["mean"]
            row[f"{name}_interval"] = value["interval"]
    return row


def train_policy(L: Lab, folder: str, *, reward: str, steps: int, seed: int = 0, **settings) -> str:
    """The folder of a policy after a short run of RLOO, 16 prompts with four samples a step."""
    out = f"{folder}/policy"
    settings = {"init": L.sft, **settings}
    method = {"advantage": "rloo", "samples_per_prompt": 4, "prompts_per_step": 16}
    common = {"seed": seed, "device": L.device, "resume": True}
    train_ppo.main(
        train_ppo.Settings(reward=reward, steps=steps, out=out, **method, **common, **settings)
    )
    return out


def metrics(folder: str, names: list[str], window: int) -> dict[str, list[float]]:
    """Columns of a run's metrics.jsonl, as means over windows of steps."""
    rows = read_jsonl(Path(folder) / "metrics.jsonl")
    windows = [rows[start : start + window] for start in range(0, len(rows), window)]
    return {name: [mean(column(part, name)) for part in windows] for name in names}


def change(folder: str, name: str) -> float | None:
    """Of a run's metric, from the first five steps to the last five; None if it is not logged."""
    values = [row[name] for row in read_jsonl(Path(folder) / "metrics.jsonl") if name in row]
    if not values:
        return None
    return mean(values[-5:]) - mean(values[:5])


# ---- prompts, and responses to them


def anything(prompt: str | list) -> bool:
    return True


def toy_prompts(split: str, count: int, seed: int, keep: Callable = anything) -> list[str | list]:
    """`count` different prompts of the toy world for which keep(prompt) is true.

    Fewer if 60 times as many draws hold no more.
    """
    prompts = {}
    for block in range(20):
        for record in toyworld.prompts(split, 3 * count, seed + 100_000 * block):
            if keep(record["prompt"]):
                prompts.setdefault(to_json(record["prompt"]), record["prompt"])
        if len(prompts) >= count:
            break
    return list(prompts.values())[:count]


def write(file: str, records: list[dict]) -> str:
    """Write JSON lines; the file's name back."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file, records)
    return file


def write_prompts(file: str, prompts: list[str | list]) -> str:
    return write(file, [{"prompt": prompt} for prompt in prompts])


@dataclass
class Answers:
    """S responses to each of P prompts."""

    file: str
    prompts: list[str | list]  # P, as in files
    responses: list[list[str]]  # P x S

    def each(self, function: Callable[[str | list, str], float]) -> Tensor:
        """function(prompt, response) of each response: (P, S)."""
        rows = []
        for prompt, responses in zip(self.prompts, self.responses):
            rows.append([function(prompt, response) for response in responses])
        return torch.tensor(rows, dtype=torch.float64)

    def scores(self, reward_fn: RewardFn, prompts: list[str | list] | None = None) -> Tensor:
        """A reward function's scores (P, S).

        prompts: show it these in place of the prompts that were answered.
        """
        flat_prompts, flat_responses = [], []
        for source, responses in zip(prompts or self.prompts, self.responses):
            flat_prompts += [Prompt.of(source)] * len(responses)
            flat_responses += responses
        scores = reward_fn(flat_prompts, flat_responses)
        return torch.tensor(scores, dtype=torch.float64).view(len(self.prompts), -1)


def read_answers(file: str) -> Answers:
    rows = read_jsonl(file)
    return Answers(file, [row["prompt"] for row in rows], [row["responses"] for row in rows])


def answer(
    L: Lab,
    folder: str,
    policy: str,
    count: int,
    *,
    seed: int,
    split: str = "test",
    keep: Callable = anything,
    samples: int = 4,
    temperature: float = 0.7,
) -> Answers:
    """A policy's responses to toy_prompts, kept in folder/answers.jsonl."""
    prompts = toy_prompts(split, count, seed, keep)
    out = f"{folder}/answers.jsonl"
    sample.main(
        sample.Settings(
            init=policy,
            data=write_prompts(f"{folder}/prompts.jsonl", prompts),
            count=count,
            samples=samples,
            temperature=temperature,
            seed=seed,
            candidates_out=out,
            device=L.device,
        )
    )
    return read_answers(out)


def responses(L: Lab, folder: str, *, count: int, samples: int, seed: int) -> dict:
    """{"answers": file} of the SFT model to held-out prompts, for read_answers. An arm."""
    return {"answers": answer(L, folder, L.sft, count, samples=samples, seed=1000 + seed).file}


# ---- the toy world's judgements of one response


def gold(prompt: str | list, response: str) -> float:
    return toyworld.gold_parts(prompt, response)["total"]


def is_harmful(prompt: str | list) -> bool:
    """Whether it asks for help with harm."""
    return toyworld.kind(prompt) == "refuse"


def words(prompt: str | list, response: str) -> float:
    return toyworld.features(prompt, response)["length"]
