"""Rankings by simulated annotators."""
import math
import random

import pytest

from minirlhf import UserError, feedback, toyworld
from minirlhf.feedback import rank_by


def test_without_noise_ranks_follow_utility_and_ties_tie():
    assert rank_by([0.1, 3.0, -1.0, 3.0]) == [2, 1, 3, 1]
    assert rank_by([5.0]) == [1]
    rng = random.Random(0)
    for _ in range(200):
        u = [rng.randint(0, 4) for _ in range(rng.randint(1, 7))]
        ranks = rank_by(u)
        assert all((u[i] > u[j]) == (ranks[i] < ranks[j]) for i in range(len(u)) for j in range(len(u)))
        assert set(ranks) == set(range(1, max(ranks) + 1))


def test_noise_is_bradley_terrys():
    rng = random.Random(0)
    for gap in (0.3, 1.0):
        flipped = sum(rank_by([0.0, gap, -9.0], 0.5, rng)[:2] == [1, 2] for _ in range(20000)) / 20000
        assert flipped == pytest.approx(1 / (1 + math.exp(gap / 0.5)), abs=0.012)


def test_an_annotator_depends_on_seed_and_prompt_only():
    prompts = toyworld.prompts("train", 30, 0)
    responses = [d["completion"] for d in toyworld.demonstrations("train", 30, 0)]
    annotate = feedback.toy_annotator(noise=0.3, seed=1)
    one = [annotate(p, responses[:4]) for p in prompts]
    two = {p: annotate(p, responses[:4]) for p in reversed(prompts)}
    assert one == [two[p] for p in prompts]
    assert one != [feedback.toy_annotator(noise=0.3, seed=2)(p, responses[:4]) for p in prompts]


def test_a_bias_towards_length_makes_longer_win():
    def longer_wins(bias):
        annotate, wins = feedback.toy_annotator(noise=0.0, bias=bias), 0
        pairs = list(zip(toyworld.demonstrations("train", 300, 0), toyworld.demonstrations("train", 300, 1)))
        for a, b in pairs:
            texts = sorted((a["completion"], b["completion"]), key=lambda t: len(t.split()))
            wins += annotate(a["prompt"], texts) == [2, 1]
        return wins / len(pairs)
    assert longer_wins("length=1.0") > longer_wins("") + 0.2
    with pytest.raises(UserError, match="features are"):
        feedback.toy_annotator(bias="charm=1")
    with pytest.raises(UserError, match="write feature=weight"):
        feedback.toy_annotator(bias="length")


def test_candidates_are_checked(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "prompt": "p", "responses": ["x", "y"]}\n' * 2)
    with pytest.raises(UserError, match=r"line 2.*twice"):
        feedback.read_candidates(str(path))
