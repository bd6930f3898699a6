"""Real human preferences from scratch: a 3 M model learns dialogue, then from hh-rlhf's pairs.

    python experiments/hh_small.py --data data            # half an hour on two CPU cores
    python experiments/hh_small.py --data data --quick    # a minute: shows that it runs

The pairs are those of hh-rlhf's test files, hh_rlhf/*.jsonl.gz below --data, of which 20 % are held
out by the first human turn. SFT learns the chosen side of all and sft/dolly_3k.jsonl.gz; the reward
model and PPO the helpful files, since a model of this size learns little from both sorts of pairs
at once (--harmless: both). Prints and writes result.json: accuracy on the held-out pairs with its
95 % interval, of all and of each file's; the share in which the longer response was chosen; and
what the fit of Bai et al. 2022a (section 3.3) predicts: .72 + .007 ln(P / 1e11) + .015 ln(D / 8e4),
P parameters, D pairs.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from lab import arms
from lab.intervals import column, where

import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, rewards, stats
from minirlhf.batches import held_out
from minirlhf.cli import start
from minirlhf.data import Ranking, read_rankings
from minirlhf.device import open_model
from minirlhf.files import read_jsonl, to_json, write_json
from minirlhf.model import ScalarGPT
from minirlhf.tokenizer import Tokenizer


@dataclass
class Settings:
    data: str = "data"  # the folder that holds hh_rlhf/ and sft/
    out: str = "out/hh_small"  # everything is written below this folder
    harmless: bool = False  # pairs of the harmless file too
    quick: bool = False  # everything small, to see that it runs
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu


# settings of each stage: 4 layers of 192 and a vocabulary of 4096 are 2.7 M parameters
SFT = {"n_layer": 4, "n_head": 6, "n_embd": 192, "vocab_size": 4096, "batch_size": 16}
SFT |= {"steps": 1400, "lr": 2e-3, "n_positions": 512}
RM = {"epochs": 1, "batch_size": 16, "lr": 3e-4, "max_tokens": 48, "normalize_samples": 128}
PPO = {"steps": 40, "prompts_per_step": 32, "max_tokens": 48, "lr": 1e-4}
QUICK_SFT = {"n_layer": 1, "n_embd": 48, "vocab_size": 600, "batch_size": 4, "steps": 6}
QUICK_RM = {"steps": 3, "max_tokens": 8, "normalize_samples": 8}
QUICK_PPO = {"steps": 2, "prompts_per_step": 4, "max_tokens": 8}


def first_turn(ranking: Ranking) -> str:
    return ranking.prompt.turns[0][1]


def as_pairs(rankings: list[Ranking]) -> list[dict]:
    pairs = []
    for ranking in rankings:
        chosen, rejected = ranking.responses
        pairs.append({"prompt": ranking.prompt.source, "chosen": chosen, "rejected": rejected})
    return pairs


def accuracy(margins: list[float]) -> dict[str, float]:
    """Share of pairs ordered as people did (a tie counts half), its interval, how many."""
    return stats.accuracy(torch.arange(len(margins)), torch.tensor(margins))


def lengths(tokenizer: Tokenizer, ranking: Ranking) -> list[int]:
    turns = ranking.prompt.turns
    return [len(tokenizer.encode_response(turns, text)) for text in ranking.responses]


def predicted_accuracy(parameters: int, pairs: int) -> float:
    """By the fit of Bai et al. 2022a, section 3.3."""
    return 0.72 + 0.007 * math.log(parameters / 1e11) + 0.015 * math.log(pairs / 8e4)


def measure(model: ScalarGPT, test: dict[str, list[Ranking]]) -> list[dict]:
    """Each held-out pair that fits the model: by how much the chosen response scores and is longer.

    test: {file: its pairs}
    """
    tokenizer, reward = model.tokenizer, rewards.TrainedReward(model)
    rows = []
    for file, rankings in test.items():
        for ranking in rankings:
            prompt = len(tokenizer.encode_prompt(ranking.prompt.turns))
            chosen, rejected = lengths(tokenizer, ranking)
            if prompt + max(chosen, rejected) > model.config.n_positions:
                continue
            scores = reward([ranking.prompt] * 2, ranking.responses)
            row = {"file": file, "prompt": ranking.prompt.source, "prompt_length": prompt}
            rows.append({**row, "margin": scores[0] - scores[1], "longer": chosen - rejected})
    return rows


def main(settings: Settings) -> dict:
    out, quick = settings.out, settings.quick
    files = sorted(Path(settings.data, "hh_rlhf").glob("*.jsonl.gz"))
    if not files:
        raise UserError(f"--data {settings.data}: hh_rlhf/ holds no .jsonl.gz; put hh-rlhf's there")
    dialogues, train, test = [], [], {}
    for file in files:  # a first turn is on the same side in every file
        part, rest = held_out(read_rankings(str(file)), first_turn, 0.2, settings.seed)
        if quick:
            part, rest = part[:70], rest[:20]
        dialogues += part
        if settings.harmless or "harmless" not in file.name:
            train += part
            test[file.name] = rest
    sft_data = arms.write(f"{out}/train.jsonl", as_pairs(dialogues))
    pairs = arms.write(f"{out}/pairs.jsonl", as_pairs(train))
    common = {"seed": settings.seed, "device": settings.device, "resume": True}

    # 1. dialogue, from nothing
    sft = f"{out}/sft"
    data = f"{sft_data},{settings.data}/sft/dolly_3k.jsonl.gz"
    sizes = SFT | QUICK_SFT if quick else SFT
    train_sft.main(train_sft.Settings(data=data, out=sft, **sizes, **common))

    # 2. the reward model, one pass over the pairs
    rm = f"{out}/rm"
    sizes = RM | QUICK_RM if quick else RM
    train_rm.main(train_rm.Settings(init=sft, data=pairs, out=rm, **sizes, **common))

    # 3. is it right about pairs that it has not seen, and is it more than a ruler?
    model = open_model(ScalarGPT, rm, settings.device)
    rows = measure(model, test)
    parameters = sum(p.numel() for p in model.parameters())
    result = {
        "parameters": parameters,
        "training_pairs": len(train),
        "test_pairs_too_long": sum(map(len, test.values())) - len(rows),
        "reward_model": accuracy(column(rows, "margin")),
        "longer_is_better": accuracy(column(rows, "longer")),
        "papers_fit": predicted_accuracy(parameters, len(train)),
    }
    ruler_wrong = [row["margin"] for row in rows if row["longer"] <= 0]
    result["where_the_longer_lost"] = accuracy(ruler_wrong)
    for file in test:
        result[file] = accuracy(column(where(rows, file=file), "margin"))

    # 4. a short PPO, and what the policy says before and after
    ppo = f"{out}/ppo"
    sizes = PPO | QUICK_PPO if quick else PPO
    train_ppo.main(train_ppo.Settings(init=sft, reward=rm, data=pairs, out=ppo, **sizes, **common))
    log = read_jsonl(f"{ppo}/metrics.jsonl")
    for name in ("score", "kl", "length", "finished"):
        result[f"ppo_{name}"] = [log[0][name], log[-1][name]]
    room = model.config.n_positions - PPO["max_tokens"]
    asked = [row["prompt"] for row in rows if row["prompt_length"] <= room][:8]
    prompts = arms.write_prompts(f"{out}/questions.jsonl", asked)
    said = []
    for name in ("sft", "ppo"):
        file = f"{out}/{name}_samples.jsonl"
        sampling = {"max_tokens": RM["max_tokens"], "temperature": 0.7, "seed": settings.seed}
        init = f"{out}/{name}"
        sample.main(sample.Settings(init=init, data=prompts, candidates_out=file, **sampling))
        said.append(arms.read_answers(file).responses)
    for prompt, old, new in zip(asked, *said):
        print(f"\n{str(prompt).strip()[-200:]}\n  SFT: {old[0][:300]}\n  PPO: {new[0][:300]}")
    write_json(f"{out}/result.json", result)
    print(to_json(result, indent=1))
    return result


if __name__ == "__main__":
    start(main, Settings)
