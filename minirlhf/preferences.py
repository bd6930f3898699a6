"""Rankings as token ids, their scores under a reward model, and how often it orders them right."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from minirlhf import losses, stats
from minirlhf.batches import fit, micro_batches
from minirlhf.data import Prompt, Ranking
from minirlhf.model import ScalarGPT
from minirlhf.packing import Sequence, row_sizes
from minirlhf.tokenizer import Tokenizer
from minirlhf.truncate import encode


@dataclass
class Group:
    """One prompt with its K responses, as token ids: one element of a batch."""

    prompt: Prompt
    prompt_ids: list[int]
    responses: list[list[int]]
    ranks: list[float] = field(default_factory=list)  # 1 = best, ties share a number
    chances: list[list[float]] = field(default_factory=list)  # [i][j]: that i is better than j
    where: str = ""  # "file.jsonl, line 17"

    def first_request(self) -> str:
        return self.prompt.first_request()

    def sequences(self) -> list[Sequence]:
        return [(self.prompt_ids, response) for response in self.responses]

    def tokens(self) -> int:
        """The prompt counts once for the responses that share a row with it."""
        return sum(row_sizes(self.sequences()))

    def longest(self) -> int:
        return len(self.prompt_ids) + max(map(len, self.responses))


def to_groups(
    tokenizer: Tokenizer,
    rankings: list[Ranking],
    context: int,
    soft: bool = True,
    cut: bool = False,
) -> list[Group]:
    """Encode rankings. One with a response that does not fit is skipped whole, and counted.

    soft: take an AI's preferences as chances; otherwise the ranks alone, as chances 0 and 1.
    cut: shorten what does not fit.
    """
    texts = [(ranking.prompt.turns, ranking.responses) for ranking in rankings]
    encoded = encode(tokenizer, texts, context, "rankings", cut)
    groups = []
    for ranking, (prompt_ids, responses) in zip(rankings, encoded):
        for ids in responses:
            ids[-1] = tokenizer.eos_id  # where scores are read, also of a response that was cut
        chances = ranking.preferences
        if not (soft and chances):
            chances = [[float(rank < other) for other in ranking.ranks] for rank in ranking.ranks]
        known = {"ranks": ranking.ranks, "chances": chances, "where": ranking.where}
        groups.append(Group(ranking.prompt, prompt_ids, responses, **known))
    return fit(groups, context, "rankings", length=Group.longest)


def micro_batches_of(groups: list[Group], token_budget: int) -> list[list[int]]:
    """Whole prompts of similar size together."""
    return micro_batches([group.tokens() for group in groups], token_budget)


def group_scores(model: ScalarGPT, groups: list[Group]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, ranks, mask (B, K) and chances (B, K, K); K is the largest number of responses."""
    sequences = [sequence for group in groups for sequence in group.sequences()]
    flat = model.score_sequences(sequences)  # (N,)
    sizes = torch.tensor([len(group.ranks) for group in groups])
    B, K = len(groups), int(sizes.max())
    mask = torch.arange(K) < sizes[:, None]  # (B, K)
    ranks = torch.zeros(B, K)
    chances = torch.zeros(B, K, K)
    for i, group in enumerate(groups):
        size = len(group.ranks)
        ranks[i, :size] = torch.tensor(group.ranks, dtype=torch.float32)
        chances[i, :size, :size] = torch.tensor(group.chances)
    mask = mask.to(model.device)
    scores = torch.zeros(B, K, device=model.device).masked_scatter(mask, flat)
    return scores, ranks.to(model.device), mask, chances.to(model.device)


@torch.no_grad()
def validate(model: ScalarGPT, groups: list[Group], token_budget: int) -> dict:
    """Accuracy on comparisons with its 95 % interval (prompts are independent), calibration.

    All comparisons count alike, whatever their prompt, and as the ranks say: "validation_loss" is
    the mean of -log sigmoid(better score - worse score).
    "beside_length" is that of stats.py, in tokens.
    """
    prompts = []  # of the comparisons: those of one conversation count as one
    margins = []
    lengths = []
    for part in micro_batches_of(groups, token_budget):
        scores, ranks, mask, _ = group_scores(model, [groups[i] for i in part])
        better = losses.untied_pairs(ranks, mask)  # (B, K, K)
        margin = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
        margins += margin[better].tolist()
        for b, i, j in better.nonzero().tolist():
            group = groups[part[b]]
            prompts.append(group.first_request())
            lengths.append(len(group.responses[i]) - len(group.responses[j]))
    prompt = stats.numbered(prompts)  # (N,)
    margin = torch.tensor(margins, dtype=torch.float64)  # (N,)
    length = torch.tensor(lengths, dtype=torch.float64)  # (N,)
    beside_length = stats.beside_length(prompt, margin, length)
    return {
        "validation_accuracy": beside_length["accuracy"]["mean"],
        "validation_interval": beside_length["accuracy"]["interval"],
        "validation_pairs": len(margins),
        "validation_loss": float(softplus(-margin).mean()),
        "beside_length": beside_length,
        "calibration": stats.calibration(prompt, margin),
    }
