"""What a loop's folder holds: every number of the report, warnings and a headline."""

import json
import math
import re
from pathlib import Path

from minirlhf import health
from minirlhf.files import read_json, read_jsonl, to_json
from minirlhf.report.probes import number, share
from minirlhf.run import describe_result, read_loop

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
    data = {"settings": {}, "stages": {}, "results": [], "examples": []}
    data |= read_loop(out)
    data |= read_json(out / "evaluation.json", results=list, examples=list)
    data = json.loads(to_json(data))  # NaN becomes None
    data |= {"sft": columns(out / "sft"), "reward_models": {}, "ppo": {}}
    folders = [path for path in out.glob("round*") if path.name[5:].isdecimal()]
    for folder in sorted(folders, key=lambda path: int(path.name[5:])):
        name = f"round {folder.name[5:]}"
        if metrics := columns(folder / "rm"):
            run = describe_result(folder / "rm")
            mean, interval = run.get("validation_accuracy"), run.get("validation_interval")
            data["reward_models"][name] = {
                "accuracy": {"mean": mean, "interval": interval},
                "calibration": run.get("calibration", []),
                "newest_before": run.get("newest_before"),
                "newest_after": run.get("newest_after"),
                "metrics": metrics,
            }
        if metrics := columns(folder / "ppo"):
            data["ppo"][name] = {"at_the_end": at_the_end(metrics), "metrics": metrics}
    results = data.pop("results")
    name_stages(results)
    data["policies"] = [result for result in results if "win_rate" in result]  # the baseline first
    data["demonstrations"] = [result for result in results if "win_rate" not in result]
    data["seconds"] = sum(stage.get("seconds", 0) for stage in data["stages"].values())
    data["warnings"] = warnings(data)
    data["headline"] = headline(data)
    data["key_numbers"] = key_numbers(data)
    return data


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
    for name, ppo in data["ppo"].items():
        pairs += [(f"PPO, {name}, at the end", what) for what in health.warnings(ppo["at_the_end"])]
    policies = data["policies"]
    for result in policies:
        where = f"Evaluation, {result['stage']}"
        pairs += [(where, what) for what in evaluation_warnings(result, policies[0])]
    for row in policies[-1].get("probes", []) if policies else []:
        if row["verdict"] == "look here":
            pairs.append((f"Evaluation, {policies[-1]['stage']}", row["says"]))
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
    if "gold" in result and "reward" in result:
        gains = [result[name]["mean"] - sft[name]["mean"] for name in ("reward", "gold")]
        if gains[0] > 0 >= gains[1]:
            said.append("the reward rose and gold fell: errors of the reward model are exploited")
    accuracy = result.get("reward_accuracy")
    if accuracy and like_a_coin(accuracy):
        said.append(f"the reward model agrees with gold in {share(accuracy)}, as a coin would")
    return said


def headline(data: dict) -> str:
    policies = data["policies"]
    if len(policies) < 2:
        done = [name for name, stage in data["stages"].items() if stage.get("finished")]
        return f"The loop is under way. Finished so far: {', '.join(done) or 'nothing'}."
    rounds = len(policies) - 1
    after = "1 round" if rounds == 1 else f"{rounds} rounds"
    last = policies[-1]
    return (
        f"After {after} the policy's answers beat the {policies[0]['stage']} model's in "
        f"{share(last['win_rate'])} of comparisons on prompts it never saw, at "
        f"{number(last['kl']['mean'])} nats of KL; it took {duration(data['seconds'])}."
    )


def key_numbers(data: dict) -> dict[str, str]:
    numbers = {}
    policies = data["policies"]
    if len(policies) > 1:
        first, last = policies[0], policies[-1]
        numbers["win rate"] = share(last["win_rate"])
        numbers["KL, nats"] = number(last["kl"]["mean"])
        score = "gold" if "gold" in last else "reward"
        if score in last:
            before, after = number(first[score]["mean"]), number(last[score]["mean"])
            numbers[f"{score} score"] = f"{before} → {after}"
    for model in data["reward_models"].values():
        numbers["reward model's accuracy"] = share(model["accuracy"])
    if policies and "reward_accuracy" in policies[0]:  # without the labels' noise
        numbers["reward model's accuracy"] = share(policies[0]["reward_accuracy"])
    numbers["time"] = duration(data["seconds"])
    numbers["warnings"] = str(len(data["warnings"]))
    return numbers


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
