"""A loop's folder -> report.html, one file that opens anywhere, and report.json with its numbers.

page.html has the texts and the style, and hides sections that have nothing to show yet.

    python -m minirlhf.report out
"""

import time
from html import escape
from pathlib import Path
from string import Template

from minirlhf import UserError, health
from minirlhf.console import waiting
from minirlhf.data import parse
from minirlhf.files import write_atomically, write_json
from minirlhf.report.figures import dots, histogram, lines, points
from minirlhf.report.probes import measured, number
from minirlhf.report.summary import collect, duration

PAGE = Path(__file__).with_name("page.html")
REFRESH = '<meta http-equiv="refresh" content="20">'  # seconds
SO_FAR = "So far, at {}. This page reloads itself; if the loop was stopped, this goes on with it:"
INTERRUPTED = "The loop was interrupted at {}. This goes on with it:"
DIAGONAL = (50, 100), (50, 100)  # of calibration, %
VERDICTS = {"look here": 0, "cannot tell": 1, "healthy": 2}
SCORES = ("gold", "reward", "score")  # of an answer: the first that is there is shown
COLUMNS = 4  # of a table, so that none is cut off on a phone


class Html(str):
    """Text with tags. All other text is escaped where it enters the page."""


def html(content) -> Html:
    return content if isinstance(content, Html) else Html(escape(str(content)))


def table(head: list[str], rows: list[list], style: str = "numbers") -> Html:
    lines = ["".join(f"<th>{html(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{html(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<table class="{style}">{body}</table>')


def details(summary: str, content: Html) -> Html:
    return Html(f"<details><summary>{html(summary)}</summary>{content}</details>")


def tag(style: str, content: str) -> Html:
    return Html(f'<b class="tag {html(style)}">{html(content)}</b>')


def few(items: list, most: int = COLUMNS) -> list:
    """The first, the last, and others evenly between them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# ---- sections: HTML, or "" while there is nothing to show


def warnings_section(data: dict) -> str:
    items = "".join(f"<li>{html(warning)}</li>" for warning in data["warnings"])
    return f"<ul>{items}</ul>" if items else "<p>None: all that is checked is healthy.</p>"


def answers_section(data: dict) -> str:
    """The same requests before and after: in the evaluation or, until there is one, in training."""
    if not data["examples"]:
        return answers_table(few(data["moments"]))
    moments = []
    for result in few(data["policies"], 2):
        answers = []
        for example in data["examples"]:
            answer = example["answers"][result["policy"]]
            answers.append({"prompt": example["prompt"], **answer})
        moments.append({"when": result["stage"], "answers": answers})
    rest = answers_table(moments, begin=4)
    return answers_table(moments, end=4) + (details("more of them", rest) if rest else "")


def answers_table(moments: list[dict], begin: int = 0, end: int | None = None) -> Html:
    """A row for each request, a column for each moment; the best answer is tinted."""
    columns = [moment["answers"][begin:end] for moment in moments]
    rows = []
    for answers in zip(*columns):
        score = next((name for name in SCORES if name in answers[0]), "")
        scores = [answer[score] for answer in answers if answer.get(score) is not None]
        row = [show_prompt(answers[0]["prompt"])]
        for moment, answer in zip(moments, answers):
            is_best = scores and min(scores) < max(scores) == answer.get(score)
            row.append(show_answer(moment["when"], answer, score, is_best))
        rows.append(row)
    head = ["request", *(moment["when"] for moment in moments)]
    return table(head, rows, "answers") if rows else Html()


def show_prompt(source: str | list) -> Html:
    turns = [("text", source)]
    if isinstance(source, list) or source.strip():
        turns = parse(source)
    return Html(
        "".join(f'<p class="{html(role)}">{html(text.strip())}</p>' for role, text in turns)
    )


def show_answer(when: str, answer: dict, score: str, is_best: bool) -> Html:
    style = "response best" if is_best else "response"
    head = f"<b>{html(when)}, </b>{score} {number(answer.get(score))}"
    text = html(answer["response"].strip() or "(nothing)")
    return Html(f'<div class="{style}"><p class="score">{head}</p><p>{text}</p></div>')


def token_strips(row: dict) -> Html:
    """One response twice: its tokens tinted by KL, and by advantage."""
    strips = []
    for title, name in (("KL, nats", "token_kl"), ("advantage", "token_advantages")):
        values = [value or 0.0 for value in row[name]]  # None: it had no score
        largest = max(map(abs, values), default=0) or 1
        spans = []
        for token, value in zip(row["tokens"], values):
            style = "above" if value > 0 else "below"
            strength = f"--strength: {abs(value) / largest:.2f}"
            text = html(token.replace("\n", "⏎"))
            tip = f'title="{number(value)}"'
            spans.append(f'<span class="{style}" style="{strength}" {tip}>{text}</span>')
        span = f"from {number(min(values, default=0))} to {number(max(values, default=0))}"
        strips.append(f"<p>{title}: {span}, sum {number(sum(values))}</p><p>{''.join(spans)}</p>")
    head = f"One response of the last round, token by token; score {number(row['score'])}"
    body = f"{show_prompt(row['prompt'])}{''.join(strips)}"
    return Html(f'<figure class="tokens"><figcaption>{head}</figcaption>{body}</figure>')


def better_section(data: dict) -> str:
    policies = data["policies"]
    results = data["demonstrations"] + policies
    if not results:
        return ""
    gold = {result["stage"]: result.get("gold") for result in results}
    rates = {result["stage"]: result["win_rate"] for result in policies[1:]}
    rewards, parts, kinds = {}, {}, {}
    for result in few(policies):
        parts[result["stage"]] = result.get("parts", {})
        kinds[result["stage"]] = result.get("kinds", {})
    for result in few(policies, 2):
        percentiles = result.get("reward_percentiles", [])
        rewards[result["stage"]] = [value for value in percentiles if value is not None]
    names = {
        "words": "words per answer",
        "finished": "share of answers that end",
        "reward": "reward model's score",
        "distinct_open_ended": "share of answers to open requests that are distinct",
        "kl": "KL to the first, nats",
        "win_rate_previous": "comparisons won against the one before",
    }
    shown = few(policies)
    rows = []
    for key, what in names.items():
        values = [result.get(key) for result in shown]
        cells = [value["mean"] if isinstance(value, dict) else value for value in values]
        rows.append([what, *map(number, cells)])
    return (
        dots("Comparisons won (dashed: no difference)", "%", {"": rates}, 50, 100)
        + dots("Gold score", "mean", {"": gold})
        + histogram("Reward of the answers, before and after", "reward", rewards)
        + dots("Gold score by kind of request", "mean", kinds)
        + frontier(policies)
        + dots("Parts of the gold score", "mean", parts)
        + table(["further numbers", *(result["stage"] for result in shown)], rows)
    )


def frontier(policies: list[dict]) -> str:
    """Gold and reward against KL; dashed: what the best of n would give."""
    known = [result for result in policies if result["kl"]["mean"] is not None]
    known.sort(key=lambda result: result["kl"]["mean"])
    series = {}
    for name in ("gold", "reward"):
        has_name = [result for result in known if name in result]
        series[name] = [(result["stage"], result["kl"], result[name]) for result in has_name]
    title, dashed = "Score against KL", ()
    if series["gold"]:
        series["reward"] = [("", *cells) for _, *cells in series["reward"]]  # named once
        best = policies[0].get("best_of_n", [])
        dashed = [row["kl_bound"] for row in best], [row["gold"]["mean"] for row in best]
        title += " (dashed: gold, best of n)"
    return points(title, "KL, nats", "mean score", series, dashed)


def sft_section(data: dict) -> str:
    metrics = data["sft"]
    curves = {}
    for label, name in (("training", "loss"), ("validation", "validation_loss")):
        if name in metrics:
            curves[label] = metrics["step"], metrics[name]
    return lines("Loss on demonstrations", "step", "nats per token", curves) if curves else ""


def reward_models_section(data: dict) -> str:
    models = data["reward_models"]
    if not models:
        return ""
    accuracy = {name: model["accuracy"] for name, model in models.items()}
    agreement = {result["stage"]: result.get("reward_accuracy") for result in data["policies"]}
    newest, calibration = {"before": {}, "after": {}}, {}
    for name, model in models.items():
        for when, cells in newest.items():
            if model[f"newest_{when}"] is not None:  # else all rankings are new
                cells[name] = {"mean": model[f"newest_{when}"], "interval": None}
    for name, model in few(list(models.items())):
        predicted = [100 * bucket["predicted"] for bucket in model["calibration"]]
        real = [100 * bucket["accuracy"] for bucket in model["calibration"]]
        calibration[name] = predicted, real
    return (
        dots("Accuracy on held-out rankings (dashed: a coin)", "%", {"": accuracy}, 50, 100)
        + dots("Agreement with gold, by whose answers", "%", {"": agreement}, 50, 100)
        + dots("Accuracy on the newest, before and after training on them", "%", newest, 50, 100)
        + lines("Calibration", "predicted to be right, %", "were right, %", calibration, DIAGONAL)
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

    def cell(metric: str, run: dict) -> str:
        value = run["at_the_end"].get(metric)
        return tag("look", number(value)) if health.warnings({metric: value}) else number(value)

    if not runs:
        return ""
    shown = few(list(runs))
    rows = []
    for row in health.HEALTH:
        rows.append([row.what, *(cell(row.metric, runs[name]) for name in shown), row.healthy])
    return (
        panel("Reward-model score", "raw_score", "mean score")
        + panel("KL to the round's start", "kl", "nats per response", (0, 10))
        + panel("Response length", "length", "tokens")
        + panel("Entropy", "entropy", "nats per token")
        + (answers_table(few(data["moments"])) if data["examples"] else "")  # else it is above
        + (token_strips(data["tokens"]) if data["tokens"] else "")
        + table(["last tenth of a round", *shown, "healthy"], rows)
    )


def probes_section(data: dict) -> str:
    """The last policy's probes, the worrying ones first."""
    probes = data["policies"][-1].get("probes", []) if data["policies"] else []
    rows = []
    for row in sorted(probes, key=lambda row: VERDICTS.get(row["verdict"], 0)):
        verdict = Html(f"{tag(row['verdict'], row['verdict'])} {html(row['says'])}")
        rows.append([row["probe"], measured(row), row["healthy"], verdict])
    return table(["probe", "measured", "healthy", "verdict"], rows, "probes") if rows else ""


def stages_section(data: dict) -> str:
    rows = []
    for name, stage in data["stages"].items():
        command = Html(f"<code>{html(stage.get('command', ''))}</code>")
        rows.append([name, duration(stage.get("seconds", 0)), stage.get("date", ""), command])
    if not rows:
        return ""
    settings = table(["setting", "value"], list(data["settings"].items()))
    head = ["stage", "time", "began", "command"]
    return table(head, rows, "stages") + details("the loop's settings", settings)


SECTIONS = {  # by their names in page.html
    "warnings": warnings_section,
    "answers": answers_section,
    "better": better_section,
    "sft": sft_section,
    "reward_models": reward_models_section,
    "ppo": ppo_section,
    "probes": probes_section,
    "stages": stages_section,
}


def state(running: bool, go_on: str) -> str:
    """Whether the loop still runs is unknown to a page that is opened later: it says when it was
    written."""
    if not go_on:
        return ""
    words = (SO_FAR if running else INTERRUPTED).format(time.strftime("%Y-%m-%d %H:%M"))
    return f'<p class="so-far">{words} <code>{html(go_on)}</code></p>'


def fill(data: dict, running: bool, go_on: str) -> str:
    """The page's HTML."""
    key_numbers = ""
    for row in data["key_numbers"]:
        name, value, note = map(html, row)
        key_numbers += f"<div><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></div>"
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        refresh=REFRESH if running else "",
        so_far=state(running, go_on),
        made=html(" · ".join(data["made"])),
        headline=html(data["headline"]),
        key_numbers=key_numbers,
        **{name: section(data) for name, section in SECTIONS.items()},
    )


@waiting("writing the report")
def write(out: str | Path = "out", running: bool = False, go_on: str = "") -> Path:
    """Write report.html and report.json of a folder; returns the page's path.

    running: the page reloads itself, until it is written without this
    go_on: the command that goes on with a loop that is not finished
    """
    folder = Path(out)
    if not folder.is_dir():
        raise UserError(f"{out} is no folder: name the one that run_rlhf.py --out made")
    try:
        data = collect(folder)
        page = fill(data, running, go_on)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: evaluation.json or another file there holds what no script writes "
            f"({type(error).__name__}: {error!s:.99}): run that stage again, or restore a copy"
        ) from error
    write_json(folder / "report.json", data)
    write_atomically(folder / "report.html", page.encode(errors="replace"))
    return folder / "report.html"
