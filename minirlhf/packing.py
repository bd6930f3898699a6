"""Several responses to a prompt share one row, so that the prompt is computed once for all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minirlhf.batches import micro_batches, pad

PACKED_TOKENS = 512  # longest row in which responses share a prompt
Sequence = tuple[list[int], list[int]]  # a prompt's ids, and a response's


@dataclass
class Packed:
    """Prompts and their responses as rows of tokens: neighbours that answer one prompt share it.

    A response sees its prompt and itself, at the positions that it would have in a row of its own.
    """

    tokens: Tensor  # (rows, T) int64, right-padded
    positions: Tensor | None  # (rows, T) int64; None where no prompt is shared: 0..T-1
    mask: Tensor | None  # (rows, 1, T, T) bool, who sees whom; None: plain causality
    predicting: tuple[Tensor, Tensor]  # rows and columns (N,) that predict the responses' tokens
    last: tuple[Tensor, Tensor]  # rows and columns (B,) of each response's last token

    def hidden(self, model, wanted: tuple[Tensor, Tensor]) -> Tensor:
        """A model's final hidden states (N, D) at some rows and columns."""
        return model.hidden(self.tokens, positions=self.positions, mask=self.mask, wanted=wanted)


def pack(sequences: list[Sequence], device: torch.device) -> Packed:
    """Prompts' and responses' ids -> rows."""
    rows = []  # of ids
    positions = []  # of each id
    owners = []  # of each id: -1 for a prompt's, else the index of the response
    predicting = []  # (row, column)
    last = []  # (row, column)
    for row, members in enumerate(with_shared_prompts(sequences)):
        prompt, _ = sequences[members[0]]
        ids, position, owner = list(prompt), list(range(len(prompt))), [-1] * len(prompt)
        for i in members:
            _, response = sequences[i]
            begin = len(ids)
            ids += response
            position += range(len(prompt), len(prompt) + len(response))
            owner += [i] * len(response)
            # its first token is predicted by the prompt's last, which may stand far to the left
            columns = [len(prompt) - 1, *range(begin, len(ids) - 1)]
            predicting += [
                (row, column) for column in columns[: len(response)]
            ]  # an empty one has none
            last.append((row, len(ids) - 1))
        rows.append(ids)
        positions.append(position)
        owners.append(owner)

    tokens = pad(rows)[0].to(device)  # (rows, T)
    predicting = torch.tensor(predicting, dtype=torch.long, device=device).view(-1, 2).unbind(1)
    last = torch.tensor(last, device=device).unbind(1)
    if len(rows) == len(sequences):
        return Packed(tokens, None, None, predicting, last)
    owner = pad(owners)[0].to(device)  # (rows, T); padding has some owner, and nobody reads it
    same = owner[:, :, None] == owner[:, None, :]  # (rows, T, T)
    of_prompt = (owner == -1)[:, None, :]  # (rows, 1, T)
    mask = (same | of_prompt).tril()[:, None]
    return Packed(tokens, pad(positions)[0].to(device), mask, predicting, last)


def with_shared_prompts(sequences: list[Sequence]) -> list[list[int]]:
    """Numbers of the sequences in each row: neighbours with one prompt, up to PACKED_TOKENS."""
    rows = []
    length = 0  # of the last row
    for i, (prompt, response) in enumerate(sequences):
        same_prompt = i > 0 and prompt == sequences[i - 1][0]
        if same_prompt and length + len(response) <= PACKED_TOKENS:
            rows[-1].append(i)
        else:
            rows.append([i])
            length = len(prompt)
        length += len(response)
    return rows


def row_sizes(sequences: list[Sequence]) -> list[int]:
    """Tokens of each row that `pack` makes."""
    sizes = []
    for members in with_shared_prompts(sequences):
        prompt, _ = sequences[members[0]]
        sizes.append(len(prompt) + sum(len(sequences[i][1]) for i in members))
    return sizes


def packed_micro_batches(sequences: list[Sequence], token_budget: int) -> list[list[int]]:
    """Indices of the sequences for each forward pass; those that share a row stay together."""
    rows = with_shared_prompts(sequences)
    batches = []
    for part in micro_batches(row_sizes(sequences), token_budget):
        batches.append([i for row in part for i in rows[row]])
    return batches
