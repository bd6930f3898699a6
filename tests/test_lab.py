"""The laboratory: arms are computed once, intervals are Student's, best-of-n's KL is exact."""

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from lab import Lab, Settings, figures
from lab.attainable import compare, measured_kl
from lab.intervals import Estimate, estimate, mean_between, means, over_seeds, slope, where

from minirlhf import losses
from minirlhf.files import read_json


def slow_start(L, folder, *, seed):
    """What two arms have in common: each call leaves a trace."""
    with Path(folder, "calls").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return {"start": 10 * seed}


def doubled(L, folder, *, x, seed):
    start = L.arm(slow_start, seed=seed)
    return {"y": start["start"] + 2 * x, "common": start["folder"], "worker": os.getpid()}


def square(L, folder, *, x, seed):
    return {"y": x * x + seed}


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"weights")
    sft, out = str(tmp_path / "sft"), str(tmp_path)
    settings = Settings(quick=True, seeds=2, sft=sft, out=out, device="cpu", workers=1)
    return Lab(settings, "trial")


def test_an_arm_is_computed_once_and_again_for_other_values_model_or_data(lab, tmp_path):
    calls = []

    def arm(L, folder, *, x, seed):
        calls.append((x, seed))
        return {"y": x + seed}

    for _ in range(2):
        rows = lab.run(arm, [{"x": 1}, {"x": 2}])
        assert [(row["x"], row["seed"], row["y"]) for row in rows] == [
            (1, 0, 1),
            (2, 0, 2),
            (1, 1, 2),
            (2, 1, 3),
        ]
        assert len(calls) == 4
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"others")
    Lab(lab.settings, "trial").arm(arm, x=1, seed=0)
    assert len(calls) == 5
    Lab(replace(lab.settings, data="pairs.jsonl"), "trial").arm(arm, x=1, seed=0)
    assert len(calls) == 6


@pytest.mark.skipif(os.name != "posix", reason="no lock on an arm")
def test_workers_share_arms_and_give_what_one_gives(lab):
    lab.workers = 2
    rows = lab.run(doubled, [{"x": 3}, {"x": 1}, {"x": 2}])
    assert [row["y"] for row in rows] == [6, 2, 4, 16, 12, 14]
    assert os.getpid() not in {row["worker"] for row in rows}
    for folder in {row["common"] for row in rows}:
        assert Path(folder, "calls").read_text() == "x"


def test_an_arm_that_fails_leaves_no_result(lab):
    def arm(L, folder):
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        lab.arm(arm)
    assert not list(lab.folder.glob("arms/*/arm.json"))


def test_the_three_files(lab):
    fig, [ax] = figures.new(("Trial", "x", "y"))
    rows = lab.run(square, [{"x": x} for x in (1, 2, 3)])
    figures.curve(ax, rows, "x", "y", "square")
    lab.finish(fig, rows, expected="a parabola.", found=["one"], agrees=False)
    assert (lab.folder / "figure.png").stat().st_size > 5000
    summary = (lab.folder / "summary.md").read_text(encoding="utf-8")
    assert "a parabola." in summary and "- one" in summary
    report = read_json(lab.folder / "results.json")
    assert report["agrees"] is False
    assert [row["y"] for row in report["rows"]] == [1, 4, 9, 2, 5, 10]


def test_a_result_that_decides_nothing_says_so(lab):
    fig, _ = figures.new(("Trial", "x", "y"))
    rows = lab.run(square, x=1)
    lab.finish(fig, rows, expected="more.", found=["+0.1 ± 0.2"], agrees=True, decided=False)
    assert "does not decide" in (lab.folder / "summary.md").read_text(encoding="utf-8")
    assert read_json(lab.folder / "results.json")["agrees"] is None


def test_intervals_over_seeds():
    assert over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30 / math.sqrt(3)))
    assert math.isnan(over_seeds([1.0]).half)
    assert over_seeds([1.0, math.nan, 2.0, 3.0]) == over_seeds([1.0, 2.0, 3.0])
    assert not over_seeds([math.nan]).sure and f"{over_seeds([])}" == "unknown"
    line = slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0])
    assert line == pytest.approx((2, 0), abs=1e-6)
    assert Estimate(0.5, 0.4).sure and not Estimate(-0.5, 0.6).sure
    assert f"{Estimate(0.5, 0.25):+.2f}" == "+0.50 ± 0.25"


def test_intervals_over_prompts():
    row = means(x=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    half = 1.96 * math.sqrt(1 / 3 / 4)
    assert row == {"x": 0.5, "x_interval": pytest.approx(half)}
    assert estimate([row], "x", minus=[row]) == (0, pytest.approx(half * math.sqrt(2)))
    rows = [{**row, "x": x} for x in (1.0, 2.0, 3.0)]
    assert estimate(rows, "x", minus=[row] * 3) == pytest.approx((1.5, 4.30 / math.sqrt(3)))
    assert where(rows, x=2.0) == rows[1:2]


def test_a_path_is_read_where_it_passes():
    row = {"gained": [1.0, 2.0, 4.0], "distance": [0.5, 0.8, 1.4]}
    assert mean_between(row, "gained", "distance", 0.7, 1.4) == 3
    assert mean_between(row, "gained", "distance", 0.6, 1) == 2
    assert math.isnan(mean_between(row, "gained", "distance", 4))


def test_measured_kl_of_best_of_n():
    ten = [float(i) for i in range(10)]
    assert measured_kl(ten, 64) == pytest.approx(2.29, abs=0.005)  # the formula says 3.175
    assert measured_kl([0.0] * 10, 64) == pytest.approx(0, abs=1e-12)  # nothing to choose by
    many = [float(i) for i in range(4096)]
    assert measured_kl(many, 8) == pytest.approx(losses.best_of_n_kl_bound(8), abs=2e-3)
    scores = ten[:5] * 4 + ten[5:]
    probs = torch.tensor([scores.count(x) / 25 for x in ten], dtype=torch.double)
    cumulated = torch.cat([torch.zeros(1), probs.cumsum(0)])
    best = cumulated[1:] ** 6 - cumulated[:-1] ** 6
    expected = float((best * (best / probs).log()).sum())
    assert measured_kl(scores, 6) == pytest.approx(expected, abs=1e-9)


def test_policies_against_the_optimum():
    optimum = [(0.0, 1.0), (1.0, 2.0), (2.0, 2.5)]
    rows = [{"kl": kl, "gold": gold} for kl, gold in ((0.5, 1.25), (1.5, 2.5), (3.0, 9.0))]
    inside = compare(rows, optimum)
    assert inside == rows[:2]
    assert [row["above"] for row in inside] == pytest.approx([-0.25, 0.25])
    assert [row["share"] for row in inside] == pytest.approx([0.5, 1.5 / 1.25])
