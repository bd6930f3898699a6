"""How well a reward agrees with pairs or rankings, beside a baseline that only counts.

`python evaluate.py --reward out/rm --data pairs.jsonl` prints it for any reward.
"""

from itertools import combinations

import torch
from torch import Tensor

from minirlhf import UserError, stats
from minirlhf.data import Ranking
from minirlhf.rewards import RewardFn, TrainedReward

SCORED_AT_ONCE = 256  # rankings
WORDS = {
    "accuracy": "accuracy",
    "longer_wins": "choosing the longer response",
    "where_longer": "where the better is longer",
    "where_shorter": "where the better is shorter",
}


def measure(reward: RewardFn, rankings: list[Ranking]) -> dict:
    """Accuracy on the rankings' comparisons and what length alone would have (stats.beside_length,
    in characters), accuracy by the records' field "subset", a reward model's calibration."""
    rankings = readable(reward, rankings)
    compared = [ranking for ranking in rankings for _ in untied(ranking)]
    margin, length = margins(reward, rankings)
    scored = (~margin.isnan()).nonzero()[:, 0].tolist()  # N of them
    if len(scored) < len(compared):
        print(f"no score for {len(compared) - len(scored)} of {len(compared)} comparisons")
    if not scored:
        raise UserError("the reward gives None for one response of each comparison, or both")
    compared = [compared[i] for i in scored]
    margin, length = margin[scored], length[scored]  # (N,)
    prompt = stats.numbered(ranking.prompt.first_request() for ranking in compared)  # (N,)
    result = stats.beside_length(prompt, margin, length)

    subsets = [str(ranking.prompt.columns.get("subset", "")) for ranking in compared]
    result["subsets"] = {}
    for name in sorted(set(subsets) - {""}):
        rows = torch.tensor([subset == name for subset in subsets])  # (N,)
        result["subsets"][name] = stats.accuracy(prompt[rows], margin[rows])
    if isinstance(reward, TrainedReward):
        log_odds = margin * reward.model.config.score_std  # as they were learned
        result["calibration"] = stats.calibration(prompt, log_odds)
    return result


def readable(reward: RewardFn, rankings: list[Ranking]) -> list[Ranking]:
    """Those whose prompt leaves a response room in a reward model's context; others are counted."""
    kept = rankings
    for model in getattr(reward, "functions", [reward]):  # of an ensemble
        if isinstance(model, TrainedReward):
            kept = [ranking for ranking in kept if model.has_room(ranking.prompt)]
    skipped = f"{len(rankings) - len(kept)} of {len(rankings)} rankings"
    if not kept:
        raise UserError(f"{skipped} have prompts that are too long for the reward model's context")
    if len(kept) < len(rankings):
        print(f"data: {skipped} skipped: prompts too long for the reward model's context")
    return kept


def untied(ranking: Ranking) -> list[tuple[int, int]]:
    """Pairs of responses, by their numbers: the better and the worse."""
    pairs = []
    for i, j in combinations(range(len(ranking.ranks)), 2):
        if ranking.ranks[i] < ranking.ranks[j]:
            pairs.append((i, j))
        elif ranking.ranks[j] < ranking.ranks[i]:
            pairs.append((j, i))
    return pairs


def margins(reward: RewardFn, rankings: list[Ranking]) -> tuple[Tensor, Tensor]:
    """How much more the better response of each comparison has: of the reward, of characters."""
    rewards = []
    lengths = []
    for first in range(0, len(rankings), SCORED_AT_ONCE):
        part = rankings[first : first + SCORED_AT_ONCE]
        prompts = [ranking.prompt for ranking in part for _ in ranking.responses]
        scores = iter(reward(prompts, [text for ranking in part for text in ranking.responses]))
        for ranking in part:
            own = [next(scores) for _ in ranking.responses]
            for better, worse in untied(ranking):
                rewards.append(own[better] - own[worse])
                lengths.append(len(ranking.responses[better]) - len(ranking.responses[worse]))
    return torch.tensor(rewards).double(), torch.tensor(lengths).double()


def warning(beside_length: dict) -> str:
    """Whether accuracy is no better than something that reads nothing; "" if it is better."""
    accuracy, lead = beside_length["accuracy"], beside_length["lead"]
    if not accuracy["mean"] - accuracy["interval"] > 0.5:
        return "0.5 lies inside the interval: no better than a coin, as far as one can see"
    if not lead["mean"] - lead["interval"] > 0:
        ahead = f"{lead['mean']:+.3f} ± {lead['interval']:.3f}"
        return f"not clearly better than choosing the longer response ({ahead})"
    return ""


def sentences(result: dict) -> list[str]:
    """The numbers of `measure` for the console."""
    lines = []
    cells = {words: result[name] for name, words in WORDS.items()} | result["subsets"]
    for words, cell in cells.items():
        if cell["pairs"]:
            share = f"{cell['mean']:.3f} ± {cell['interval']:.3f}"
            lines.append(f"{words:28} {share} of {cell['pairs']} comparisons")
    for row in result.get("calibration", ()):
        real = f"{row['accuracy']:.2f} ± {row['interval']:.2f}"
        lines.append(f"sure to {row['predicted']:.2f}: right in {real}")
    if said := warning(result):
        lines.append(f"warning: {said}")
    return lines
