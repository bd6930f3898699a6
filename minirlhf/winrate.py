"""Who wins, and what responses look like: numbers from texts and their scores.

Score tensors are (P, S): P prompts with S responses each.
"""

from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from types import ModuleType

import torch
from torch import Tensor

from minirlhf import UserError, stats
from minirlhf.data import Prompt
from minirlhf.user_function import as_number, shown

OTHER = "other"  # the kind of a prompt that no world knows


def wins(scores: Tensor, baseline: Tensor) -> Tensor:
    """Share of each prompt's S x S comparisons that are won, (P,); ties count half."""
    difference = scores[:, :, None] - baseline[:, None, :]  # (P, S, S)
    difference = torch.where(difference.abs() < 1e-9, 0.0, difference)
    return stats.right(difference).double().nanmean((1, 2))


def judged(
    judge: Callable, prompts: list[Prompt], responses: list[list[str]], baseline: list[list[str]]
) -> tuple[Tensor, float]:
    """Compare the s-th responses to each prompt -> chances to win (P, S), agreement of both orders.

    Each pair is judged in both orders and the chances are averaged, so that a taste for the first
    place cancels. Equal texts tie without being judged.

    judge: (prompt, [a, b]) -> from 0 (b is better) to 1 (a is better)
    """

    def chance(prompt: Prompt, pair: list[str]) -> float:
        place = f"for {pair[0][:60]!r} against {pair[1][:60]!r}"
        try:
            answer = judge(deepcopy(prompt.source), list(pair))
        except (Exception, SystemExit) as error:
            raise UserError(f"--judge raised {type(error).__name__}: {error} {place}") from error
        number = as_number(answer)
        if number is None or not 0 <= number <= 1:
            raise UserError(
                f"--judge gave {shown(answer)} {place}: return a number from 0 to 1, how likely "
                "the first response is the better one"
            )
        return number

    rows = []
    for prompt, row, baseline_row in zip(prompts, responses, baseline, strict=True):
        for a, b in zip(row, baseline_row, strict=True):
            if a == b:
                rows.append((0.5, 0.5))
            else:
                rows.append((chance(prompt, [a, b]), 1 - chance(prompt, [b, a])))
    chances = torch.tensor(rows, dtype=torch.float64)  # (P * S, 2)
    winner = (chances - 0.5).sign()
    agreement = float((winner[:, 0] == winner[:, 1]).double().mean())
    return chances.mean(1).view(len(prompts), -1), agreement


def distinct_ngrams(responses: list[str], n: int) -> float:
    """Share of distinct ones among all n-grams of words (Li 2016).

    Compare equal amounts of text: the more text, the lower.
    """
    grams = []
    for response in responses:
        words = response.split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def ranked_right(scores: Tensor, gold: Tensor) -> dict:
    """How often scores order two responses to a prompt as gold does, where gold sees a difference.

    As of stats.accuracy.
    """
    prompt, (better, worse) = pairs(gold, scores)
    return stats.accuracy(prompt, better - worse)


def pairs(gold: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
    """All N pairs of responses to one prompt of which gold finds one better, without NaN.

    gold, features: (P, S)
    Returns each pair's prompt (N,), and each feature of the better and the worse response (2, N).
    """
    unknown = torch.stack(features).isnan().any(0)  # (P, S)
    gold = gold.masked_fill(unknown, torch.nan)
    margin = gold[:, :, None] - gold[:, None, :]  # (P, S, S)
    prompt, better, worse = (margin > 1e-9).nonzero(as_tuple=True)
    gathered = [torch.stack([x[prompt, better], x[prompt, worse]]).double() for x in features]
    return prompt, *gathered


def kinds_of(prompts: list[Prompt], world: ModuleType | None) -> list[str]:
    """The kind of each request, where the world tells kinds."""
    if not hasattr(world, "kind"):
        return [OTHER] * len(prompts)
    return [world.kind(prompt.source) for prompt in prompts]


def assess(
    prompts: list[Prompt],
    responses: list[list[str]],
    world: ModuleType | None = None,
    gold: Tensor | None = None,
) -> dict:
    """What texts and their gold scores tell.

    responses: P x S
    world: may tell kinds of requests, which of them are open-ended, and parts of a gold score
    gold: (P, S) scores of a hidden judge
    """
    kinds = kinds_of(prompts, world)
    texts = [text for row in responses for text in row]
    open_ended = (*getattr(world, "OPEN_ENDED", kinds), OTHER)
    rows = [row for row, kind in zip(responses, kinds, strict=True) if kind in open_ended]
    open_texts = [text for row in rows for text in row]
    words = [[len(text.split()) for text in row] for row in responses]
    result = {
        "words": stats.mean_of(torch.tensor(words)),
        "distinct_open_ended": len(set(open_texts)) / max(1, len(open_texts)),
        "distinct_ngrams": {str(n): distinct_ngrams(texts, n) for n in (1, 2, 3)},
        "responses": len(texts),
    }
    if gold is not None:
        result["gold"] = stats.mean_of(gold)
        result["kinds"] = {}
        for name in sorted(set(kinds)):
            of_kind = torch.tensor([kind == name for kind in kinds])  # (P,)
            result["kinds"][name] = stats.mean_of(gold[of_kind])
    if hasattr(world, "gold_parts") and OTHER not in kinds:
        result["parts"] = mean_parts(prompts, responses, world.gold_parts)
    return result


def mean_parts(prompts: list[Prompt], responses: list[list[str]], gold_parts: Callable) -> dict:
    """The mean of each part but the total."""
    values = defaultdict(list)
    for prompt, row in zip(prompts, responses, strict=True):
        parts = [gold_parts(prompt.source, text) for text in row]
        for name in parts[0]:
            values[name].append([part[name] for part in parts])
    values.pop("total", None)
    return {name: stats.mean_of(torch.tensor(table)) for name, table in values.items()}
