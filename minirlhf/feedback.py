"""Who ranks responses, and the record of it. Whoever it was, the record looks the same to everything downstream:

    {"id": ..., "prompt": ..., "responses": [K texts], "ranks": [1 = best, ties share a number], "annotator": ..., "time": ...}

A person's record also has "seconds" and, where it applies, "harmful": [indices of responses], "all_bad": true, "skipped": true (all
tied), "repeat": true (the prompt came a second time). Reward models learn from none of the last two (data.py). An AI's record
has what judge.py says.
"""
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import median

import torch

from minirlhf import UserError, losses
from minirlhf.data import records
from minirlhf.json_text import to_json

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
        if not isinstance(record.setdefault("id", str(len(found))), str | int):
            raise UserError(f"{where}: field 'id' must be a text or a whole number, not {record['id']!r}")
        if record["id"] in ids:
            raise UserError(f"{where}: id {record['id']!r} occurs twice: ids must be unique in a candidates file")
        ids.add(record["id"])
        found.append(record)
    return found


def open_rankings(path: str | Path, candidates: list[dict]) -> list[dict]:
    """The rankings that --out holds already, of these candidates. Makes its folder; mends a last line that a crash tore."""
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"--out {path}: a file of rankings is named .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as f:
            f.seek(0)
            tail = f.read().rpartition(b"\n")[2]
            try:
                f.write(b"\n" if tail and json.loads(tail) else b"")        # whole, but for its newline
            except ValueError:                        # never confirmed to anybody
                f.truncate(f.tell() - len(tail))
                print(f"{path}: the last line was cut off in the middle of being written; left out")
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}): choose a file that you may write") from None
    texts = {c["id"]: (c["prompt"], c["responses"]) for c in candidates}
    kept = list(records(str(path), "rankings"))
    for where, r in kept:
        if r.get("id") not in texts or texts[r["id"]] != (r.get("prompt"), r.get("responses")):
            raise UserError(f"{where}: the ranking with id {r.get('id')!r} is of other candidates: choose another --out")
    return [r for _, r in kept]


def append_ranking(path: str | Path, candidate: dict, ranks: list[int], annotator: str, sync: bool = True, **more) -> None:
    """One ranking record at the end of the file, whole or not at all; sync: on the disk before this returns."""
    record = {"id": candidate["id"], "prompt": candidate["prompt"], "responses": candidate["responses"], "ranks": ranks,
              "annotator": annotator, "time": datetime.now(UTC).isoformat(timespec="seconds"), **more}
    line = to_json(record, ensure_ascii=False) + "\n"
    if any("\ud800" <= c <= "\udfff" for c in line):   # half a surrogate pair, which UTF-8 cannot hold
        line = to_json(record) + "\n"
    with Path(path).open("ab", buffering=0) as f:
        size = f.seek(0, os.SEEK_END)
        try:
            if f.write(data := line.encode()) < len(data):
                raise OSError("the disk is full")
            if sync:
                os.fsync(f.fileno())
        except OSError:
            f.truncate(size)
            raise


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float:
    """1 - observed / expected disagreement, squared differences (Krippendorff 2011, interval metric); 1 = perfect, 0 = chance.

    units: per unit the values that its annotators gave. NaN where nothing was given twice or nothing varies.
    """
    def disagreement(values):                          # sum of squared differences over ordered pairs
        return 2 * (len(values) * sum(v * v for v in values) - sum(values) ** 2)

    units = [u for u in units if len(u) > 1]
    values = [v for u in units for v in u]
    expected = disagreement(values) / (len(values) - 1) if values else 0
    return 1 - sum(disagreement(u) / (len(u) - 1) for u in units) / expected if expected else math.nan


def comparisons(record: dict) -> dict[tuple, int]:
    """A ranking as pairs: (id, i, j) -> 1 if response i is the better one, 0 if tied, -1; pairs of the same text are left out."""
    ranks, texts = record["ranks"], record["responses"]
    return {(record["id"], i, j): (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
            for i in range(len(ranks)) for j in range(i) if texts[i] != texts[j]}


def agreement(a: dict[tuple, int], b: dict[tuple, int]) -> tuple[float, float, int]:
    """Two annotators' `comparisons` -> the share of common pairs that they order alike, half its 95 % interval (prompts are the
    independent units), the number of pairs. A pair counts 1/2 if one of them has a tie."""
    alike = defaultdict(list)                          # id -> of each pair
    for key in a:
        if key in b:
            alike[key[0]].append(1 - abs(a[key] - b[key]) / 2)
    sums, counts = (torch.tensor([float(f(x)) for x in alike.values()]) for f in (sum, len))
    cell = losses.estimate(torch.arange(len(counts)), [sums], [counts])
    return cell["mean"], cell["interval"], int(counts.sum())


def position_bias(rankings: Iterable[dict]) -> dict[str, float]:
    """Of an AI's rankings. flips: the share of pairs in which the same letter, A or B, wins in both orders; first: the mean
    preference for A, minus 1/2; pairs: how many had two usable answers and different texts."""
    asked = [(x, y) for r in rankings for i, j, x, y in r["asked"] if None not in (x, y) and r["responses"][i] != r["responses"][j]]
    n = max(1, len(asked))
    return {"flips": sum((x > .5) == (y > .5) for x, y in asked) / n, "first": sum(x + y - 1 for x, y in asked) / 2 / n, "pairs": n}


def summarize(data: str, compare: str = "") -> str:
    """Of every annotator what they did, how fast, and whether they agree with themselves, with each other, and with `compare`:
    "gold", the toy world's score, where it sees a difference, or further files of rankings."""
    rows, texts = {}, {}                               # (annotator, id, is a repeat) -> record
    for where, r in records(data + f",{compare}" * (compare not in ("", "gold")), "rankings"):
        if not {"id", "annotator", "ranks", "responses"} <= r.keys():
            raise UserError(f"{where}: no ranking by label.py, which has \"id\", \"annotator\", \"responses\" and \"ranks\"")
        if texts.setdefault(r["id"], r["responses"]) != r["responses"]:
            raise UserError(f"{where}: id {r['id']!r} stood for other responses before: give rankings of the same candidates")
        if rows.setdefault((r["annotator"], r["id"], r.get("repeat", False)), r)["ranks"] != r["ranks"]:
            raise UserError(f"{where}: {r['annotator']} ranked id {r['id']!r} otherwise before: are two annotators of one --name?")

    def pairs(annotator: str, repeat: bool = False) -> dict[tuple, int]:
        return {k: v for (name, _, again), r in rows.items() if (name, again) == (annotator, repeat) and not r.get("skipped")
                for k, v in comparisons(r).items()}

    def agree(a: dict, b: dict) -> str:
        share, half, count = agreement(a, b)
        return f"{share:.2f}{'' if math.isnan(half) else f' ±{half:.2f}'} on {count} pairs" if count else "no common pairs"

    said, lines, units = {name: pairs(name) for name, *_ in rows}, [], defaultdict(list)
    for name, found in said.items():
        mine = [r for key, r in rows.items() if key[0] == name]
        skipped, seconds = sum(r.get("skipped", False) for r in mine), [r["seconds"] for r in mine if "seconds" in r]
        lines.append(f"{name}: {len(mine) - skipped} rankings, {skipped} skipped, "
                     f"{list(found.values()).count(0) / max(1, len(found)):.0%} of pairs tied, "
                     f"{sum('all_bad' in r for r in mine)} times all bad, {sum(len(r.get('harmful', [])) for r in mine)} harmful"
                     + (f", {60 / max(0.1, median(seconds)):.1f} labels/min" if seconds else "")
                     + (f"; agrees with themselves: {agree(found, again)}" if (again := pairs(name, True)) else ""))
        if by_ai := [r for r in mine if "asked" in r]:
            lines.append("    the same letter wins in both orders for {flips:.1%} of {pairs} pairs; mean preference for A "
                         "{first:+.3f}".format(**position_bias(by_ai)))
        for (i, *pair), value in found.items():        # which response of a pair comes first is arbitrary: count both ways
            units[i, *pair].append(value)
            units[i, *pair[::-1]].append(-value)
    if compare == "gold":
        from minirlhf import toyworld
        asked = {i: r for (_, i, _), r in rows.items()}
        if any(toyworld.kind(r["prompt"]) == "other" for r in asked.values()):
            raise UserError("--compare gold: the gold score knows the toy world's prompts alone; compare with a file of rankings")
        gold = (r | {"ranks": rank_by([toyworld.gold(r["prompt"], x)["total"] for x in r["responses"]])} for r in asked.values())
        said["gold"] = {k: v for r in gold for k, v in comparisons(r).items() if v}
    lines += [f"{a} and {b} agree: {agree(said[a], said[b])}" for a, b in combinations(said, 2)]
    if not math.isnan(alpha := krippendorff_alpha(list(units.values()))):
        lines.append(f"Krippendorff's alpha over pairs (better 1, tied 0, worse -1; interval metric): {alpha:.2f}")
    return "\n".join(lines)
