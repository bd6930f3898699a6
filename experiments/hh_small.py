"""Real human preferences from scratch: a 3 M model learns dialogue, then from hh-rlhf's pairs.

    python experiments/hh_small.py --data data            # half an hour on two CPU cores
    python experiments/hh_small.py --data data --quick    # a minute: shows that it runs

The pairs are those of hh-rlhf's test files, hh_rlhf/*.jsonl.gz below --data, of which 20 % are held
out by the first human turn. SFT learns the chosen side of all and sft/dolly_3k.jsonl.gz; the reward
model and PPO the helpful files, since a model of this size learns little from both sorts of pairs
at once (--harmless: both). result.json has the accuracy on held-out pairs with its 95 % interval,
of all and of each file's, the longer response's, and what the fit of Bai et al. 2022a predicts.
"""

from dataclasses import dataclass
from pathlib import Path

from lab import arms, hh

import train_ppo
import train_rm
import train_sft
from minirlhf import UserError
from minirlhf.cli import start
from minirlhf.device import open_model
from minirlhf.files import read_jsonl, to_json, write_json
from minirlhf.model import ScalarGPT


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
SFT |= {"steps": 1400, "lr": 8e-3, "n_positions": 512}
RM = {"epochs": 1, "batch_size": 16, "lr": 3e-4, "max_tokens": 48, "normalize_samples": 128}
PPO = {"steps": 40, "prompts_per_step": 32, "max_tokens": 48, "lr": 1e-4}
QUICK_SFT = {"n_layer": 1, "n_embd": 48, "vocab_size": 600, "batch_size": 4, "steps": 6}
QUICK_RM = {"steps": 3, "max_tokens": 8, "normalize_samples": 8}
QUICK_PPO = {"steps": 2, "prompts_per_step": 4, "max_tokens": 8}


def main(settings: Settings) -> dict:
    out, quick = settings.out, settings.quick
    files = sorted(Path(settings.data, "hh_rlhf").glob("*.jsonl.gz"))
    if not files:
        raise UserError(f"--data {settings.data}: hh_rlhf/ holds no .jsonl.gz; put hh-rlhf's there")
    dialogues, test = hh.split(files, settings.seed, (70, 20) if quick else (None, None))
    if not settings.harmless:
        test = {name: pairs for name, pairs in test.items() if "harmless" not in name}
    train = [pair for name in test for pair in dialogues[name]]
    everything = [pair for pairs in dialogues.values() for pair in pairs]
    sft_data = arms.write(f"{out}/train.jsonl", hh.as_pairs(everything))
    pairs = arms.write(f"{out}/pairs.jsonl", hh.as_pairs(train))
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
    rows = hh.measure(model, test)
    parameters = sum(p.numel() for p in model.parameters())
    result = {"parameters": parameters, "training_pairs": len(train)}
    result["test_pairs_too_long"] = sum(map(len, test.values())) - len(rows)
    result["papers_fit"] = hh.predicted_accuracy(parameters, len(train))
    result |= hh.summary(rows, list(test))

    # 4. a short PPO, and what the policy says before and after
    ppo = f"{out}/ppo"
    sizes = PPO | QUICK_PPO if quick else PPO
    train_ppo.main(train_ppo.Settings(init=sft, reward=rm, data=pairs, out=ppo, **sizes, **common))
    log = read_jsonl(f"{ppo}/metrics.jsonl")
    for name in ("score", "kl", "length", "finished"):
        result[f"ppo_{name}"] = [log[0][name], log[-1][name]]
    room = model.config.n_positions - PPO["max_tokens"]
    asked = [row["prompt"] for row in rows if row["prompt_length"] <= room][:8]
    hh.compare(sft, ppo, asked, PPO["max_tokens"], settings.seed)
    write_json(f"{out}/result.json", result)
    print(to_json(result, indent=1))
    return result


if __name__ == "__main__":
    start(main, Settings)
