"""Real human preferences from scratch: a 3 M model learns dialogue, a reward model learns hh-rlhf's pairs, PPO follows it.

    python experiments/hh_small.py --data ../shared/data            # about half an hour on two CPU cores
    python experiments/hh_small.py --data ../shared/data --quick    # a minute: shows that it runs

Human pairs: hh-rlhf's own test files, hh_rlhf/*.jsonl.gz under --data, split by first human turn into 80 % for training and 20 %
for the test. SFT reads the chosen side of all and sft/dolly_3k.jsonl.gz; the reward model and PPO the helpful files, since a model
of this size learns little from both sorts of pairs at once (--harmless: both). Prints and writes result.json: accuracy on the test
pairs with its 95 % interval, of all and of each file's, of the same pairs the share in which the longer response was chosen, and
what the fit of Bai et al. 2022a (section 3.3) predicts: .72 + .007 ln(P / 1e11) + .015 ln(D / 8e4), P parameters, D pairs.
"""
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, rewards, stats
from minirlhf.cli import start
from minirlhf.batches import held_out
from minirlhf.data import Ranking, read_rankings
from minirlhf.files import read_jsonl, write_atomically
from minirlhf.model import ScalarGPT


@dataclass
class Settings:
    data: str = "../shared/data"  # the folder that holds hh_rlhf/ and sft/
    out: str = "out/hh_small"     # everything is written below this folder
    harmless: bool = False        # pairs of the harmless file too
    quick: bool = False           # everything small, to see that it runs
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu


def first_turn(ranking: Ranking) -> str:
    return ranking.prompt.turns[0][1]


def accuracy(right: list[float]) -> dict[str, float]:
    """Share of pairs ordered as people did (a tie counts half), its 95 % interval's half width, and how many there are."""
    return stats.mean_of(torch.tensor(right)) | {"pairs": len(right)}


def main(settings: Settings) -> dict:
    out, quick = Path(settings.out), settings.quick
    files = sorted(Path(settings.data, "hh_rlhf").glob("*.jsonl.gz"))
    if not files:
        raise UserError(f"{settings.data}/hh_rlhf holds no .jsonl.gz: put hh-rlhf's files there, or say another --data")
    chosen, train, test = [], [], []
    for file in files:                       # a first turn is on the same side in every file
        parts = held_out(read_rankings(str(file)), first_turn, 0.2, settings.seed)
        chosen += (part := parts[0][: 70 if quick else None])
        if settings.harmless or "harmless" not in file.name:
            train, test = train + part, test + [(file.name, r) for r in parts[1][: 20 if quick else None]]
    where, test = zip(*test)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", chosen), ("pairs", train), ("test", test)):
        rows = [{"prompt": r.prompt.source, "chosen": r.responses[0], "rejected": r.responses[1]} for r in part]
        write_atomically(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    common = {"seed": settings.seed, "device": settings.device, "resume": True}

    # 1. dialogue, from nothing: 4 layers of 192 and a vocabulary of 4096 are 2.7 M parameters
    train_sft.main(train_sft.Settings(
        data=f"{out}/train.jsonl,{settings.data}/sft/dolly_3k.jsonl.gz", out=f"{out}/sft", n_layer=1 if quick else 4, n_head=6,
        n_embd=48 if quick else 192, n_positions=512, vocab_size=600 if quick else 4096, lr=2e-3, batch_size=4 if quick else 16,
        steps=6 if quick else 1400, warmup=50, **common))
    # 2. the reward model, one pass over the pairs
    train_rm.main(train_rm.Settings(
        init=f"{out}/sft", data=f"{out}/pairs.jsonl", out=f"{out}/rm", epochs=1, batch_size=16, lr=3e-4,
        max_tokens=8 if quick else 48, steps=3 if quick else 0, normalize_samples=8 if quick else 128, **common))

    # 3. is it right about pairs it has not seen, and is it more than a ruler?
    model = ScalarGPT.from_pretrained(f"{out}/rm")
    limit = model.config.n_positions
    fits = [max(len(model.tokenizer.encode_prompt(r.prompt.turns)) + len(model.tokenizer.encode_response(r.prompt.turns, x)) for x in r.responses) <= limit for r in test]
    seen, where = [r for r, fit in zip(test, fits) if fit], [name for name, fit in zip(where, fits) if fit]
    short = [r for r, w in zip(seen, where) if "helpful-base" in w and len(model.tokenizer.encode_prompt(r.prompt.turns)) <= limit - 48]
    write_atomically(out / "questions.jsonl", "".join(json.dumps({"prompt": r.prompt.source}) + "\n" for r in short).encode())
    reward = rewards.TrainedReward(model)
    scores = [reward([r.prompt] * 2, r.responses) for r in seen]
    right = [(a > b) + (a == b) / 2 for a, b in scores]
    lengths = [[len(model.tokenizer.encode_response(r.prompt.turns, x)) for x in r.responses] for r in seen]
    parameters = sum(p.numel() for p in model.parameters())
    result = {
        "parameters": parameters, "training_pairs": len(train), "test_pairs_too_long": len(test) - len(seen),
        "reward_model": accuracy(right), "longer_is_better": accuracy([(a > b) + (a == b) / 2 for a, b in lengths]),
        "papers_fit": 0.72 + 0.007 * math.log(parameters / 1e11) + 0.015 * math.log(len(train) / 8e4)}
    result["where_the_longer_lost"] = accuracy([x for x, (m, n) in zip(right, lengths) if m <= n])     # where a ruler is wrong
    result["by_file"] = {name: accuracy([x for x, w in zip(right, where) if w == name]) for name in dict.fromkeys(where)}

    # 4. a short PPO, and what the policy says before and after
    train_ppo.main(train_ppo.Settings(
        init=f"{out}/sft", reward=f"{out}/rm", data=f"{out}/pairs.jsonl", out=f"{out}/ppo", steps=2 if quick else 40,
        prompts_per_step=4 if quick else 32, max_tokens=8 if quick else 48, lr=1e-4, **common))
    rows = read_jsonl(out / "ppo" / "metrics.jsonl")
    result["ppo"] = {k: [rows[0][k], rows[-1][k]] for k in ("score", "kl", "length", "finished")}
    for name in ("sft", "ppo"):
        sample.main(sample.Settings(init=f"{out}/{name}", data=f"{out}/questions.jsonl", count=8, max_tokens=8 if quick else 48,
                                    temperature=0.7, candidates_out=f"{out}/{name}_samples.jsonl", seed=settings.seed))
    write_atomically(out / "result.json", json.dumps(result, indent=1).encode())
    print(json.dumps(result, indent=1))
    for a, b in zip(*(read_jsonl(out / f"{name}_samples.jsonl") for name in ("sft", "ppo"))):
        print(f"\n{str(a['prompt']).strip()[-200:]}\n  SFT: {a['responses'][0][:300]}\n  PPO: {b['responses'][0][:300]}")
    return result


if __name__ == "__main__":
    start(main, Settings)
