"""What a loop's folder holds: every number of the report, warnings and a headline."""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import time
from pathlib import Path

import torch

from minirlhf import cuda, health
from minirlhf.cli import one_line, wrapped
from minirlhf.files import read_json, read_jsonl, to_json
from minirlhf.report.probes import number, share
from minirlhf.run import read_loop, read_run

ROOT = Path(__file__).parents[2]

# ---- numbers


def columns(folder: Path) -> dict[str, list]:
    """metrics.jsonl -> {name: a value per row}, None where a row has no number."""
    rows = read_jsonl(folder / "metrics.jsonl")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [finite(row.get(name)) for row in rows] for name in names}


def finite(value) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def at_the_end(metrics: dict[str, list]) -> dict[str, float]:
    """Means over the last tenth of a run."""
    means = {}
    for name, values in metrics.items():
        tail = values[-max(1, len(values) // 10) :]
        known = [value for value in tail if value is not None]
        if known:
            means[name] = sum(known) / len(known)
    return means


def collect(out: Path) -> dict:
    data = {"settings": {}, "stages": {}, "results": [], "examples": [], "judge": ""}
    data |= read_loop(out)
    data |= read_json(out / "evaluation.json", results=list, examples=list, judge=str)
    data = json.loads(to_json(data))  # NaN becomes None
    data |= {
        "sft": columns(out / "sft"),
        "reward_models": {},
        "ppo": {},
        "moments": [],
        "tokens": {},
    }
    folders = [path for path in out.glob("round*") if path.name[5:].isdecimal()]
    for folder in sorted(folders, key=lambda path: int(path.name[5:])):
        name = f"round {folder.name[5:]}"
        if run := read_run(folder / "rm"):
            mean, interval = run.get("validation_accuracy"), run.get("validation_interval")
            data["reward_models"][name] = {
                "accuracy": {"mean": mean, "interval": interval},
                "calibration": run.get("calibration", []),
                "newest_before": run.get("newest_before"),
                "newest_after": run.get("newest_after"),
            }
        if metrics := columns(folder / "ppo"):
            data["ppo"][name] = {"at_the_end": at_the_end(metrics), "metrics": metrics}
            samples = read_jsonl(folder / "ppo" / "samples.jsonl")
            data["moments"] += moments(samples, name)
            data["tokens"] = next((row for row in reversed(samples) if "tokens" in row), {})
    data["moments"] = [m for m in data["moments"] if requests(m) == requests(data["moments"][-1])]
    results = data.pop("results")
    name_stages(results)
    data["policies"] = [result for result in results if "win_rate" in result]  # the baseline first
    data["demonstrations"] = [result for result in results if "win_rate" not in result]
    data["seconds"] = sum(stage.get("seconds", 0) for stage in data["stages"].values())
    data["made"] = made(data["stages"])
    data["warnings"] = warnings(data)
    data["headline"] = headline(data)
    data["key_numbers"] = key_numbers(data)
    return data


def moments(samples: list[dict], name: str) -> list[dict]:
    """The answers to train_ppo.py's fixed requests at each step that has them."""
    steps = {}
    for row in samples:
        if row.get("fixed"):
            when = f"{name}, iteration {row['step'] + 1}"
            steps.setdefault(when, []).append(row)
    return [{"when": when, "answers": rows} for when, rows in steps.items()]


def requests(moment: dict) -> list:
    return [answer["prompt"] for answer in moment["answers"]]


def name_stages(results: list[dict]) -> None:
    """A result's "stage": SFT, round 1, or as much of its path as tells it from the others."""
    for result in results:
        path = Path(result["policy"])
        result["stage"] = "SFT" if path.name == "sft" else path.name
        if match := re.search(r"round(\d+)/ppo$", path.as_posix()):
            result["stage"] = f"round {match[1]}"
    stages = [result["stage"] for result in results]
    for result in results:
        if stages.count(result["stage"]) > 1:
            result["stage"] = "/".join(Path(result["policy"]).parts[-3:])


# ---- when, where, with which code


def provenance() -> dict[str, str]:
    """For a stage of loop.json."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        machine += f", {cuda.name()}"
    commit = ""
    try:
        git = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git here
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine, "commit": commit}


def made(stages: dict) -> list[str]:
    """The same of all stages, in words."""
    known = {}
    for name in ("date", "machine", "commit"):
        values = [stage[name] for stage in stages.values() if stage.get(name)]
        known[name] = list(dict.fromkeys(values))
    dates = known["date"]
    parts = [" to ".join(dates[:1] + dates[1:][-1:]), *known["machine"]]
    parts += [f"commit {commit}" for commit in known["commit"]]
    return [part for part in parts if part]


# ---- in words


def like_a_coin(cell: dict) -> bool:
    return cell["mean"] is not None and cell["mean"] - (cell["interval"] or 0) <= 0.5


def warnings(data: dict) -> list[str]:
    """What is unhealthy, in plain words."""
    pairs = []  # (where, what)
    if data["settings"].get("quick"):
        pairs.append(("Quick run", "it shows that everything works; its numbers mean nothing"))
    losses = [loss for loss in data["sft"].get("validation_loss", []) if loss is not None]
    if losses and losses[-1] > 1.03 * min(losses):
        rise = f"the validation loss rose from {min(losses):.2f} to {losses[-1]:.2f}"
        pairs.append(("SFT", f"{rise}: too many steps"))
    for name, model in data["reward_models"].items():
        if like_a_coin(model["accuracy"]):
            what = f"accuracy {share(model['accuracy'])}, not seen to beat a coin"
            pairs.append((f"Reward model, {name}", what))
    for name, ppo in list(data["ppo"].items())[-1:]:
        pairs += [(f"PPO, {name}, at the end", what) for what in health.warnings(ppo["at_the_end"])]
    policies = data["policies"]
    for result in policies[-1:]:
        said = evaluation_warnings(result, policies[0])
        said += [row["says"] for row in result.get("probes", []) if row["verdict"] == "look here"]
        pairs += [(f"Evaluation, {result['stage']}", what) for what in said]
    return [f"{where}: {what}." for where, what in pairs]


def evaluation_warnings(result: dict, sft: dict) -> list[str]:
    said = health.warnings({"kl": result["kl"]["mean"]})
    if result is not sft and like_a_coin(result["win_rate"]):
        said.append(f"wins {share(result['win_rate'])} against {sft['stage']}, no more than chance")
    for kind, before in sft.get("kinds", {}).items():
        now = result["kinds"].get(kind, before)
        noise = math.hypot(before["interval"] or 0, now["interval"] or 0)
        if before["mean"] - now["mean"] > max(0.1, noise):
            said.append(f"gold for “{kind}” fell from {before['mean']:.2f} to {now['mean']:.2f}")
    now, before = result["distinct_open_ended"], sft["distinct_open_ended"]
    if now < 0.6 * before:
        said.append(f"{now:.0%} of answers to open requests are distinct, {before:.0%} before")
    accuracy = result.get("reward_accuracy")
    if accuracy and like_a_coin(accuracy):
        said.append(f"the reward model agrees with gold in {share(accuracy)}, as a coin would")
    return said


def headline(data: dict) -> str:
    """What happened, in one sentence."""
    policies, took = data["policies"], duration(data["seconds"])
    if len(policies) < 2:
        done = [name for name, stage in data["stages"].items() if stage.get("finished")]
        if not done:
            return "So far no stage is finished."
        stages = "1 stage is" if len(done) == 1 else f"{len(done)} stages are"
        return f"So far {stages} finished, {done[-1]} the last of them, after {took}."
    first, last = policies[0], policies[-1]
    rounds = len(policies) - 1
    who = f"The answers of {last['stage']}"
    if last["stage"] == f"round {rounds}":
        after = "1 round" if rounds == 1 else f"{rounds} rounds"
        who = f"After {after} the policy's answers"
    sentence = (
        f"{who} beat the {first['stage']} model's in {share(last['win_rate'])} of comparisons on "
        f"prompts it never saw, at {number(last['kl']['mean'])} nats of KL"
    )
    return f"{sentence}; it took {took}." if data["stages"] else f"{sentence}."


def key_numbers(data: dict) -> list[tuple[str, str, str]]:
    """(name, value, how to read it)."""
    numbers = []
    policies = data["policies"]
    if len(policies) > 1:
        first, last = policies[0], policies[-1]
        by = f", by {data['judge']}" if data["judge"] else ""
        note = f"of comparisons with {first['stage']}{by}; no better would be 50 %"
        numbers.append(("win rate", share(last["win_rate"]), note))
        usual = next(row.healthy for row in health.HEALTH if row.metric == "kl")
        note = f"how far it has moved from {first['stage']}; usually {usual}"
        numbers.append(("KL", f"{number(last['kl']['mean'])} nats", note))
        score = "gold" if "gold" in last else "reward"
        if score in last:
            change = f"{number(first[score]['mean'])} → {number(last[score]['mean'])}"
            numbers.append((f"{score} score", change, f"{first['stage']} → {last['stage']}, mean"))
    name = "reward model's accuracy"
    if policies and "reward_accuracy" in policies[0]:  # without the labels' noise
        note = "of answers ranked as gold ranks them; a coin: 50 %"
        numbers.append((name, share(policies[0]["reward_accuracy"]), note))
    elif data["reward_models"]:
        *_, newest = data["reward_models"].values()
        note = "on held-out rankings; a coin: 50 %, on people's usually 62 to 70 %"
        numbers.append((name, share(newest["accuracy"]), note))
    if data["stages"]:
        numbers.append(("time", duration(data["seconds"]), f"for {len(data['stages'])} stages"))
    return numbers


def ending(out: str | Path) -> list[str]:
    """For the terminal: what happened, one request before and after, and where to go on."""
    data = read_json(Path(out) / "report.json")
    if len(data["policies"]) < 2:
        return ["", wrapped(data["headline"])]
    before, after = data["policies"][0], data["policies"][-1]
    score = "gold" if "gold" in after else "reward"
    change = f"{number(before[score]['mean'])} -> {number(after[score]['mean'])}"
    lines = ["", wrapped(data["headline"]), f"The mean {score} score of an answer: {change}.", ""]
    typical = typical_example(data["examples"], before["policy"], after["policy"], score)
    if typical:
        prompt = typical["prompt"]
        lines.append(one_line(prompt[-1]["content"] if isinstance(prompt, list) else prompt))
        for result in (before, after):
            answer = typical["answers"][result["policy"]]
            head = f"{result['stage']:>10} {number(answer[score]):>6}  "
            lines.append(wrapped(head + one_line(answer["response"]), len(head)))
        lines.append("")
    if data["warnings"]:
        first = f"warnings: {len(data['warnings'])}, the first: {data['warnings'][0]}"
        lines.append(wrapped(first, 10))
    policies = f"{before['policy']},{after['policy']}"
    talk = ["python", "sample.py", "--init", after["policy"], "--chat"]
    teach = ["python", "label.py", "--chat", "--policies", policies]
    return [*lines, f"next: {shlex.join(talk)}", f"      {shlex.join(teach)}"]


def typical_example(examples: list[dict], before: str, after: str, score: str) -> dict | None:
    """The one whose score rose neither the most nor the least; None where none has scores."""

    def scores(example: dict) -> list[float | None]:
        return [example["answers"][policy][score] for policy in (before, after)]

    def gain(example: dict) -> float:
        first, last = scores(example)
        return last - first

    scored = sorted((example for example in examples if None not in scores(example)), key=gain)
    return scored[len(scored) // 2] if scored else None


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
