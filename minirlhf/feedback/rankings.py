"""Candidates become rankings: the record, simulated annotators, and how well annotators agree.

Whoever ranked, the record looks the same to everything downstream:

    {"id", "prompt", "responses": [K texts], "ranks": [1 is best, ties share a number],
     "annotator", "time"}

A person's record also has "seconds" and, where it applies, "harmful": [indices of responses],
"all_bad": true, "skipped": true (all tied), "repeat": true (the prompt came a second time),
"replaces": true (the answer was taken back and given again: earlier records of the same id,
annotator and repeat do not count). Reward models learn from neither skipped nor repeated ones.
What an AI's record has besides stands in judge.py.
"""

import json
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from types import ModuleType

import torch

from minirlhf import UserError, stats, world
from minirlhf.data import Prompt, list_field, prompt_of
from minirlhf.files import append_jsonl, lock, make_folder, unlock
from minirlhf.records import read, records

# (id, i, j) -> 1 if response i is better than j, 0 if tied, -1 if worse; or a mean of these
Pairs = dict[tuple, float]
MOST_PAIRED = 8  # annotators; of more than these each is compared with all the others together


@dataclass
class Candidate:
    """A prompt and the responses to rank."""

    id: str | int
    prompt: Prompt
    responses: list[str]


def rank_by(utilities: Sequence[float], noise=0.0, rng: random.Random | None = None) -> list[int]:
    """Utilities -> ranks, 1 is best. Without noise equal utilities tie.

    noise: scale of the Gumbel noise on each utility. Response i comes before j with probability
    sigmoid((u_i - u_j) / noise), as in the Bradley-Terry model behind every reward model.
    """
    if noise:  # 1 - random() is never 0
        utilities = [u - noise * math.log(-math.log(1 - rng.random())) for u in utilities]
    best_first = sorted(range(len(utilities)), key=utilities.__getitem__, reverse=True)
    ranks = [1] * len(utilities)
    for better, worse in pairwise(best_first):
        tied = utilities[better] - utilities[worse] <= 1e-9
        ranks[worse] = ranks[better] if tied else ranks[better] + 1
    return ranks


def parse_bias(text: str) -> dict[str, float]:
    """'length=0.3,agreement=0.5' -> {"length": 0.3, "agreement": 0.5}"""
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = math.nan
        if not math.isfinite(weights[name.strip()]):
            raise UserError(f"--bias {part!r}: write feature=weight, as in length=0.3")
    return weights


def simulated_annotator(
    module: ModuleType, noise: float = 0.2, bias: str = "", seed: int = 0
) -> Callable[[str | list, list[str]], list[int]]:
    """(prompt as in the file, responses) -> ranks, by a world's `annotate`, a bias and noise.

    bias: weights on the world's `features`. The noise depends on (seed, prompt) alone, not on the
    order in which prompts come.
    """
    weights = parse_bias(bias)
    if weights:
        known = module.features("", "")
        unknown = ", ".join(weights.keys() - known.keys())
        if unknown:
            raise UserError(f"--bias {unknown}: the features are {', '.join(known)}")

    def annotate(prompt: str | list, responses: list[str]) -> list[int]:
        utilities = list(module.annotate(prompt, responses))
        for name, weight in weights.items():
            for i, response in enumerate(responses):
                utilities[i] += weight * module.features(prompt, response)[name]
        return rank_by(utilities, noise, random.Random(f"{seed}/{prompt}"))

    return annotate


def read_candidates(path: str, template: str = "chat") -> list[Candidate]:
    """What sample.py --candidates_out wrote. UserError names file, line and field."""
    candidates = {}

    def add(record: dict, where: str) -> None:
        responses = list_field(record, "responses")
        if len(responses) < 2 or not all(isinstance(text, str) for text in responses):
            raise UserError("field 'responses' must hold two texts or more")
        key = record.get("id", str(len(candidates)))
        if not isinstance(key, str | int) or key in candidates:
            raise UserError(f"field 'id' holds {key!r}; give each record its own text or number")
        candidates[key] = Candidate(key, prompt_of(record, template), responses)

    read(path, "candidates", add)
    return list(candidates.values())


def open_rankings(path: str | Path, candidates: list[Candidate] | None = None) -> list[dict]:
    """The rankings in the file so far; none where there is no file yet.

    candidates: what the rankings must be of; None: anything.
    No other process writes to it until `close_rankings` or the end of this one.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"--out {path}: a file of rankings is named .jsonl")
    make_folder(path.parent)
    lock(f"{path}.lock", str(path))
    if not path.exists():
        return []
    _drop_torn_line(path)
    texts = {c.id: (c.prompt.source, c.responses) for c in candidates or ()}
    rankings = []
    for where, record in records(str(path), "rankings"):
        if candidates is not None and not is_ranking(record):
            raise UserError(f"{where}: this is no ranking that label.py wrote: mend it")
        ranked = record.get("prompt"), record.get("responses")
        if candidates is not None and texts.get(record["id"]) != ranked:
            raise UserError(f"{where}: a ranking of other candidates: choose another --out")
        rankings.append(record)
    return rankings


def close_rankings(path: str | Path) -> None:
    unlock(f"{path}.lock")


def _drop_torn_line(path: Path) -> None:
    """A crash can cut the last line short. It was never confirmed to anybody."""
    content = path.read_bytes()
    last_line = content.rpartition(b"\n")[2]
    try:
        json.loads(last_line or b"{}")
    except (ValueError, RecursionError):
        os.truncate(path, len(content) - len(last_line))
        print(f"{path}: dropped the last line, which was cut short while being written")


def append_ranking(
    path: str | Path,
    candidate: Candidate,
    ranks: list[int],
    annotator: str,
    sync: bool = True,
    **more,
) -> dict:
    """Append one ranking and return its record. sync: it is on the disk before this returns."""
    record = {
        "id": candidate.id,
        "prompt": candidate.prompt.source,
        "responses": candidate.responses,
        "ranks": ranks,
        "annotator": annotator,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record |= more
    append_jsonl(path, [record], sync=sync)
    return record


def comparisons(rankings: Iterable[dict]) -> Pairs:
    """Rankings as pairs. Skipped prompts and equal texts are left out."""
    pairs = {}
    for ranking in rankings:
        ranks, responses = ranking["ranks"], ranking["responses"]
        for i, j in combinations(range(len(ranks)), 2):
            if responses[i] != responses[j] and not ranking.get("skipped"):
                pairs[ranking["id"], i, j] = (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
    return pairs


def agreement(a: Pairs, b: Pairs) -> tuple[float, float, int]:
    """Share of common pairs that two annotators order alike, half its 95 % interval, their number.

    A pair counts 1/2 if one of them has a tie. Prompts are the independent units of the interval.
    """
    alike = defaultdict(list)  # id -> 1, 1/2 or 0 for each common pair
    for pair in a:
        if pair in b:
            alike[pair[0]].append(1 - abs(a[pair] - b[pair]) / 2)
    sums = torch.tensor([sum(values) for values in alike.values()])
    counts = torch.tensor([len(values) for values in alike.values()])
    share = stats.estimate(torch.arange(len(counts)), [sums], [counts])
    return share["mean"], share["interval"], int(counts.sum())


def position_bias(rankings: Iterable[dict]) -> dict[str, float]:
    """Does an AI prefer a position? Of the pairs with a usable answer in both orders:

    flips: the share in which the same letter, A or B, wins both times.
    first: the mean preference for A, minus 1/2.
    """
    asked = [answer for ranking in rankings for answer in ranking["asked"]]
    answers = [(once, swapped) for *_, once, swapped in asked if None not in (once, swapped)]
    count = max(1, len(answers))
    flips = sum((once > 0.5) == (swapped > 0.5) for once, swapped in answers)
    first = sum(once + swapped - 1 for once, swapped in answers)
    return {"flips": flips / count, "first": first / 2 / count, "pairs": len(answers)}


def summarize(data: str, compare: str = "") -> str:
    """What each annotator did, how fast, and whether they agree with themselves and each other.

    compare: more files of rankings, or a world whose reward is compared where it sees a difference.
    """
    compare_world = compare and world.find(compare)
    if compare and not compare_world:
        data = f"{data},{compare}"
    annotators = _by_annotator(data)
    lines, pairs = [], {}
    for name, rankings in annotators.items():
        pairs[name] = comparisons(r for r in rankings if not r.get("repeat"))
        again = comparisons(r for r in rankings if r.get("repeat"))
        lines.append(f"{name}: {_activity(rankings, pairs[name])}")
        if again:
            lines.append(f"    agrees with themselves: {_agree(pairs[name], again)}")
        by_ai = [r for r in rankings if "asked" in r]
        if by_ai:
            bias = position_bias(by_ai)
            lines.append(
                f"    the same letter wins in both orders for {bias['flips']:.1%} of "
                f"{bias['pairs']} pairs; mean preference for A {bias['first']:+.3f}"
            )
    if compare_world:
        ranked = [r for rankings in annotators.values() for r in rankings]
        pairs[f"{compare}'s reward"] = _reward_pairs(compare, ranked)
    lines += _agreements(pairs)
    return "\n".join(lines)


def _by_annotator(data: str) -> dict[str, list[dict]]:
    """Rankings of the same candidates by annotator; a copy of a ranking counts once."""
    annotators, responses = {}, {}
    for where, record in records(data, "rankings"):
        if not is_ranking(record):
            raise UserError(f"{where}: this is no ranking that label.py wrote")
        key, name = record["id"], record["annotator"]
        if responses.setdefault(key, record["responses"]) != record["responses"]:
            raise UserError(f"{where}: id {key!r} has other responses than before")
        rankings = annotators.setdefault(name, {})
        earlier = rankings.setdefault((key, bool(record.get("repeat"))), record)
        if earlier["ranks"] != record["ranks"]:
            raise UserError(
                f"{where}: {name} ranked id {key!r} otherwise before: "
                "give each annotator a --name of their own"
            )
    return {name: list(rankings.values()) for name, rankings in annotators.items()}


def is_ranking(record: dict) -> bool:
    """Whether a record has the fields that a summary needs, with values that they can have."""
    ranks, responses = record.get("ranks"), record.get("responses")
    asked, policies = record.get("asked", []), record.get("policies", responses)
    if not all(isinstance(value, list) for value in (ranks, responses, asked, policies)):
        return False
    if not all(isinstance(question, list) and len(question) == 4 for question in asked):
        return False
    numbers = [record.get("seconds", 0), *ranks]
    for *_, once, swapped in asked:
        numbers += [preference for preference in (once, swapped) if preference is not None]
    return (
        isinstance(record.get("id"), str | int)
        and isinstance(record.get("annotator"), str)
        and isinstance(record.get("prompt"), str | list)
        and len(ranks) == len(responses) == len(policies)
        and all(isinstance(text, str) for text in (*responses, *policies))
        and all(isinstance(number, int | float) and abs(number) < 1e9 for number in numbers)
    )


def _activity(rankings: list[dict], pairs: Pairs) -> str:
    counts = Counter(field for ranking in rankings for field in ranking)
    ties = list(pairs.values()).count(0) / max(1, len(pairs))
    text = (
        f"{len(rankings) - counts['skipped']} rankings, {counts['skipped']} skipped, "
        f"{ties:.0%} of pairs tied, {counts['all_bad']} times all bad, "
        f"{counts['harmful']} with harmful responses"
    )
    seconds = [ranking["seconds"] for ranking in rankings if "seconds" in ranking]
    if seconds:
        text += f", {60 / max(0.1, median(seconds)):.1f} labels/min"
    return text


def _agreements(pairs: dict[str, Pairs]) -> list[str]:
    """Every two annotators; or each and the mean of the others, where there are many."""
    lines = []
    if len(pairs) <= MOST_PAIRED:
        for a, b in combinations(pairs, 2):
            lines.append(f"{a} and {b} agree: {_agree(pairs[a], pairs[b])}")
        return lines
    total, count = Counter(), Counter()
    for own in pairs.values():
        for pair, order in own.items():
            total[pair] += order
            count[pair] += 1
    for name, own in pairs.items():
        shared = [pair for pair in own if count[pair] > 1]
        others = {pair: (total[pair] - own[pair]) / (count[pair] - 1) for pair in shared}
        lines.append(f"{name} and the others agree: {_agree(own, others)}")
    return lines


def _agree(a: Pairs, b: Pairs) -> str:
    share, interval, count = agreement(a, b)
    if not count:
        return "no common pairs"
    half_width = "" if math.isnan(interval) else f" ±{interval:.2f}"
    return f"{share:.2f}{half_width} on {count} pairs"


def _reward_pairs(name: str, rankings: list[dict]) -> Pairs:
    """Every prompt that was ranked, as the world's reward compares its responses; no ties."""
    module = world.load(name, "--compare", "reward")
    kind = getattr(module, "kind", str)
    scored = []
    for ranking in {r["id"]: r for r in rankings}.values():
        prompt, responses = ranking["prompt"], ranking["responses"]
        if kind(prompt) == "other":
            raise UserError(f"--compare {name}: the prompt {str(prompt)[:60]!r} is none of its own")
        scores = module.reward([prompt] * len(responses), responses)
        scored.append(ranking | {"ranks": rank_by(scores), "skipped": False})
    return {pair: order for pair, order in comparisons(scored).items() if order}
