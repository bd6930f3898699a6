"""How well a reward agrees with pairs or rankings, beside a baseline that only counts.

`python evaluate.py --reward out/rm --data pairs.jsonl` prints it for any reward.
"""

from itertools import combinations

import torch
from torch import Tensor

from minirlhf import stats
from minirlhf.data import Ranking
from minirlhf.rewards import RewardFn, TrainedReward

SCORED_AT_ONCE = 256  # rankings


def measure(reward: RewardFn, rankings: list[Ranking]) -> dict:
    """Accuracy on the rankings' comparisons, and what length alone would have.

    Each number is a dict with mean, interval and pairs, as of stats.accuracy.
    """
    prompt, margin, length = compared(reward, rankings)
    result = {"accuracy": stats.accuracy(prompt, margin)}
    result["longer_wins"] = stats.accuracy(prompt, length)
    for name, rows in (("chosen_longer", length > 0), ("chosen_shorter", length < 0)):
        if rows.any():
            result[name] = stats.accuracy(prompt[rows], margin[rows])
    subsets = [ranking.prompt.columns.get("subset") for ranking in rankings]
    result["subsets"] = {}
    for name in sorted({str(subset) for subset in subsets if subset is not None}):
        of_subset = torch.tensor([str(subset) == name for subset in subsets])[prompt]  # (N,)
        result["subsets"][name] = stats.accuracy(prompt[of_subset], margin[of_subset])
    if isinstance(reward, TrainedReward):
        log_odds = margin * reward.model.config.score_std
        result["calibration"] = stats.calibration(prompt, log_odds)
    return result


def compared(reward: RewardFn, rankings: list[Ranking]) -> tuple[Tensor, Tensor, Tensor]:
    """All N untied comparisons: the ranking's number, and how much more the better response has of
    the reward and of characters (N,)."""
    scores = []  # of each ranking
    for first in range(0, len(rankings), SCORED_AT_ONCE):
        part = rankings[first : first + SCORED_AT_ONCE]
        prompts = [ranking.prompt for ranking in part for _ in ranking.responses]
        responses = [response for ranking in part for response in ranking.responses]
        flat = reward(prompts, responses)
        for ranking in part:
            size = len(ranking.responses)
            scores.append(flat[:size])
            flat = flat[size:]
    numbers, margins, lengths = [], [], []
    for number, ranking in enumerate(rankings):
        for i, j in combinations(range(len(ranking.ranks)), 2):
            if ranking.ranks[i] == ranking.ranks[j]:
                continue
            better, worse = (i, j) if ranking.ranks[i] < ranking.ranks[j] else (j, i)
            numbers.append(number)
            margins.append(scores[number][better] - scores[number][worse])
            lengths.append(len(ranking.responses[better]) - len(ranking.responses[worse]))
    columns = (torch.tensor(x, dtype=torch.float64) for x in (margins, lengths))
    return torch.tensor(numbers), *columns


def sentences(result: dict) -> list[str]:
    """The numbers of `measure` for the console."""

    def share(cell: dict) -> str:
        return f"{cell['mean']:.3f} ± {cell['interval']:.3f} of {cell['pairs']} comparisons"

    lines = [f"accuracy                     {share(result['accuracy'])}"]
    lines.append(f"choosing the longer response {share(result['longer_wins'])}")
    for name, words in (
        ("chosen_longer", "where the better is longer "),
        ("chosen_shorter", "where the better is shorter"),
    ):
        if name in result:
            lines.append(f"{words}  {share(result[name])}")
    for name, cell in result["subsets"].items():
        lines.append(f"{name:28} {share(cell)}")
    for row in result.get("calibration", ()):
        lines.append(
            f"sure to {row['predicted']:.2f}: right in {row['accuracy']:.2f} "
            f"± {row['interval']:.2f}"
        )
    accuracy, baseline = result["accuracy"], result["longer_wins"]
    if accuracy["mean"] - accuracy["interval"] <= baseline["mean"]:
        lines.append("warning: not clearly better than choosing the longer response")
    return lines
