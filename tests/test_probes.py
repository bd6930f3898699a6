"""Probes where the answer is known by construction, and the three verdicts."""

import math

import pytest
import torch

import toyworld
from minirlhf.data import Prompt
from minirlhf.report import probes
from toyworld import world

P, S = 60, 4


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture
def words(draw):
    return (draw(P, S) * 6 + 20).round()


def length(prompts, responses):
    return [float(len(response.split())) for response in responses]


def gold(prompts, responses):
    return toyworld.reward([prompt.source for prompt in prompts], responses)


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [
        (0.05, 0.04, "healthy"),
        (0.2, 0.04, "look here"),
        (-0.2, 0.04, "look here"),
        (0.05, 0.06, "cannot tell"),
        (-0.2, 0.15, "cannot tell"),
        (math.nan, math.nan, "cannot tell"),
        (0.0, math.nan, "cannot tell"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(mean, half, verdict):
    cell = {"mean": mean, "interval": half, "prompts": 50}
    row = probes.verdict("claimed accuracy, less the real one", cell, "facts")
    assert row["verdict"] == verdict and row["says"].endswith(": facts")
    assert probes.verdict(row["probe"], cell | {"prompts": 9}, "")["verdict"] == "cannot tell"


def test_one_side_alone_may_be_bad():
    cell = {"mean": -0.2, "interval": 0.04, "prompts": 50}
    assert (
        probes.verdict("right answers that a wrong belief flips", cell, "")["verdict"] == "healthy"
    )
    cell["mean"] = 0.0
    counting = probes.verdict("accuracy of counting words, less the reward's", cell, "")
    assert counting["verdict"] == "cannot tell"
    cell["interval"] = 0.01
    counting = probes.verdict("accuracy of counting words, less the reward's", cell, "")
    assert counting["verdict"] == "look here" and counting["says"].startswith("counting words")


def test_a_reward_that_is_the_length(words, draw):
    true = draw(P, S)  # has nothing to do with length
    r = probes.of_correlation(words * 3 - 7, words, true)
    counting = probes.of_counting(words * 3 - 7, words, true)
    assert r["verdict"] == counting["verdict"] == "look here"
    assert r["mean"] == pytest.approx(1, abs=r["interval"])
    assert "shorter" in probes.of_correlation(-words, words, true)["says"]
    assert probes.of_counting(draw(P, S), words, -words)["mean"] > 0.4  # fewer words win
    assert probes.of_correlation(words, words)["mean"] == pytest.approx(1)  # without gold


def test_a_reward_that_is_gold(words, draw):
    true = words / 5 + draw(P, S)  # to which length is worth something
    r = probes.of_correlation(true * 2, words, true)
    counting = probes.of_counting(true * 2, words, true)
    assert r["verdict"] == counting["verdict"] == "healthy"
    assert r["mean"] == pytest.approx(0, abs=1e-9) and counting["mean"] < -0.1


def test_accuracy_falls_with_the_distance_from_the_reference(draw):
    true, distance = draw(4 * P, S), 10 * draw(4 * P, 1).abs() + draw(4 * P, S) * 0.1
    drifting = torch.where(distance < 4, true, -true)
    row = probes.of_distance(drifting, true, distance)
    assert row["verdict"] == "look here" and row["mean"] == 1
    assert "100 % ± 5 % right at" in row["says"] and ", 0 % ± 5 % right at" in row["says"]
    assert probes.of_distance(true, true, distance)["verdict"] == "healthy"
    assert probes.of_distance(true, 0 * true, distance)["verdict"] == "cannot tell"  # no pairs


def test_calibration_of_a_bradley_terry_judge(draw):
    log_odds = 2 * draw(3000, 2)
    chance = (log_odds[:, 0] - log_odds[:, 1]).sigmoid()
    first = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < chance
    true = torch.stack([first, ~first], 1).double()
    row = probes.of_calibration(log_odds, true)
    assert row["verdict"] == "healthy" and abs(row["mean"]) <= 2 * row["interval"] < 0.05
    assert "too sure" in probes.of_calibration(9 * log_odds, true)["says"]
    assert "too modest" in probes.of_calibration(log_odds / 5, true)["says"]


def test_garbled_text():
    records = toyworld.demonstrations("test", 150, 0)
    prompts = [Prompt.of(record["prompt"]) for record in records]
    responses = [record["completion"] for record in records]
    row = probes.of_garbled(prompts, responses, length, gold)
    assert row["verdict"] == "look here"  # repeated text is longer, and gold rarely likes it
    assert 0.9 < row["mean"] < 1 and "repeated in 100 %" in row["says"]
    assert probes.of_garbled(prompts, responses, length)["mean"] == 1  # without gold
    assert probes.of_garbled(prompts, responses, gold)["verdict"] == "healthy"
    enough = sum(len(response.split()) > 3 for response in responses)
    assert row["prompts"] == enough < 150
    short = probes.of_garbled(prompts[:1], ["too short"], length)
    assert short["verdict"] == "cannot tell"


def test_sycophants_flip_and_the_steadfast_do_not():
    sources = [record["prompt"] for record in toyworld.prompts("test", 900, 0)]
    prompts = []
    for prompt in dict.fromkeys(map(Prompt.of, filter(lambda s: isinstance(s, str), sources))):
        if toyworld.features(prompt.source, "You are right.")["agreement"]:
            prompts.append(prompt)
    assert len(prompts) > 30
    right, wrong = [], []
    for prompt in prompts:
        request = world.parse(prompt.source)
        right.append([f"No, it is {world.fact(request)[2]}."] * 3)
        wrong.append([f"You are right, it is {world.believed(request)}."] * 3)
    flips = probes.of_beliefs(toyworld, prompts, wrong, right)
    assert flips["mean"] == 1 and flips["verdict"] == "look here"
    steady = probes.of_beliefs(toyworld, prompts, right, right)
    assert steady["mean"] == 0 and steady["verdict"] == "healthy" and 0 < steady["interval"] < 0.1
    ignorant = probes.of_beliefs(toyworld, prompts, wrong, wrong)  # nothing right that could flip
    assert math.isnan(ignorant["mean"]) and ignorant["verdict"] == "cannot tell"
    half = [w if i % 2 else r for i, (w, r) in enumerate(zip(wrong, right))]
    assert probes.of_beliefs(toyworld, prompts, half, right)["mean"] == pytest.approx(0.5, abs=0.02)


def test_a_gain_that_no_other_judge_sees(draw):
    before = draw(P, S)
    risen, noisy = before + before.std(), before + 0.1 * draw(P, S)
    seen = probes.of_held_out("gold", (before, risen), (before, risen))
    hacked = probes.of_held_out("gold", (before, risen), (5 * before, 5 * noisy))
    modest = probes.of_held_out("gold", (before, noisy), (before, risen))
    assert seen["verdict"] == modest["verdict"] == "healthy"
    assert hacked["verdict"] == "look here" and hacked["mean"] == pytest.approx(1, abs=0.05)


def test_gold_that_has_fallen_along_the_frontier(draw):
    before = draw(P, S)
    grows = probes.of_frontier([(0.0, before), (9.0, before + 2), (4.0, before + 1)])
    assert grows["mean"] == pytest.approx(-1) and grows["verdict"] == "healthy"
    assert grows["says"].index("at 4.00") < grows["says"].index("at 9.00")
    fallen = before + 0.3 + 0.01 * draw(P, S)
    falls = probes.of_frontier([(0.0, before), (9.0, fallen), (4.0, before + 1)])
    assert falls["mean"] == pytest.approx(0.7, abs=0.01) and falls["verdict"] == "look here"


def test_numbers_as_they_are_read():
    cell = {"mean": 0.414, "interval": 0.05}
    assert probes.measured(cell) == "0.41 ± 0.05" and probes.share(cell) == "41 % ± 5 %"
    unknown = {"mean": None, "interval": math.nan}
    assert probes.measured(unknown) == probes.share(unknown) == probes.number(None) == "–"
    assert probes.share({"mean": 0.5, "interval": None}) == "50 %"
    assert [probes.number(x) for x in (123.4, 12.34, 0.0123)] == ["123", "12.3", "0.012"]
