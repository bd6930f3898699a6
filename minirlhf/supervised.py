"""The language-model loss on demonstrations, for SFT and for PPO's pretraining mix."""

import torch
from torch import Tensor

from minirlhf.batches import fit, micro_batches, pad
from minirlhf.chat import Turns
from minirlhf.model import GPT
from minirlhf.truncate import say_cut, shorten_beside

Row = tuple[list[int], list[bool]]  # token ids, and which of them are supervised


def to_rows(model: GPT, demonstrations: list[Turns], cut: bool = False) -> list[Row]:
    """Conversations -> token ids and loss masks.

    A plain text longer than the context becomes several rows. A dialogue that is too long is
    skipped, and the skips are counted. cut: it is shortened.
    """
    context = model.config.n_positions
    texts = []
    dialogues = []
    count = 0
    for turns in demonstrations:
        ids, mask = model.tokenizer.render(turns)
        if turns[0] == ("text", ""):
            for start in range(0, len(ids) - 1, context):
                end = start + context
                texts.append((ids[start:end], mask[start:end]))
            continue
        if cut and len(ids) > context:
            *prompt, (role, answer) = turns
            if prompt:
                prompt = shorten_beside(model.tokenizer, tuple(prompt), [answer], context)
            ids, mask = model.tokenizer.render((*prompt, (role, answer)))
            if any(mask[:context]):  # else the system turn leaves no room
                ids, mask = ids[:context], mask[:context]
                count += 1
        dialogues.append((ids, mask))
    say_cut(count, len(demonstrations), "demonstrations", context)
    dialogues = fit(dialogues, context, "demonstrations", length=row_length)
    return texts + dialogues


def row_length(row: Row) -> int:
    return len(row[0])


def row_prompt(row: Row) -> tuple[int, ...]:
    """What a demonstration answers: a key for held_out. A row of plain text stands for itself."""
    ids, mask = row
    start = mask.index(True)
    return tuple(ids[:start]) if start > 1 else tuple(ids)


def supervised_tokens(rows: list[Row]) -> int:
    """A row's first token has nothing to be predicted from."""
    return sum(sum(mask[1:]) for _, mask in rows)


def lm_loss(model: GPT, rows: list[Row], total: int) -> Tensor:
    """Sum of -log p over the rows' supervised tokens / total -> 0-d, nats.

    With the whole step's count as the total, the losses of micro-batches add up to its mean.
    """
    tokens, _ = pad([ids for ids, _ in rows])  # (B, T)
    mask, _ = pad([mask for _, mask in rows])  # (B, T)
    tokens = tokens.to(model.device)
    supervised = mask[:, 1:].bool().to(model.device)  # (B, T - 1)
    hidden = model.hidden(tokens[:, :-1], wanted=supervised)  # (N, D)
    targets = tokens[:, 1:][supervised]  # (N,)
    return -model.token_logprobs(hidden, targets).sum() / total


def add_gradient(model: GPT, rows: list[Row], token_budget: int, weight: float = 1.0) -> float:
    """Add the gradient of weight * the rows' mean loss, in micro-batches. Returns the loss."""
    total = supervised_tokens(rows)
    loss = 0.0
    for part in micro_batches([row_length(row) for row in rows], token_budget):
        part_loss = lm_loss(model, [rows[i] for i in part], total)
        (weight * part_loss).backward()
        loss += part_loss.item()
    return loss


@torch.no_grad()
def validation_loss(model: GPT, rows: list[Row], token_budget: int) -> float:
    """Mean -log p of the supervised tokens, nats."""
    total = supervised_tokens(rows)
    loss = 0.0
    for part in micro_batches([row_length(row) for row in rows], token_budget):
        loss += float(lm_loss(model, [rows[i] for i in part], total))
    return loss
