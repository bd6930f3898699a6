"""Who ranks responses, and the record of it. Whoever it was, the record looks the same to everything downstream:

    {"id": ..., "prompt": ..., "responses": [K texts], "ranks": [1 = best, ties share a number], "annotator": ..., "time": ...}
"""
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from minirlhf import UserError
from minirlhf.data import records

Annotator = Callable[[str, list[str]], list[int]]       # (prompt, responses) -> ranks


def rank_by(utilities: Sequence[float], noise: float = 0.0, rng: random.Random | None = None) -> list[int]:
    """Utilities -> ranks, 1 = best; equal utilities tie.

    noise: the share of comparisons that come out the wrong way round. The annotator sorts by inserting one response after
    another from the worse end, comparing pairs; for K = 2 exactly `noise` of the labels are flipped.
    """
    order: list[list[int]] = []                         # groups of tied responses, best first
    for i, u in enumerate(utilities):
        place = len(order)
        tied = False
        while place > 0:
            other = utilities[order[place - 1][0]]
            if abs(u - other) < 1e-9:
                tied = True
                break
            wins = u > other
            if rng is not None and rng.random() < noise:
                wins = not wins
            if not wins:
                break
            place -= 1
        if tied:
            order[place - 1].append(i)
        else:
            order.insert(place, [i])
    ranks = [0] * len(utilities)
    for rank, group in enumerate(order, 1):
        for i in group:
            ranks[i] = rank
    return ranks


def parse_bias(text: str) -> dict[str, float]:
    """'length=0.3,agreement=0.5' -> weights on the toy world's features, in units of the gold score."""
    bias = {}
    for part in filter(None, text.split(",")):
        name, _, weight = part.partition("=")
        try:
            bias[name.strip()] = float(weight)
        except ValueError:
            raise UserError(f"--bias {part!r}: write feature=weight, as length=0.3,agreement=0.5") from None
    return bias


def toy_annotator(noise: float = 0.1, bias: str = "", seed: int = 0) -> Annotator:
    """Ranks by the toy world's gold score, plus weighted features that are none of the gold score's business, plus noise.

    Its dice depend on (seed, prompt), not on the order in which prompts come.
    """
    from minirlhf import toyworld
    weights = parse_bias(bias)
    known = toyworld.features("", "")
    if unknown := weights.keys() - known.keys():
        raise UserError(f"--bias {', '.join(sorted(unknown))}: the toy world's features are {', '.join(known)}")

    def annotate(prompt: str, responses: list[str]) -> list[int]:
        utilities = []
        for response in responses:
            features = toyworld.features(prompt, response) if weights else {}
            utilities.append(toyworld.gold(prompt, response)["total"] + sum(w * features[k] for k, w in weights.items()))
        return rank_by(utilities, noise, random.Random(f"{seed}/{prompt}"))

    return annotate


def read_candidates(path: str) -> list[dict]:
    """What sample.py wrote: {"id", "prompt", "responses"}. UserError naming file, line and field otherwise."""
    found, ids = [], set()
    for where, record in records(path, "candidates"):
        responses = record.get("responses")
        if not (isinstance(record.get("prompt"), str) and isinstance(responses, list) and len(responses) >= 2
                and all(isinstance(r, str) for r in responses)):
            raise UserError(f"{where}: a candidates record needs \"prompt\" (text) and \"responses\" (two texts or more): "
                            "make the file with sample.py --candidates_out")
        record.setdefault("id", str(len(found)))
        if record["id"] in ids:
            raise UserError(f"{where}: id {record['id']!r} occurs twice: ids must be unique in a candidates file")
        ids.add(record["id"])
        found.append(record)
    return found


def append_ranking(path: str | Path, candidate: dict, ranks: list[int], annotator: str) -> None:
    """One ranking record at the end of the file."""
    record = {"id": candidate["id"], "prompt": candidate["prompt"], "responses": candidate["responses"], "ranks": ranks,
              "annotator": annotator, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    with Path(path).open("a", encoding="utf-8") as f:
        f.write(json.dumps(record, ensure_ascii=False) + "\n")
