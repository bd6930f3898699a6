"""Intervals against formulas and simulations."""

import math

import pytest
import torch

from minirlhf import stats

P = 60


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_jackknife_is_the_linearised_interval_of_a_ratio(draw):
    over, under = draw(P) ** 2, draw(P) ** 2 + 1
    ratio = over.sum() / under.sum()
    variance = (over - ratio * under).square().sum() * P / (P - 1)
    half = 1.96 * float(variance.sqrt() / under.sum())
    cell = stats.estimate(torch.arange(P), [over], [under])
    assert cell["mean"] == pytest.approx(float(ratio)) and cell["prompts"] == P
    assert cell["interval"] == pytest.approx(half, rel=0.05)


def test_a_mean_has_the_usual_interval_and_samples_of_one_prompt_tell_no_more(draw):
    x = draw(P)
    half = float(1.96 * x.std() / P**0.5)
    for cell in (stats.mean_of(x), stats.mean_of(x[:, None].repeat(1, 50))):
        assert cell["mean"] == pytest.approx(float(x.mean()))
        assert cell["interval"] == pytest.approx(half) and cell["prompts"] == P


def test_accuracys_interval_covers_what_it_should(draw):
    """Right on 70 % of pairs, six to a prompt and correlated: 95 intervals of 100 hold the 70 %."""
    prompt = torch.arange(P).repeat_interleave(6)
    covered = 0
    for _ in range(200):
        hit = (draw(P, 1) + draw(P, 6) < 0.5244 * math.sqrt(2)).double()
        cell = stats.accuracy(prompt, (2 * hit - 1).flatten())
        covered += abs(cell["mean"] - 0.7) <= cell["interval"]
    assert 180 <= covered <= 198


def test_accuracy_of_unanimous_few_and_no_prompts():
    ones = torch.ones(30)
    unanimous = stats.accuracy(torch.arange(30), ones)
    assert unanimous["mean"] == 1 and unanimous["interval"] == pytest.approx(0.1)
    assert unanimous["pairs"] == 30
    assert stats.mean_of(0 * ones)["interval"] == 0  # not a share: no rule of three
    assert stats.mean_of(ones, share=True)["interval"] == pytest.approx(0.1)
    assert stats.mean_of(ones / 2, share=True)["interval"] == 0  # a model against itself
    one_prompt = stats.accuracy(torch.zeros(30, dtype=torch.long), ones)
    assert one_prompt["mean"] == 1 and math.isnan(one_prompt["interval"])
    none = stats.accuracy(torch.zeros(0, dtype=torch.long), ones[:0])
    assert math.isnan(none["mean"]) and none["prompts"] == 0
    assert stats.accuracy(torch.arange(2), torch.zeros(2))["mean"] == 0.5  # ties


def test_calibration_of_a_bradley_terry_judge(draw):
    log_odds = 2 * draw(3000)
    is_right = (
        torch.rand(3000, generator=torch.Generator().manual_seed(1)) < log_odds.abs().sigmoid()
    )
    margin = torch.where(is_right, log_odds.abs(), -log_odds.abs())
    curve = stats.calibration(torch.arange(3000), margin)
    assert [part["pairs"] for part in curve] == [500] * 6
    assert all(abs(part["predicted"] - part["accuracy"]) < 2 * part["interval"] for part in curve)
    differences = [part["difference"] for part in curve]
    assert differences == sorted(differences)
    assert stats.calibration(torch.arange(2), margin[:2], count=6)[-1]["pairs"] == 1


def test_correlation():
    x = torch.arange(5.0)
    assert stats.correlation(x, 3 - 2 * x) == pytest.approx(-1)
    assert stats.correlation(x, torch.ones(5)) == 0
