"""A loop's folder -> report.html, one file that opens anywhere, and report.json with its numbers.

page.html has the texts and the style; stages that are not there yet are left out with a word.

    python -m minirlhf.report out
"""

import math
from html import escape
from pathlib import Path
from string import Template

from minirlhf import UserError, health
from minirlhf.data import parse
from minirlhf.files import write_atomically, write_json
from minirlhf.report.figures import dots, lines, points
from minirlhf.report.probes import measured, number
from minirlhf.report.summary import collect, duration

PAGE = Path(__file__).with_name("page.html")
DIAGONAL = (50, 100), (50, 100)  # of calibration, %
VERDICTS = ("look here", "cannot tell", "healthy")

# Sections are HTML, or "" while there is nothing to show


def table(head: list[str], rows: list[list[str]], style: str = "numbers") -> str:
    """Cells are HTML already."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{style}">{body}</table></div>'


def details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def sft_section(data: dict) -> str:
    metrics = data["sft"]
    curves = {}
    for label, name in (("training", "loss"), ("validation", "validation_loss")):
        if name in metrics:
            curves[label] = metrics["step"], metrics[name]
    if not curves:
        return ""
    return lines("Loss on demonstrations", "optimiser step", "nats per token", curves)


def reward_models_section(data: dict) -> str:
    models = data["reward_models"]
    if not models:
        return ""
    accuracy = {name: model["accuracy"] for name, model in models.items()}
    agreement = {result["stage"]: result.get("reward_accuracy") for result in data["policies"]}
    losses, calibration = {}, {}
    for name, model in models.items():
        losses[name] = model["metrics"]["step"], model["metrics"]["loss"]
        predicted = [100 * bucket["predicted"] for bucket in model["calibration"]]
        real = [100 * bucket["accuracy"] for bucket in model["calibration"]]
        calibration[name] = predicted, real
    last_step = max(steps[-1] for steps, _ in losses.values())
    coin = (0, last_step), (math.log(2), math.log(2))
    newest = {
        "before training: what the last model is worth on the new policy": "newest_before",
        "after it": "newest_after",
    }
    rows = [[when, *(number(m.get(key)) for m in models.values())] for when, key in newest.items()]
    return (
        dots(
            "Accuracy on held-out comparisons", "right, % (dashed: a coin)", {"": accuracy}, 50, 100
        )
        + dots("Agreement with gold, by whose answers", "as gold, %", {"": agreement}, 50, 100)
        + lines("Training loss", "optimiser step", "nats (dashed: a coin)", losses, coin)
        + lines("Calibration", "predicted to be right, %", "were right, %", calibration, DIAGONAL)
        + table(["accuracy on the newest rankings, held out", *models], rows)
    )


def ppo_section(data: dict) -> str:
    runs = data["ppo"]

    def panel(title, metric, unit, shade=()):
        series, begin = {}, 0
        for name, run in runs.items():
            ys = run["metrics"].get(metric, [])
            series[name] = range(begin, begin + len(ys)), ys
            begin += len(ys)
        return lines(title, "iteration, all rounds", unit, series, shade=shade)

    if not runs:
        return ""
    rows = []
    for row in health.HEALTH:
        values = [number(run["at_the_end"].get(row.metric)) for run in runs.values()]
        rows.append([row.what, *values, row.healthy])
    return (
        panel("Reward-model score", "raw_score", "mean score")
        + panel("KL to SFT", "kl", "nats per response", (0, 10))
        + panel("Response length", "length", "tokens")
        + panel("Entropy", "entropy", "nats per token")
        + table(["last tenth of a round", *runs, "healthy"], rows)
    )


def gold_section(data: dict) -> str:
    results = data["demonstrations"] + data["policies"]
    if not results:
        return ""
    names = {
        "words": "words per answer",
        "finished": "share of answers that end",
        "reward": "reward model's score",
        "distinct_open_ended": "share of answers to open requests that are distinct",
        "kl": "KL to SFT, nats: mean of log(policy/SFT)",
        "exact_kl": "the same by exact sums over all tokens",
        "win_rate_previous": "comparisons won against the stage before",
    }
    rows = []
    for key, what in names.items():
        values = [result.get(key) for result in results]
        cells = [value["mean"] if isinstance(value, dict) else value for value in values]
        rows.append([what, *map(number, cells)])
    gold = {result["stage"]: result.get("gold") for result in results}
    parts = {result["stage"]: result.get("parts", {}) for result in results}
    kinds = {result["stage"]: result.get("kinds", {}) for result in data["policies"]}
    return (
        '<div class="column">'
        + dots("Gold score", "mean", {"": gold})
        + dots("Parts of the gold score", "mean of each part", parts)
        + "</div>"
        + dots("Gold score by kind of request", "mean", kinds)
        + table(["besides", *(result["stage"] for result in results)], rows)
    )


def win_rates_section(data: dict) -> str:
    rates = {result["stage"]: result["win_rate"] for result in data["policies"][1:]}
    return dots("Comparisons won against SFT", "% (dashed: no difference)", {"": rates}, 50, 100)


def probes_section(data: dict) -> str:
    policies = [result for result in data["policies"] if "probes" in result]
    if not policies:
        return ""
    by_length, by_distance, calibration = {}, {}, {}
    for result in policies:
        probe = {}  # all that probes hold besides their verdicts
        for row in result["probes"]:
            probe |= row
        by_length[result["stage"]] = probe.get("by_length", {})
        curve = probe.get("by_distance", [])
        by_distance[result["stage"]] = [percent(c, c["distance"], c["mean"]) for c in curve]
        curve = probe.get("calibration", [])
        calibration[result["stage"]] = [
            percent(c, 100 * c["predicted"], c["accuracy"]) for c in curve
        ]
    others = [details(f"by the answers of {r['stage']}", probe_table(r)) for r in policies[:-1]]
    away, sure = "log policy / reference, nats", "claims to be right, %"
    return (
        frontier(policies)
        + dots("Accuracy by length", "right, %, where the better is ...", by_length, 50, 100)
        + points("Accuracy by distance from the reference", away, "right, %", by_distance)
        + points("Calibration against gold", sure, "is right, %", calibration, DIAGONAL)
        + probe_table(policies[-1])
        + "".join(others)
    )


def percent(cell: dict, x: float, accuracy: float | None) -> dict:
    """A point of a curve of accuracy."""
    if accuracy is None:
        return {"x": x, "y": None}
    return {"x": x, "y": 100 * accuracy, "dy": 100 * (cell["interval"] or 0)}


def frontier(policies: list[dict]) -> str:
    """Gold and reward against KL; dashed: what the best of n would give."""
    series = {}
    for name in ("gold", "reward"):
        series[name] = []
        for result in sorted(policies, key=lambda result: result["kl"]["mean"] or 0):
            if name in result:
                kl, score = result["kl"], result[name]
                point = {"x": kl["mean"], "dx": kl["interval"]}
                point |= {"y": score["mean"], "dy": score["interval"]}
                point["word"] = result["stage"] if name == "gold" or "gold" not in result else ""
                series[name].append(point)
    title, dashed = "Score against KL", ()
    if series["gold"]:
        best = policies[0].get("best_of_n", [])
        dashed = [row["kl_bound"] for row in best], [row["gold"]["mean"] for row in best]
        title += " (dashed: gold, best of n)"
    return points(title, "KL, nats", "mean score", series, dashed)


def probe_table(result: dict) -> str:
    """A row for each probe, the worrying ones first."""
    rows = []
    for row in sorted(result["probes"], key=lambda row: VERDICTS.index(row["verdict"])):
        tag = f'<b class="tag {row["verdict"]}">{row["verdict"]}</b> {escape(row["says"])}'
        rows.append([escape(row["probe"]), measured(row), row["healthy"], tag])
    return table(["probe", "measured", "healthy", "verdict"], rows, "probes")


def answers_section(data: dict) -> str:
    """Prompts with the first and the last policy's answers."""
    if not data["examples"]:
        return ""
    policies = data["policies"]
    first_and_last = policies[:1] + policies[1:][-1:]
    rows = []
    for example in data["examples"]:
        answers = [example["answers"][result["policy"]] for result in first_and_last]
        score = next((name for name in ("gold", "reward") if name in answers[0]), "")
        scores = [answer.get(score) for answer in answers]
        row = [show_prompt(example["prompt"])]
        for result, answer in zip(first_and_last, answers):
            is_better = score and answer[score] > min(scores)
            row.append(show_answer(result["stage"], answer, score, is_better))
        rows.append(row)
    head = ["prompt", *(result["stage"] for result in first_and_last)]
    shown, rest = (table(head, rows[i::2], "answers") for i in (0, 1))
    return shown + details("as many again", rest)


def show_prompt(source: str | list) -> str:
    turns = [("text", source)]
    if isinstance(source, list) or source.strip():
        turns = parse(source)
    return "".join(f'<p class="{role}">{escape(text.strip())}</p>' for role, text in turns)


def show_answer(stage: str, answer: dict, score: str, is_better: bool) -> str:
    style = "response better" if is_better else "response"
    head = f"<b>{escape(stage)}, </b>{score} {number(answer.get(score))}"
    text = escape(answer["response"].strip()) or "(nothing)"
    return f'<div class="{style}"><p class="score">{head}</p><p>{text}</p></div>'


def time_section(data: dict) -> str:
    rows = []
    for name, stage in data["stages"].items():
        command = f"<code>{escape(stage.get('command', ''))}</code>"
        rows.append([escape(name), duration(stage.get("seconds", 0)), command])
    if not rows:
        return ""
    settings = [[escape(name), escape(str(value))] for name, value in data["settings"].items()]
    return table(["stage", "time", "command"], rows, "times") + details(
        "the loop's settings", table(["setting", "value"], settings)
    )


def warnings_section(data: dict) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in data["warnings"])
    return f"<ul>{items}</ul>" if items else "<p>None: all that is checked is healthy.</p>"


SECTIONS = {  # by their names in page.html
    "sft": sft_section,
    "reward_models": reward_models_section,
    "ppo": ppo_section,
    "gold": gold_section,
    "win_rates": win_rates_section,
    "probes": probes_section,
    "answers": answers_section,
    "time": time_section,
    "warnings": warnings_section,
}


def write(out: str | Path = "out") -> Path:
    """Write report.html and report.json of a folder; returns the page's path."""
    folder = Path(out)
    if not folder.is_dir():
        raise UserError(f"{out} is no folder: name the one that run_rlhf.py --out made")
    data = collect(folder)
    sections = {}
    for name, section in SECTIONS.items():
        sections[name] = section(data) or "<p>Not there yet.</p>"
    key_numbers = ""
    for name, value in data["key_numbers"].items():
        key_numbers += f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        headline=escape(data["headline"]), key_numbers=key_numbers, **sections
    )
    write_json(folder / "report.json", data)
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"
