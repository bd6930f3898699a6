"""The loop's folder -> report.html, one file that opens anywhere, and report.json with every number that it shows.

Figures are inline SVG that takes the page's colours, light or dark. Missing stages are left out with a word.

    python -m minirlhf.report out
"""
import io
import json
import math
import re
import sys
from html import escape
from pathlib import Path
from string import Template

import matplotlib
from matplotlib.figure import Figure

from minirlhf import UserError
from minirlhf.json_text import to_json
from minirlhf.losses import FIRST_RATIO_OFF
from minirlhf.model import write_atomically
from minirlhf.probes import measured, number, share
from minirlhf.run import read_jsonl

INK, LINE = "#010203", "#040506"          # in figures: stand for the page's text colour and for its thin lines
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 8.5, "text.color": INK, "axes.labelcolor": INK,
         "axes.edgecolor": LINE, "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": LINE,
         "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
         "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "axes.titlesize": 9.5,
         "axes.titlelocation": "left", "axes.titleweight": "bold"}
DASHED = {"color": INK, "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 0}
BLUE, GREY, *ROUND_COLOURS = ("#5b82c0", "#8b93a1", "#1f9e89", "#e07b39", "#b5539c", "#8a6fd1", "#b3902f", "#4f9fc8")
HEALTH = (      # PPO, mean of a round's last tenth: metric, what it is, what is healthy, limits beyond which we warn
    ("first_ratio_off", "root mean square of the log ratio before an update", "0", 0,
     max(FIRST_RATIO_OFF.values())),
    ("kl", "KL to the SFT model, nats per response", "0 to 10", -1, 20),
    ("approx_kl", "approximate KL of one update, nats per token", "0.001 to 0.02", -1, 0.05),
    ("clip_fraction", "share of tokens whose ratio is clipped", "0.005 to 0.2", 0, 0.3),
    ("entropy", "entropy, nats per token", "falling slowly", 0.05, math.inf),
    ("explained_variance", "explained variance of the value model", "above 0", 0, 1),
    ("finished", "share of responses that end by themselves", "near 1", 0.8, 1),
    ("distinct", "share of a batch's responses that are distinct", "steady", 0.5, 1),
    ("length_correlation", "correlation of score and length", "below 0.6", -1, 0.6))


def colour(stage: str) -> str:
    """One colour per stage, everywhere."""
    found = re.match(r"round ?(\d+)", stage)
    names = {"sft": BLUE, "SFT": BLUE, "validation": BLUE, "reward": BLUE, "gold": ROUND_COLOURS[4]}
    return ROUND_COLOURS[int(found[1]) % 6 - 1] if found else names.get(stage, GREY)

def read_json(path: Path) -> dict:
    """NaN becomes None, as in report.json: browsers' JSON has no word for it."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None) if path.exists() else {}

def columns(folder: Path) -> dict[str, list]:
    """metrics.jsonl -> {name: a value per line}, None where a line has none."""
    rows = read_jsonl(folder / "metrics.jsonl")
    return {k: [x if isinstance(x, int | float) and math.isfinite(x) else None for x in (row.get(k) for row in rows)]
            for k in dict.fromkeys(k for row in rows for k in row)}

def collect(out: Path) -> dict:
    """Every number of the page."""
    data = {"settings": {}, "stages": {}, "reward_models": {}, "ppo": {}} | read_json(out / "loop.json")
    data |= {"sft": columns(out / "sft"), "results": [], "examples": []} | read_json(out / "evaluation.json")
    for folder in sorted(out.glob("round*"), key=lambda p: (len(p.name), p.name)):
        name, rm = folder.name.replace("round", "round "), read_json(folder / "rm" / "run.json")
        if metrics := columns(folder / "rm"):
            accuracy = {"mean": rm.get("validation_accuracy"), "interval": rm.get("validation_interval")}
            calibration = rm.get("calibration", [])
            data["reward_models"][name] = {"accuracy": accuracy, "calibration": calibration, "metrics": metrics} | {
                k: rm.get(k) for k in ("newest_before", "newest_after")}
        if metrics := columns(folder / "ppo"):
            tails = {k: [x for x in v[-max(1, len(v) // 10):] if x is not None] for k, v in metrics.items()}
            data["ppo"][name] = {"at_the_end": {k: sum(v) / len(v) for k, v in tails.items() if v}, "metrics": metrics}
    for result in data["results"]:
        name, found = Path(result["policy"]).name, re.search(r"round(\d+)/ppo$", Path(result["policy"]).as_posix())
        result["stage"] = f"round {found[1]}" if found else "SFT" if name == "sft" else name
    stages = [r["stage"] for r in data["results"]]
    for r in data["results"]:                                                           # ppo of one run and ppo of another
        r["stage"] = r["stage"] if stages.count(r["stage"]) == 1 else "/".join(Path(r["policy"]).parts[-3:])
    data["policies"] = [r for r in data["results"] if "win_rate" in r]                  # the baseline first
    data["demonstrations"] = [r for r in data.pop("results") if "win_rate" not in r]
    data["seconds"] = sum(s.get("seconds", 0) for s in data["stages"].values())
    data["warnings"] = warnings(data)
    return data | headline(data)

def warnings(data: dict) -> list[str]:
    """What is unhealthy, in plain words."""
    def like_a_coin(cell):
        return cell["mean"] is not None and cell["mean"] - (cell["interval"] or 0) <= 0.5
    said, losses = [], [x for x in data["sft"].get("validation_loss", []) if x is not None]
    if data["settings"].get("quick"):
        said.append("This was a quick run, to see that everything works: its numbers mean nothing.")
    if losses and losses[-1] > 1.03 * min(losses):
        said.append(f"SFT: the validation loss rose from {min(losses):.2f} to {losses[-1]:.2f}: too many steps.")
    said += [f"Reward model, {name}: accuracy {share(rm['accuracy'])}, not seen to beat a coin."
             for name, rm in data["reward_models"].items() if like_a_coin(rm["accuracy"])]
    said += [f"PPO, {name}: {what}: {number(ppo['at_the_end'][metric])} at the end; healthy is {healthy}."
             for name, ppo in data["ppo"].items() for metric, what, healthy, low, high in HEALTH
             if not low <= ppo["at_the_end"].get(metric, low) <= high]
    for r in data["policies"]:
        sft, kl, distinct, mine = data["policies"][0], r["kl"]["mean"] or 0, "distinct_open_ended", []
        if r is not sft and like_a_coin(r["win_rate"]):
            mine.append(f"wins {share(r['win_rate'])} against {sft['stage']}, not more than chance.")
        for kind, was in sft.get("kinds", {}).items():
            now = r["kinds"].get(kind, was)
            if was["mean"] - now["mean"] > max(0.1, math.hypot(was["interval"] or 0, now["interval"] or 0)):
                mine.append(f"gold for “{kind}” fell from {was['mean']:.2f} to {now['mean']:.2f}.")
        if kl > 20:
            mine.append(f"{kl:.0f} nats of KL, far from {sft['stage']}; raise --kl_coef.")
        if r[distinct] < 0.6 * sft[distinct]:
            mine.append(f"{r[distinct]:.0%} of answers to open requests are distinct, {sft[distinct]:.0%} before.")
        rose = {k: r[k]["mean"] > sft[k]["mean"] for k in ("reward", "gold") if k in r}
        if rose == {"reward": True, "gold": False}:
            mine.append("the reward rose and gold fell: the policy exploits errors of the reward model.")
        if "reward_accuracy" in r and like_a_coin(r["reward_accuracy"]):
            mine.append(f"the reward model agrees with gold in {share(r['reward_accuracy'])}, as a coin would.")
        mine += [f"{p['says']}." for p in r.get("probes", ()) if p["verdict"] == "look here" and r is data["policies"][-1]]
        said += [f"Evaluation, {r['stage']}: {x}" for x in mine]
    return said

def headline(data: dict) -> dict:
    """What happened in one sentence, and the key numbers."""
    models, key = data["policies"], {}
    done = [name for name, s in data["stages"].items() if s.get("finished")]
    text = f"The loop is under way. Finished so far: {', '.join(done) or 'nothing'}."
    if len(models) > 1:
        first, last = models[0], models[-1]
        text = (f"After {len(models) - 1} round{'s' * (len(models) > 2)} the policy's answers beat the {first['stage']}"
                f" model's in {share(last['win_rate'])} of comparisons on prompts it never saw, at "
                f"{number(last['kl']['mean'])} nats of KL; it took {duration(data['seconds'])}.")
        score = "gold" if "gold" in last else "reward"
        key = {"win rate": share(last["win_rate"]), "KL, nats": number(last["kl"]["mean"])}
        if score in last:
            key[f"{score} score"] = f"{number(first[score]['mean'])} → {number(last[score]['mean'])}"
    for rm in data["reward_models"].values():
        key["reward model's accuracy"] = share(rm["accuracy"])
    if models and "reward_accuracy" in models[0]:
        key["reward model's accuracy"] = share(models[0]["reward_accuracy"])                # without the labels' noise
    key |= {"time": duration(data["seconds"]), "warnings": str(len(data["warnings"]))}
    return {"headline": text, "key_numbers": key}

def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes > 59 else f"{minutes} min {s} s" if minutes else f"{s} s"

def figure(title: str, x: str, y: str, draw, height: float = 2.5) -> str:
    """draw(ax) -> an inline SVG in the page's colours and font."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):         # the salt keeps ids apart on the page
        fig, file = Figure(figsize=(4.7, height), layout="constrained"), io.StringIO()
        ax = fig.add_subplot(title=title, xlabel=x, ylabel=y)
        draw(ax)
        if len(ax.get_legend_handles_labels()[1]) > 1:
            fig.legend(loc="outside lower center", ncols=4, handlelength=1.2, columnspacing=1.2)
        fig.savefig(file, format="svg", transparent=True)
    box = f'<svg viewBox="0 0 338.4 {height * 72:.1f}" role="img" aria-label="{escape(title)}">'
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue().split("<svg", 1)[1].split(">", 1)[1], flags=re.S)
    svg = re.sub(r' id="\w+_\d+"', "", svg.replace("xlink:href", "href"))
    return f"<figure>{box}{svg.replace(INK, 'currentColor').replace(LINE, 'var(--line)')}</figure>"

def lines(title: str, x: str, y: str, series: dict, dashed: tuple = (), shade: tuple = ()) -> str:
    """{label: (xs, ys)} -> each line's running mean over a fifteenth of it, a dashed line (xs, ys), a shaded range."""
    def draw(ax):
        for label, (xs, ys) in series.items():
            points = [(a, b) for a, b in zip(xs, ys) if b is not None]
            half, every = len(points) // 30, max(1, len(points) // 400)
            windows = [(points[i][0], points[max(0, i - half): i + half + 1]) for i in range(0, len(points), every)]
            ax.plot([a for a, _ in windows], [sum(b for _, b in w) / len(w) for _, w in windows], color=colour(label),
                    label=label, marker="o" if len(points) < 12 else "", markersize=4)
        if dashed:
            ax.plot(*dashed, **DASHED)
        if shade:
            low, high = ax.get_ylim()                          # before the shade, which need not be seen whole
            ax.axhspan(*shade, color=ROUND_COLOURS[0], alpha=0.1, linewidth=0)
            ax.set_ylim(min(low, shade[0]), max(high, shade[1] / 3))
    return figure(title, x, y, draw)

def curves(title: str, x: str, y: str, series: dict[str, list[tuple]], dashed: tuple = ()) -> str:
    """{label: [(x, y, half of x's interval, half of y's, a word beside it)]} -> points with intervals, joined; a dashed line."""
    def draw(ax):
        for label, points in series.items():
            xs, ys, dx, dy, words = zip(*points)
            ax.errorbar(xs, ys, [e or 0 for e in dy], [e or 0 for e in dx], fmt="o-", markersize=4, linewidth=1, elinewidth=1.4,
                        color=colour(label), label=label)
            for at in zip(words, xs, ys):
                ax.annotate(at[0], at[1:], (5, -10), textcoords="offset points")
        if dashed:
            ax.plot(*dashed, **DASHED)
    series = {k: [p for p in points if None not in p[:2]] for k, points in series.items()}
    series = {k: points for k, points in series.items() if points}
    return figure(title, x, y, draw) if series else ""

def dots(title: str, x: str, series: dict[str, dict], mark: float = 0, factor: float = 1) -> str:
    """{stage: {row: {"mean", "interval"}}} -> a dot with its 95 % interval for each; `mark` is a dashed line."""
    series = {s: {k: c for k, c in cells.items() if c and c["mean"] is not None} for s, cells in series.items()}
    rows = list(dict.fromkeys(k for cells in series.values() for k in cells))
    alone = all(list(cells) in ([s], []) for s, cells in series.items())            # a row per stage

    def draw(ax):
        for j, (stage, cells) in enumerate(series.items()):
            lift = 0 if alone else (j - (len(series) - 1) / 2) * 0.7 / len(series)
            at, mean = [rows.index(k) + lift for k in cells], [factor * c["mean"] for c in cells.values()]
            ax.errorbar(mean, at, xerr=[factor * (c["interval"] or 0) for c in cells.values()], fmt="o", markersize=4,
                        linewidth=1.4, color=colour(stage), label=None if alone else stage)
            for a, m in zip(at, mean) if alone else ():
                ax.annotate(f"{m:.{0 if factor > 1 else 2}f}", (m, a), (0, 4), ha="center", textcoords="offset points")
        ax.axvline(mark, **DASHED)
        ax.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.4, -0.7))
        ax.grid(axis="y", visible=False)
    height = 1.1 + len(rows) * (0.34 if alone else 0.12 + 0.075 * len(series))
    return figure(title, x, "", draw, height) if rows else ""

def table(head: list[str], rows: list[list[str]], kind: str = "numbers") -> str:
    """Cells are HTML already."""
    lines = ["".join(f"<th>{escape(h)}</th>" for h in head), *("".join(f"<td>{c}</td>" for c in row) for row in rows)]
    return f'<div class="wide"><table class="{kind}">{"".join(f"<tr>{x}</tr>" for x in lines)}</table></div>'

def sft_section(data: dict) -> str:
    curves = {name: (data["sft"]["step"], data["sft"][k]) for name, k in
              (("training", "loss"), ("validation", "validation_loss")) if k in data["sft"]}
    return lines("Loss on demonstrations", "optimiser step", "nats per token", curves) if curves else ""

def rm_section(data: dict) -> str:
    models = data["reward_models"]
    if not models:
        return ""
    accuracy = {name: {name: m["accuracy"]} for name, m in models.items()}
    agreement = {r["stage"]: {r["stage"]: r.get("reward_accuracy")} for r in data["policies"]}
    losses = {name: (m["metrics"]["step"], m["metrics"]["loss"]) for name, m in models.items()}
    coin = (0, max(steps[-1] for steps, _ in losses.values())), (math.log(2), math.log(2))
    calibration = {name: [[100 * bucket[k] for bucket in m["calibration"]] for k in ("predicted", "accuracy")]
                   for name, m in models.items()}
    return (dots("Accuracy on held-out comparisons", "right, % (dashed: a coin)", accuracy, 50, 100)
            + dots("Agreement with gold, by whose answers", "ordered as gold does, %", agreement, 50, 100)
            + lines("Training loss", "optimiser step", "nats (dashed: a coin)", losses, coin)
            + lines("Calibration", "predicted to be right, %", "were right, %", calibration, ((50, 100), (50, 100)))
            + table(["accuracy on the newest rankings, held out", *models],
                    [[when, *(number(m.get(k)) for m in models.values())] for when, k in (
                        ("before this round's training: what the last round's model is worth on the new policy", "newest_before"),
                        ("after it", "newest_after"))]))

def ppo_section(data: dict) -> str:
    def panel(title, metric, unit, shade=()):
        series, begin = {}, 0
        for name, ppo in data["ppo"].items():
            y = ppo["metrics"].get(metric, [])
            series[name], begin = (range(begin, begin + len(y)), y), begin + len(y)
        return lines(title, "iteration, all rounds", unit, series, (), shade)
    rows = [[what, *(number(p["at_the_end"].get(metric)) for p in data["ppo"].values()), healthy]
            for metric, what, healthy, *_ in HEALTH]
    return (panel("Reward-model score", "score", "mean score") + panel("KL to SFT", "kl", "nats per response", (0, 10))
            + panel("Response length", "length", "tokens") + panel("Entropy", "entropy", "nats per token")
            + table(["last tenth of a round", *data["ppo"], "healthy"], rows)) if data["ppo"] else ""

def gold_section(data: dict) -> str:
    results = data["demonstrations"] + data["policies"]
    names = {"words": "words per answer", "finished": "share of answers that end", "reward": "reward model's score",
             "distinct_open_ended": "share of answers to open requests that are distinct", "kl": "KL to SFT, nats",
             "win_rate_previous": "comparisons won against the stage before"}
    rows = [[what, *(number(r[k]["mean"] if isinstance(r.get(k), dict) else r.get(k)) for r in results)]
            for k, what in names.items()]
    return ('<div class="grid">' + dots("Gold score", "mean", {r["stage"]: {r["stage"]: r.get("gold")} for r in results})
            + dots("Parts of the gold score", "mean of each part", {r["stage"]: r.get("parts", {}) for r in results}) + "</div>"
            + dots("Gold score by kind of request", "mean", {r["stage"]: r.get("kinds", {}) for r in data["policies"]})
            + table(["besides", *(r["stage"] for r in results)], rows)) if results else ""

def answers_section(data: dict) -> str:
    rows, ends = [], data["policies"][::max(1, len(data["policies"]) - 1)]             # the first and the last
    for example in data["examples"]:
        turns = ["Human", *re.split(r"\n\n(Human|Assistant):", example["prompt"])]
        rows.append(["".join(f'<p class="{who.lower()}">{escape(text.strip())}</p>'
                             for who, text in zip(turns[::2], turns[1::2]) if text.strip())])
        answers = [example["answers"][r["policy"]] for r in ends]
        for r, mine in zip(ends, answers):
            score = next((k for k in ("gold", "reward") if k in mine), "")            # none where a judge compared
            better = " better" * bool(score and mine[score] > min(a[score] for a in answers))
            rows[-1].append(f'<div class="said{better}"><p class="gold"><b>{escape(r["stage"])}, </b>{score} '
                            f'{number(mine.get(score))}</p><p>{escape(mine["response"].strip()) or "(nothing)"}</p></div>')
    shown, rest = (table(["prompt", *(r["stage"] for r in ends)], rows[i::2], "answers") for i in (0, 1))
    return f"{shown}<details><summary>as many again</summary>{rest}</details>" if rows else ""

def time_section(data: dict) -> str:
    def draw(ax):
        for i, (name, stage) in enumerate(stages.items()):
            seconds = stage.get("seconds", 0)
            ax.barh(i, seconds, 0.6, color=colour(name.split("/")[0]))
            ax.annotate(duration(seconds), (seconds, i), (4, 0), textcoords="offset points", va="center")
        ax.set(yticks=range(len(stages)), yticklabels=stages, ylim=(len(stages) - 0.4, -0.6), xmargin=0.25)
        ax.grid(axis="y", visible=False)
    stages = data["stages"]
    commands = escape("\n".join(s.get("command", "") for s in stages.values()))
    settings = table(["setting", "value"], [[k, escape(str(v))] for k, v in data["settings"].items()])
    return (figure("Time per stage", "seconds", "", draw, 0.8 + 0.22 * len(stages)) + f'<pre>{commands}</pre>'
            f"<details><summary>the loop's settings</summary>{settings}</details>") if stages else ""

def wins_section(data: dict) -> str:
    rates = {r["stage"]: {r["stage"]: r["win_rate"]} for r in data["policies"][1:]}
    return dots("Comparisons won against SFT", "% (dashed: no difference)", rates, 50, 100)

def probes_section(data: dict) -> str:
    policies, verdicts = [r for r in data["policies"] if "probes" in r], ("look here", "cannot tell", "healthy")

    def of(r, key):
        return next((p[key] for p in r["probes"] if key in p), [])
    def points(cells, x, y, factor=1):
        return [(factor * c[x], 100 * c[y], 0, 100 * (c["interval"] or 0), "") for c in cells if c[y] is not None]
    def rows(r):
        tag = '<b class="tag {}">{}</b> {}'
        return table(["probe", "measured", "healthy", "verdict"], [
            [escape(p["probe"]), measured(p), p["healthy"], tag.format(p["verdict"][:4], p["verdict"], escape(p["says"]))]
            for p in sorted(r["probes"], key=lambda p: verdicts.index(p["verdict"]))], "numbers probes")
    if not policies:
        return ""
    best, by_kl = policies[0].get("best_of_n", []), sorted(policies, key=lambda r: r["kl"]["mean"] or 0)
    names = [k for k in ("gold", "reward") if k in policies[0]]
    frontier = {k: [(r["kl"]["mean"], r[k]["mean"], r["kl"]["interval"], r[k]["interval"], r["stage"] * (k == names[0]))
                    for r in by_kl] for k in names}
    home = [{"distance": 0} | r["reward_accuracy"] for r in policies[:1] if r["kl"]["mean"] == 0 and "reward_accuracy" in r]
    away = {r["stage"]: points(of(r, "by_distance") or home, "distance", "mean") for r in policies}
    sure = {r["stage"]: points(of(r, "calibration"), "predicted", "accuracy", 100) for r in policies}
    others = "".join(f"<details><summary>by the answers of {escape(r['stage'])}</summary>{rows(r)}</details>"
                     for r in policies[:-1])
    return (curves("Score against KL" + " (dashed: gold, best of n)" * ("gold" in names), "KL, nats", "mean score", frontier,
                   ([b["kl_bound"] for b in best], [b["gold"]["mean"] for b in best]) if "gold" in names else ())
            + dots("Accuracy by length", "right, %, where the better answer is ...", {
                r["stage"]: of(r, "by_length") or {} for r in policies}, 50, 100)
            + curves("Accuracy by distance from the reference", "log policy / reference, nats", "right, %", away)
            + curves("Calibration against gold", "claims to be right, %", "is right, %", sure, ((50, 100), (50, 100)))
            + rows(policies[-1]) + others)

def warnings_section(data: dict) -> str:
    items = "".join(f"<li>{escape(w)}</li>" for w in data["warnings"])
    return f"<ul>{items}</ul>" if items else "<p>None: all that is checked lies in its healthy range.</p>"


SECTIONS = (
    ("SFT: learning from demonstrations", sft_section, """A small model learns to answer as the demonstrations do.
    Healthy: both losses fall and flatten; a validation loss that turns upwards means learning by heart."""),
    ("Reward model: learning what people prefer", rm_section, """From rankings a second model learns to score answers.
    Healthy: accuracy well above 50 % (62 to 70 % on human data), calibration along the diagonal: of what it is 80 %
    sure of, 80 % come out right. Gold is a hidden judge, which the reward model never sees: the toy world's, or on real
    data a second reward model, trained on rankings of other prompts."""),
    ("PPO: improving against the reward model", ppo_section, """The policy moves towards what the reward model likes,
    under a penalty for leaving the SFT model (KL). Healthy: the score rises, KL stays in the shaded 0 to 10 nats,
    length does not run away, entropy falls slowly. Every round scores by its own reward model."""),
    ("Gold score: is it really better?", gold_section, """The hidden judge on prompts that no stage was trained on, with
    95 % intervals. Healthy: each round lies right of SFT, overall and for every kind of request."""),
    ("Win rate against SFT", wins_section, """How often gold prefers a round's answer to the SFT model's for the same
    prompt; ties count half. Healthy: the interval lies right of 50 %."""),
    ("What could be wrong", probes_section, """Probes of the reward and of the last round's policy, on held-out prompts. Limits
    are rules of thumb; healthy or look here is said only where the whole 95 % interval lies on that side of the limit."""),
    ("The same prompts, before and after", answers_section, """Held-out prompts as they were drawn, none chosen; one
    answer each with its gold score. The better one is tinted."""),
    ("Where the time went", time_section, "Wall-clock time of every stage, and the commands that run each one alone."),
    ("Warnings", warnings_section, "Numbers outside their healthy range, in plain words."))

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>RLHF report</title><style>
:root { color-scheme: light dark; --bg: #fafaf9; --card: #fff; --ink: #24292f; --soft: #646c77; --line: #e2e4e8;
  --tint: #e4f3ee }
@media (prefers-color-scheme: dark) { :root { --bg: #15181c; --card: #1c2025; --ink: #dde2e8; --soft: #98a1ad;
  --line: #363d46; --tint: #1b3932 } } * { box-sizing: border-box } p, dd, dl { margin: 0 }
body { margin: auto; max-width: 66rem; padding: 2.5rem 1.25rem 5rem; background: var(--bg); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: clamp(1.25rem, 2.6vw, 1.7rem); line-height: 1.4; max-width: 50rem; margin: .3rem 0 1.5rem }
h2 { font-size: 1.2rem; margin: 3.25rem 0 .25rem } h2 + p { max-width: 46rem; margin: 0 0 1.1rem }
h2 + p, dt, th, .gold, .assistant, summary { color: var(--soft) } dt, th, td, .gold { font-size: .88rem }
dl, .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); align-items: start }
.grid > :is(.wide, details, p, ul) { grid-column: 1 / -1; min-width: 0; overflow-x: auto }
dl div, figure, pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; margin: 0;
  padding: .7rem .9rem } pre { font-size: .8rem; white-space: pre-wrap }
svg { display: block; width: 100%; height: auto } svg text { font-family: system-ui, sans-serif !important }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } .numbers { overflow-wrap: normal }
th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left }
.answers { table-layout: fixed } .answers p { white-space: pre-wrap } .assistant { padding-left: 1rem }
.said, .tag { padding: .35rem .6rem; border-radius: .4rem } .said b { display: none }
.tag { padding: .1rem .5rem; font-weight: 600; background: var(--line) } .tag, .probes td:nth-child(n+2):nth-child(-n+3) {
  white-space: nowrap } .better, .heal { background: var(--tint) } .look { background: #e07b3955 }
@media (max-width: 40rem) { .answers tr, .answers td { display: block;
  padding: .3rem 0 } .answers td { border: 0 } .answers th { display: none } .said b { display: inline } }
</style></head><body><h1>$headline</h1><dl>$key</dl>$sections</body></html>
""")


def write(out: str) -> Path:
    """Writes out/report.html and out/report.json from what lies in `out`; returns the page's path."""
    folder = Path(out)
    if not folder.is_dir():
        raise UserError(f"{out} is no folder: name the one that run_rlhf.py --out made")
    data = collect(folder)
    key = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in data["key_numbers"].items())
    sections = [f'<h2>{title}</h2><p>{about}</p><div class="grid">{section(data) or "<p>Not there yet.</p>"}</div>'
                for title, section, about in SECTIONS]
    page = PAGE.substitute(headline=escape(data["headline"]), key=key, sections="".join(sections))
    write_atomically(folder / "report.json", to_json(data, indent=1, ensure_ascii=False).encode())
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


if __name__ == "__main__":
    try:
        print(f"wrote {write(*sys.argv[1:2] or ['out'])}")
    except UserError as error:
        sys.exit(f"error: {error}")
