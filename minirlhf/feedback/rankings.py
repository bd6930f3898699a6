"""Candidates become rankings: the record, simulated annotators, and how well annotators agree.

Whoever ranked, the record looks the same to everything downstream:

    {"id", "prompt", "responses": [K texts], "ranks": [1 is best, ties share a number],
     "annotator", "time"}

A person's record also has "seconds" and, where it applies, "harmful": [indices of responses],
"all_bad": true, "skipped": true (all tied), "repeat": true (the prompt came a second time).
Reward models do not learn from the last two. What an AI's record has besides stands in judge.py.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import median
from types import ModuleType

import torch

from minirlhf import UserError, stats, world
from minirlhf.data import Prompt, records
from minirlhf.files import append_jsonl

Annotator = Callable[
    [str | list, list[str]], list[int]
]  # (prompt as in the file, responses) -> ranks
Pairs = dict[tuple, int]  # (id, i, j) -> 1 if response i is better than j, 0 if tied, -1 if worse
FIELDS = {"id", "prompt", "responses", "ranks", "annotator"}


@dataclass
class Candidate:
    """A prompt and the responses to rank."""

    id: str | int
    prompt: Prompt
    responses: list[str]


# ------------------------------------------------------------------------- simulated annotators


def rank_by(utilities: Sequence[float], noise=0.0, rng: random.Random | None = None) -> list[int]:
    """Utilities -> ranks, 1 is best. Without noise equal utilities tie.

    noise: scale of the Gumbel noise on each utility. Response i comes before j with probability
    sigmoid((u_i - u_j) / noise), as in the Bradley-Terry model behind every reward model.
    """
    if noise:
        gumbel = [-math.log(-math.log(1 - rng.random())) for _ in utilities]  # 1 - random() > 0
        utilities = [u + noise * g for u, g in zip(utilities, gumbel)]
    levels: list[float] = []  # distinct utilities, best first
    for utility in sorted(utilities, reverse=True):
        if not levels or levels[-1] - utility > 1e-9:
            levels.append(utility)
    return [1 + sum(level - utility > 1e-9 for level in levels) for utility in utilities]


def parse_bias(text: str) -> dict[str, float]:
    """'length=0.3,agreement=0.5' -> {"length": 0.3, "agreement": 0.5}"""
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise UserError(f"--bias {part!r}: write feature=weight, as in length=0.3") from None
    return weights


def simulated_annotator(module: ModuleType, noise=0.2, bias: str = "", seed: int = 0) -> Annotator:
    """Ranks by a world's `annotate`, plus weighted `features` (the bias), plus noise.

    The noise depends on (seed, prompt), not on the order in which prompts come.
    """
    weights = parse_bias(bias) if bias else {}
    features = getattr(module, "features", lambda prompt, response: {})
    known = features("", "").keys() if weights else ()
    unknown = [name for name in weights if name not in known]
    if unknown:
        raise UserError(
            f"--bias {', '.join(unknown)}: {module.__name__} knows {', '.join(known) or 'no features'}"
        )

    def annotate(prompt: str | list, responses: list[str]) -> list[int]:
        utilities = list(module.annotate(prompt, responses))
        for i, response in enumerate(responses):
            if weights:
                values = features(prompt, response)
                utilities[i] += sum(weight * values[name] for name, weight in weights.items())
        return rank_by(utilities, noise, random.Random(f"{seed}/{prompt}"))

    return annotate


# ------------------------------------------------------------------------- files


def read_candidates(path: str, template: str = "chat") -> list[Candidate]:
    """What sample.py --candidates_out wrote. UserError names file, line and field."""
    candidates, ids = [], set()
    remedy = "make the file with sample.py --candidates_out"
    for where, record in records(path, "candidates"):
        responses = record.get("responses")
        if not isinstance(responses, list) or len(responses) < 2:
            raise UserError(f"{where}: field 'responses' must be a list of two or more; {remedy}")
        if not all(isinstance(response, str) for response in responses):
            raise UserError(f"{where}: field 'responses' must hold texts; {remedy}")
        candidate_id = record.get("id", str(len(candidates)))
        if not isinstance(candidate_id, str | int):
            raise UserError(f"{where}: field 'id' must be a text or a whole number; {remedy}")
        if candidate_id in ids:
            raise UserError(f"{where}: id {candidate_id!r} occurs twice: make ids unique")
        try:
            prompt = Prompt.of(record.get("prompt"), template)
        except UserError as error:
            raise UserError(f"{where}: field 'prompt': {error}") from None
        ids.add(candidate_id)
        candidates.append(Candidate(candidate_id, prompt, responses))
    return candidates


def open_rankings(path: str | Path, candidates: list[Candidate]) -> list[dict]:
    """The rankings in the file so far, checked to be of these candidates. Creates the file."""
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"--out {path}: name a file of rankings .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend_last_line(path)
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}): choose a file that you may write"
        ) from None
    expected = {c.id: (c.prompt.source, c.responses) for c in candidates}
    rankings = []
    for where, record in records(str(path), "rankings"):
        content = record.get("prompt"), record.get("responses")
        if expected.get(record.get("id")) != content:
            raise UserError(
                f"{where}: a ranking of other candidates (id {record.get('id')!r}): "
                "choose another --out"
            )
        rankings.append(record)
    return rankings


def _mend_last_line(path: Path) -> None:
    """Complete a last line that lacks its newline. Drop one that a crash cut short."""
    with path.open("ab+") as file:
        file.seek(0)
        last_line = file.read().rpartition(b"\n")[2]
        if not last_line:
            return
        try:
            json.loads(last_line)
            file.write(b"\n")
        except ValueError:
            file.truncate(file.tell() - len(last_line))
            print(f"{path}: dropped the last line, which was cut short while being written")


def append_ranking(
    path: str | Path,
    candidate: Candidate,
    ranks: list[int],
    annotator: str,
    sync: bool = True,
    **more,
) -> None:
    """Append one ranking. sync: it is on the disk before this returns."""
    record = {
        "id": candidate.id,
        "prompt": candidate.prompt.source,
        "responses": candidate.responses,
        "ranks": ranks,
        "annotator": annotator,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    append_jsonl(path, [record | more], sync=sync)


# ------------------------------------------------------------------------- agreement


def comparisons(ranking: dict) -> Pairs:
    """A ranking as pairs. Equal texts are not compared."""
    ranks, responses = ranking["ranks"], ranking["responses"]
    pairs = {}
    for i, j in combinations(range(len(ranks)), 2):
        if responses[i] != responses[j]:
            pairs[ranking["id"], i, j] = (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
    return pairs


def all_comparisons(rankings: Iterable[dict]) -> Pairs:
    pairs = {}
    for ranking in rankings:
        if not ranking.get("skipped"):
            pairs |= comparisons(ranking)
    return pairs


def agreement(a: Pairs, b: Pairs) -> tuple[float, float, int]:
    """Share of common pairs that two annotators order alike, half its 95 % interval, number of pairs.

    A pair counts 1/2 if one of them has a tie. Prompts are the independent units of the interval.
    """
    alike = defaultdict(list)  # id -> 1, 1/2 or 0 for each common pair
    for key in a.keys() & b.keys():
        alike[key[0]].append(1 - abs(a[key] - b[key]) / 2)
    sums = torch.tensor([float(sum(values)) for values in alike.values()])
    counts = torch.tensor([float(len(values)) for values in alike.values()])
    share = stats.estimate(torch.arange(len(counts)), [sums], [counts])
    return share["mean"], share["interval"], int(counts.sum())


def position_bias(rankings: Iterable[dict]) -> dict[str, float]:
    """Does an AI prefer a position? Pairs with two usable answers and different texts count.

    flips: share of pairs in which the same letter, A or B, wins in both orders.
    first: mean preference for A, minus 1/2.
    """
    answers = []
    for ranking in rankings:
        responses = ranking["responses"]
        for i, j, in_order, swapped in ranking["asked"]:
            if None not in (in_order, swapped) and responses[i] != responses[j]:
                answers.append((in_order, swapped))
    flips = sum((in_order > 0.5) == (swapped > 0.5) for in_order, swapped in answers)
    preference = sum(in_order + swapped - 1 for in_order, swapped in answers) / 2
    count = max(1, len(answers))
    return {"flips": flips / count, "first": preference / count, "pairs": len(answers)}


def summarize(data: str, compare: str = "") -> str:
    """What each annotator did, how fast, and whether they agree with themselves and each other.

    compare: more files of rankings, or a world whose reward is compared where it sees a difference.
    """
    module = world.find(compare) if compare else None
    if compare and module is None:
        data = f"{data},{compare}"
    by_annotator = _read_rankings(data)
    lines, pairs = [], {}
    for annotator, rankings in by_annotator.items():
        pairs[annotator] = all_comparisons(r for r in rankings if not r.get("repeat"))
        again = all_comparisons(r for r in rankings if r.get("repeat"))
        lines.append(f"{annotator}: {_activity(rankings, pairs[annotator])}")
        if again:
            lines.append(f"    agrees with themselves: {_agree(pairs[annotator], again)}")
        asked = [r for r in rankings if "asked" in r]
        if asked:
            bias = position_bias(asked)
            lines.append(
                f"    the same letter wins in both orders for {bias['flips']:.1%} of "
                f"{bias['pairs']} pairs; mean preference for A {bias['first']:+.3f}"
            )
    if module:
        pairs[f"{compare}'s reward"] = _rewards(module, compare, by_annotator.values())
    for a, b in combinations(pairs, 2):
        lines.append(f"{a} and {b} agree: {_agree(pairs[a], pairs[b])}")
    return "\n".join(lines)


def _read_rankings(data: str) -> dict[str, list[dict]]:
    """annotator -> rankings. The same ranking in two files counts once."""
    by_annotator, texts = {}, {}
    for where, record in records(data, "rankings"):
        if not record.keys() >= FIELDS:
            missing = ", ".join(sorted(FIELDS - record.keys()))
            raise UserError(f"{where}: no {missing}: give rankings that label.py wrote")
        key, annotator = record["id"], record["annotator"]
        if texts.setdefault(key, record["responses"]) != record["responses"]:
            raise UserError(
                f"{where}: id {key!r} has other responses than before: give rankings of the "
                "same candidates"
            )
        rankings = by_annotator.setdefault(annotator, {})
        earlier = rankings.setdefault((key, record.get("repeat", False)), record)
        if earlier["ranks"] != record["ranks"]:
            raise UserError(
                f"{where}: {annotator} ranked id {key!r} otherwise before: do two annotators "
                "share one --name?"
            )
    return {annotator: list(rankings.values()) for annotator, rankings in by_annotator.items()}


def _activity(rankings: list[dict], pairs: Pairs) -> str:
    skipped = sum(r.get("skipped", False) for r in rankings)
    tied = list(pairs.values()).count(0) / max(1, len(pairs))
    all_bad = sum(r.get("all_bad", False) for r in rankings)
    harmful = sum(len(r.get("harmful", [])) for r in rankings)
    text = f"{len(rankings) - skipped} rankings, {skipped} skipped, {tied:.0%} of pairs tied, "
    text += f"{all_bad} times all bad, {harmful} harmful"
    seconds = [r["seconds"] for r in rankings if "seconds" in r]
    if seconds:
        text += f", {60 / max(0.1, median(seconds)):.1f} labels/min"
    return text


def _agree(a: Pairs, b: Pairs) -> str:
    share, half, count = agreement(a, b)
    if not count:
        return "no common pairs"
    interval = "" if math.isnan(half) else f" ±{half:.2f}"
    return f"{share:.2f}{interval} on {count} pairs"


def _rewards(module: ModuleType, name: str, by_annotator: Iterable[list[dict]]) -> Pairs:
    """Every prompt that was ranked, as the world's reward compares its responses; no ties."""
    if not hasattr(module, "reward"):
        raise UserError(f"--compare {name}: the module has no reward; see minirlhf/world.py")
    ranked = {r["id"]: r for rankings in by_annotator for r in rankings}
    pairs = {}
    for r in ranked.values():
        if hasattr(module, "kind") and module.kind(r["prompt"]) == "other":
            raise UserError(
                f"--compare {name} does not know the prompt {str(r['prompt'])[:60]!r}: "
                "compare with a file of rankings"
            )
        scores = module.reward([r["prompt"]] * len(r["responses"]), r["responses"])
        pairs |= comparisons(r | {"ranks": rank_by(scores)})
    return {key: order for key, order in pairs.items() if order}
