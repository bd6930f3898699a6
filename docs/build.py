"""Writes the tables of README.md and docs/results.md from the numbers in docs/numbers.

    for seed in 0 1 2; do python run_rlhf.py --seed $seed --out out/seed$seed; done
    python docs/build.py out/seed0 out/seed1 out/seed2      # into docs/numbers/loop.json, by seed
    cp out/methods/methods.json docs/numbers                # what an experiment wrote, as it is
    python docs/build.py

A page has a table between <!-- NAME --> and <!-- end -->.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # minirlhf
sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))  # lab

import constitutional
import methods
import precision
import taste
from lab.intervals import over_seeds

from minirlhf.files import read_json, write_atomically, write_json

DOCS = Path(__file__).parent
NUMBERS = DOCS / "numbers"


def of_run(folder: Path) -> dict:
    """What the pages say of one run, from its report.json."""
    report = read_json(folder / "report.json")
    if not report.get("policies"):
        sys.exit(f"{folder}: no finished run of run_rlhf.py")
    sft, *rounds = report["policies"]
    return {
        "seed": report["settings"]["seed"],
        "made": report["made"],
        "seconds": report["seconds"],
        "gold": [policy["gold"] for policy in report["policies"]],
        "demonstrations": report["demonstrations"][0]["gold"],
        "validation_loss": last(report["sft"]["validation_loss"]),
        "reward_model": sft["reward_accuracy"],
        "reward_model_on_last": rounds[-1]["reward_accuracy"],
        "win_rates": [policy["win_rate"] for policy in rounds],
        "win_rate_over_previous": rounds[-1]["win_rate_previous"],
        "kl": [policy["kl"] for policy in rounds],
        "parts": [policy["parts"] for policy in report["policies"]],
    }


def last(values: list) -> float:
    return [value for value in values if value is not None][-1]


# ---- the pages


def loop_table(runs: list[dict]) -> str:
    """docs/results.md: each number for each seed, and its mean with Student's interval."""

    def row(what: str, style: str, values: list[float]) -> str:
        each = ", ".join(format(value, style) for value in values)
        return f"| {what} | {each} | {over_seeds(values):{style}} |"

    def means(name: str, index: int | None = None) -> list[float]:
        rows = [run[name] if index is None else run[name][index] for run in runs]
        return [row["mean"] for row in rows]

    lines = [
        f"| | seed {', '.join(str(run['seed']) for run in runs)} | mean |",
        "|---|---|---|",
        row("SFT: validation loss", ".3f", [run["validation_loss"] for run in runs]),
        row("SFT: gold", ".2f", means("gold", 0)),
        row("demonstrations for the same prompts: gold", ".2f", means("demonstrations")),
        row("reward model: orders SFT's answers as gold does", ".3f", means("reward_model")),
        row("the same, of the last round's answers", ".3f", means("reward_model_on_last")),
    ]
    for number in range(len(runs[0]["win_rates"])):
        name = f"round {number + 1}"
        lines.append(row(f"{name}: win rate against SFT", ".3f", means("win_rates", number)))
        lines.append(row(f"{name}: gold", ".2f", means("gold", number + 1)))
        lines.append(row(f"{name}: KL to SFT, nats", ".2f", means("kl", number)))
    wins = means("win_rate_over_previous")
    lines.append(row("last round: win rate against the one before", ".3f", wins))
    for part in ("helpful", "tone"):
        for which, name in ((0, "SFT"), (-1, "last round")):
            values = [run["parts"][which][part]["mean"] for run in runs]
            lines.append(row(f"{name}: {part}", ".2f", values))
    seconds = ", ".join(f"{run['seconds'] / 60:.1f}" for run in runs)
    lines.append(f"| minutes | {seconds} | |")
    made = "; ".join(
        dict.fromkeys(", ".join([run["made"][0][:10], *run["made"][1:]]) for run in runs)
    )
    return "\n".join(lines) + f"\n\nMade: {made}."


def three_numbers(runs: list[dict]) -> str:
    """README.md: of the first seed."""
    run = runs[0]
    gold, wins, kl = run["gold"], run["win_rates"][-1], run["kl"][-1]
    last_round = f"round {len(run['win_rates'])}"
    rate = f"{100 * wins['mean']:.0f} % ± {100 * wins['interval']:.0f}"
    lines = [
        f"**{gold[0]['mean']:.2f} to {gold[-1]['mean']:.2f}** is how far gold rises from SFT to "
        f"the end of {last_round}.",
        f"**{rate}** is {last_round}'s win rate against SFT, by gold; a tie counts half.",
        f"**{kl['mean']:.1f} nats** of KL per answer is how far the policy moved for it: usually "
        "0 to 10.",
    ]
    return "\n".join(f"- {line}" for line in lines)


README, RESULTS = DOCS.parent / "README.md", DOCS / "results.md"
BLOCKS = (  # page, its block, the file of numbers, the entry that it shows, who writes it
    (README, "three numbers", "loop.json", "runs", three_numbers),
    (RESULTS, "loop", "loop.json", "runs", loop_table),
    (RESULTS, "precision", "precision.json", "rows", precision.table),
    (RESULTS, "methods", "methods.json", "chosen", methods.table),
    (RESULTS, "taste for brevity", "taste_brief.json", "rows", taste.table),
    (RESULTS, "taste for the sea", "taste_sea.json", "rows", taste.table),
    (RESULTS, "constitutional", "constitutional.json", "seeds", constitutional.table),
)


def with_block(page: str, name: str, content: str) -> str:
    """The page with this content between the block's marks."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    page, count = pattern.subn(lambda marks: f"{marks[1]}{content.rstrip()}\n{marks[2]}", page)
    if count != 1:
        sys.exit(f"there is no block <!-- {name} -->, or more than one")
    return page


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    texts = {}
    for path, name, file, entry, write in BLOCKS:
        page = texts.get(path) or path.read_text(encoding="utf-8")
        texts[path] = with_block(page, name, write(read_json(NUMBERS / file)[entry]))
    return texts


def main(folders: list[str]) -> None:
    if folders:
        runs = read_json(NUMBERS / "loop.json")["runs"]
        runs += [of_run(Path(folder)) for folder in folders]
        newest = {run["seed"]: run for run in runs}
        runs = [newest[seed] for seed in sorted(newest)]
        write_json(NUMBERS / "loop.json", {"runs": runs})
    for path, text in pages().items():
        write_atomically(path, text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
