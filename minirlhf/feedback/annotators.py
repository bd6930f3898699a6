"""What annotators did, and how well they agree: label.py --summary."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from statistics import median

import torch

from minirlhf import UserError, stats, world
from minirlhf.cli import one_line
from minirlhf.feedback.rankings import is_ranking, rank_by
from minirlhf.records import records

# (id, i, j) -> 1 if response i is better than j, 0 if tied, -1 if worse; or a mean of these
Pairs = dict[tuple, float]
MOST_PAIRED = 8  # annotators; of more than these each is compared with all the others together


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
    share = stats.estimate(torch.arange(len(counts)), [sums], [counts], share=True)
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
        lines.append(f"{one_line(name)}: {_activity(rankings, pairs[name])}")
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
            agreed = _agree(pairs[a], pairs[b])
            lines.append(f"{one_line(a)} and {one_line(b)} agree: {agreed}")
        return lines
    total, count = Counter(), Counter()
    for own in pairs.values():
        for pair, order in own.items():
            total[pair] += order
            count[pair] += 1
    for name, own in pairs.items():
        shared = [pair for pair in own if count[pair] > 1]
        others = {pair: (total[pair] - own[pair]) / (count[pair] - 1) for pair in shared}
        lines.append(f"{one_line(name)} and the others agree: {_agree(own, others)}")
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
