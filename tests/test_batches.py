"""Splits, epochs, micro-batches, padding."""

import random

import pytest
import torch

from minirlhf import UserError
from minirlhf.batches import batch_indices, draw, fit, held_out, micro_batches, pad


def prompt_of(item):
    return item[0]


def test_held_out_keeps_a_prompts_records_together():
    items = [(f"prompt {i % 50}", i) for i in range(200)]
    train, validation = held_out(items, prompt_of, fraction=0.2, seed=1)
    assert sorted(train + validation, key=lambda item: item[1]) == items
    assert train == sorted(train, key=lambda item: item[1])
    validation_prompts = {prompt for prompt, _ in validation}
    assert validation_prompts.isdisjoint(prompt for prompt, _ in train)
    assert 4 <= len(validation_prompts) <= 16


def test_held_out_depends_on_the_seed_and_each_prompt_alone():
    items = [(f"prompt {i % 50}", i) for i in range(200)]
    train, validation = held_out(items, prompt_of, fraction=0.2, seed=1)
    assert (train, validation) == held_out(items, prompt_of, fraction=0.2, seed=1)
    assert validation != held_out(items, prompt_of, fraction=0.2, seed=2)[1]
    more_train, more_validation = held_out([*items, ("new", 200)], prompt_of, 0.2, seed=1)
    assert set(validation) <= set(more_validation)
    assert set(train) <= set(more_train)


def test_held_out_of_few():
    for seed in range(20):
        for fraction in (0.01, 0.99):
            train, validation = held_out(["a", "b"], str, fraction, seed)
            assert len(train) == len(validation) == 1
    assert held_out(["a", "a"], str) in ((["a", "a"], []), ([], ["a", "a"]))
    assert held_out(["a", "b"], str, fraction=0) == (["a", "b"], [])
    assert held_out([], str) == ([], [])


def test_held_out_takes_turns_with_lone_surrogates():
    items = [((("user", f"\ud800 {i}"),), i) for i in range(10)]
    train, validation = held_out(items, prompt_of)
    assert len(train) + len(validation) == 10


def test_draws_are_of_all_items_in_their_order():
    assert draw(list("abc"), 3, seed=0) == draw(list("abc"), 9, seed=1) == list("abc")
    drawn = [draw(list(range(100)), 10, seed) for seed in range(50)]
    assert all(items == sorted(set(items)) and len(items) == 10 for items in drawn)
    assert 40 < sum(map(sum, drawn)) / 500 < 60 and drawn[0] != drawn[1]


def test_batches_are_epochs_of_permutations():
    n, size = 10, 4
    stream = [i for step in range(15) for i in batch_indices(n, step, size, seed=3)]
    for epoch in range(6):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert stream[:n] != stream[n : 2 * n]
    assert batch_indices(n, 7, size, seed=3) == stream[28:32]
    assert batch_indices(n, 7, size, seed=4) != stream[28:32]
    assert len(batch_indices(3, 0, 8, seed=0)) == 8


def test_micro_batches_hold_every_row_once_within_the_budget():
    rng = random.Random(0)
    for _ in range(100):
        lengths = [rng.randrange(300) for _ in range(rng.randrange(70))]
        batches = micro_batches(lengths, 500)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= 500


def test_micro_batches_begin_with_the_longest_row():
    assert micro_batches([1, 900], 500) == [[1], [0]]
    assert [len(batch) for batch in micro_batches([10] * 7, 40)] == [4, 3]


def test_pad():
    tokens, lengths = pad([[1, 2, 3], [4], []])
    assert tokens.tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]]
    assert lengths.tolist() == [3, 1, 0]
    assert tokens.dtype == lengths.dtype == torch.long
    assert pad([[]])[0].shape == (1, 0)


def test_fit(capsys):
    assert fit([[1], [1, 2], [1, 2, 3]], 2, "demonstrations") == [[1], [1, 2]]
    assert "1 of 3 demonstrations" in capsys.readouterr().out
    assert fit([([1, 2], "x")], 2, "rows", length=lambda row: len(row[0])) == [([1, 2], "x")]
    assert not capsys.readouterr().out
    assert fit([], 2, "demonstrations") == []
    with pytest.raises(UserError, match="demonstrations"):
        fit([[1, 2, 3]], 2, "demonstrations")
