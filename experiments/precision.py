"""Does bfloat16 end where float32 does? The whole loop, DPO and GRPO in both, over seeds.

    python experiments/precision.py --seeds 0,1,2     # on a CPU some 40 minutes of a thread a seed

Prints the table of docs/results.md: means over the seeds, Student's intervals, and those of the
difference between the last dtype and the first, seed by seed. What is finished is kept: the same
command goes on.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.intervals import estimate, where

from minirlhf.cli import start
from minirlhf.files import read_json, write_json
from minirlhf.run import read_run

ROOT = Path(__file__).parents[1]


@dataclass
class Settings:
    seeds: str = "0,1,2"  # comma-separated
    dtypes: str = "float32,bfloat16"  # in this order
    out: str = "out/precision"  # everything is written below this folder


def script(name: str, dtype: str, seed: int, *switches: str, **flags) -> None:
    """Run a script with these flags."""
    command = [sys.executable, ROOT / name, "--dtype", dtype, "--seed", str(seed), *switches]
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)]
    subprocess.run(command, check=True)


def policies_of(evaluation: Path) -> list[dict]:
    """Their results. Demonstrations, which stand behind them, win against nobody."""
    return [row for row in read_json(evaluation)["results"] if "win_rate" in row]


def one_run(folder: Path, dtype: str, seed: int) -> dict[str, float]:
    """Train everything; what came of it by the table's names."""
    script("run_rlhf.py", dtype, seed, out=folder)
    sft, rm = f"{folder}/sft", f"{folder}/round1/rm"
    dpo, grpo = f"{folder}/dpo", f"{folder}/grpo"
    evaluation = folder / "methods.json"
    if not evaluation.exists():
        rankings = f"{folder}/round1/rankings.jsonl"
        script("train_dpo.py", dtype, seed, "--resume", init=sft, data=rankings, out=dpo)
        groups = {"advantage": "grpo", "samples_per_prompt": 4, "prompts_per_step": 32}
        groups |= {"lr": 3e-4, "out": grpo}
        script("train_ppo.py", dtype, seed, "--resume", init=sft, reward=rm, **groups)
        policies = f"{sft},{dpo},{grpo}"
        script("evaluate.py", dtype, seed + 1000, policies=policies, out=evaluation)
    before, *rounds = policies_of(folder / "evaluation.json")
    _, after_dpo, after_grpo = policies_of(evaluation)
    numbers = {
        "SFT: validation loss": read_run(Path(sft))["validation_loss"],
        "SFT: gold": before["gold"]["mean"],
        "reward model: right on its held-out rankings": read_run(Path(rm))["validation_accuracy"],
    }
    after = {"PPO, round 1": rounds[0], "PPO, round 2": rounds[1]}
    after |= {"DPO": after_dpo, "GRPO": after_grpo}
    for name, result in after.items():
        numbers[f"{name}: win rate against SFT"] = result["win_rate"]["mean"]
        numbers[f"{name}: KL to SFT, nats"] = result["kl"]["mean"]
    return numbers


def table(rows: list[dict]) -> str:
    """A line for each number. The last column is the last dtype less the first, seed by seed."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    columns = [where(rows, dtype=dtype) for dtype in dtypes]
    lines = [
        f"| mean of {len(columns[0])} seeds | {' | '.join(dtypes)} | difference of the last |",
        "|---" * (len(dtypes) + 2) + "|",
    ]
    for name in rows[0]:
        if name not in ("dtype", "seed"):
            cells = [estimate(column, name) for column in columns]
            cells.append(estimate(columns[-1], name, minus=columns[0]))
            lines.append(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    rows = []
    for seed in map(int, settings.seeds.split(",")):
        for dtype in settings.dtypes.split(","):
            numbers = one_run(Path(settings.out, f"{dtype}_{seed}"), dtype, seed)
            rows.append({"dtype": dtype, "seed": seed, **numbers})
    report = f"{settings.out}/precision.json"
    write_json(report, {"rows": rows})
    print(f"\n{table(rows)}wrote {report}")


if __name__ == "__main__":
    start(main, Settings)
