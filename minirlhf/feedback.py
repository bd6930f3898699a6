"""Who ranks responses, and the record of it. Whoever it was, the record looks the same to everything downstream:

    {"id": ..., "prompt": ..., "responses": [K texts], "ranks": [1 = best, ties share a number], "annotator": ..., "time": ...}
"""
import json
import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from minirlhf import UserError
from minirlhf.data import records

Annotator = Callable[[str, list[str]], list[int]]       # (prompt, responses) -> ranks


def rank_by(utilities: Sequence[float], noise: float = 0.0, rng: random.Random | None = None) -> list[int]:
    """Utilities -> ranks, 1 = best; without noise equal utilities tie.

    noise is the scale of Gumbel noise on each utility: response i comes before j with probability sigmoid((u_i - u_j) / noise),
    the Bradley-Terry model behind every reward model (as a ranking: Plackett-Luce). Close calls go wrong often, clear ones rarely.
    """
    if noise:
        utilities = [u - noise * math.log(-math.log(1 - rng.random())) for u in utilities]      # 1 - random() is never 0
    distinct: list[float] = []
    for u in sorted(utilities, reverse=True):
        if not distinct or distinct[-1] - u > 1e-9:
            distinct.append(u)
    return [1 + sum(d - u > 1e-9 for d in distinct) for u in utilities]


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


def toy_annotator(noise: float = 0.2, bias: str = "", seed: int = 0) -> Annotator:
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


def append_ranking(path: str | Path, candidate: dict, ranks: list[int], annotator: str, **more) -> None:
    """One ranking record at the end of the file."""
    record = {"id": candidate["id"], "prompt": candidate["prompt"], "responses": candidate["responses"], "ranks": ranks,
              "annotator": annotator, "time": datetime.now(UTC).isoformat(timespec="seconds"), **more}
    with Path(path).open("a", encoding="utf-8") as f:
        f.write(json.dumps(record, ensure_ascii=False) + "\n")
