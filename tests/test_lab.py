"""The laboratory: arms are computed once, intervals are Student's, best-of-n's KL is right on distributions that are known."""
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import lab
from best_of_n_kl import measured_kl

import train_sft
from minirlhf import losses

ROOT = Path(__file__).parents[1]
EXPERIMENTS = [p.stem for p in sorted((ROOT / "experiments").glob("*.py")) if "lab.start(main)" in p.read_text(encoding="utf-8")
               and p.stem != "lab"]


def slow_start(L, folder, *, seed):
    """What two arms have in common: each call leaves a trace."""
    with Path(folder, "calls").open("a") as f:
        f.write("x")
    time.sleep(1)
    return {"start": 10 * seed}


def doubled(L, folder, *, x, seed):
    start = L.arm(slow_start, seed=seed)
    if x < 0:
        raise lab.UserError("x below 0")
    return {"y": start["start"] + 2 * x, "common": start["folder"], "worker": os.getpid()}


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"weights")
    settings = lab.Settings(quick=True, seeds=2, sft=str(tmp_path / "sft"), out=str(tmp_path), device="cpu", workers=1)
    return lab.Lab(settings, "trial")


def test_an_arm_is_computed_once_and_again_for_other_values_another_model_or_other_data(bench, tmp_path):
    calls = []

    def arm(L, folder, *, x, seed):
        calls.append((x, seed))
        return {"y": x + seed}

    keys = [{"x": x, "seed": s} for s in bench.seeds for x in (1, 2)]
    assert [r["y"] for r in bench.run(arm, keys)] == [1, 2, 2, 3]
    assert bench.run(arm, keys)[3] == keys[3] | {"y": 3, "folder": bench.run(arm, keys)[3]["folder"]}
    assert len(calls) == 4
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"others")
    lab.Lab(bench.settings, "trial").arm(arm, x=1, seed=0)
    assert len(calls) == 5
    lab.Lab(replace(bench.settings, data="pairs.jsonl"), "trial").arm(arm, x=1, seed=0)
    assert len(calls) == 6


@pytest.mark.skipif(os.name != "posix", reason="no lock on an arm")
def test_workers_share_arms_and_give_what_one_gives(bench):
    """Rows in the keys' order; an arm that several need is computed once and its time counted once; an error arrives."""
    bench.workers = 2
    keys = [{"x": x, "seed": s} for s in bench.seeds for x in (3, 1, 2)]
    rows = bench.run(doubled, keys)
    assert [r["y"] for r in rows] == [6, 2, 4, 16, 12, 14] and os.getpid() not in {r["worker"] for r in rows}
    assert [Path(f, "calls").read_text() for f in sorted({r["common"] for r in rows})] == ["x", "x"]
    assert 2 <= sum(bench.seconds.values()) < 3.9 and len(bench.seconds) == 8                # 4 if outer arms held inner ones
    with pytest.raises(lab.UserError, match="x below 0"):
        bench.run(doubled, [{"x": -1, "seed": 0}, {"x": -2, "seed": 0}])


def test_an_arm_that_fails_leaves_no_result(bench):
    def arm(L, folder, *, fails):
        if fails.pop():
            raise RuntimeError("the power went")
        return {"done": True}

    fails = [False, True]
    with pytest.raises(RuntimeError):
        bench.arm(arm, fails=fails)
    assert not list(bench.folder.glob("arms/*/arm.json"))


def test_the_three_files(bench):
    fig, ax = bench.figure("Trial", "x", "y")

    def square(L, folder, *, x, seed):
        return {"y": x * x + seed}

    rows = bench.run(square, [{"x": x, "seed": s} for s in bench.seeds for x in (1, 2, 3)])
    lab.curve(ax, rows, "x", "y", "square")
    bench.finish(fig, rows, expected="a parabola.", found="one.", agrees=False, why="it was drawn twice")
    assert (bench.folder / "figure.png").stat().st_size > 5000
    assert "do not agree: it was drawn twice" in (bench.folder / "summary.md").read_text(encoding="utf-8")
    assert [r["y"] for r in json.loads((bench.folder / "results.json").read_text(encoding="utf-8"))["rows"]] == [1, 4, 9, 2, 5, 10]


def test_intervals_and_slopes():
    assert lab.over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30 / math.sqrt(3)))
    assert math.isnan(lab.over_seeds([1.0])[1])
    b, half = lab.slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0])
    assert b == pytest.approx(2) and half == pytest.approx(0, abs=1e-6)


def test_measured_kl_of_best_of_n():
    ten = [str(i) for i in range(10)]
    assert measured_kl(ten, list(range(10)), 64) == pytest.approx(2.29, abs=0.005)          # the formula says 3.175
    assert measured_kl(ten, [0.0] * 10, 64) == pytest.approx(0, abs=1e-12)                  # nothing to choose by
    many = [str(i) for i in range(4096)]
    assert measured_kl(many, list(range(4096)), 8) == pytest.approx(losses.best_of_n_kl_bound(8), abs=2e-3)
    repeats, scores = ten[:5] * 4 + ten[5:], [float(x) for x in [*range(5)] * 4 + [*range(5, 10)]]
    probabilities = torch.tensor([scores.count(float(i)) / 25 for i in range(10)], dtype=torch.double)
    cumulated = torch.cat([torch.zeros(1), probabilities.cumsum(0)])
    best = cumulated[1:] ** 6 - cumulated[:-1] ** 6
    assert measured_kl(repeats, scores, 6) == pytest.approx(float((best * (best / probabilities).log()).sum()), abs=1e-9)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that has learnt a little, for experiments that need nothing but to run."""
    out = tmp_path_factory.mktemp("sft") / "sft"
    train_sft.main(train_sft.Settings(data="toy+judge", out=str(out), count=8000, n_layer=2, n_head=2, n_embd=64, n_positions=256,
                                      vocab_size=1024, steps=200, device="cpu"))
    return str(out)


@pytest.mark.skipif(not os.environ.get("MINIRLHF_SLOW"), reason="a quarter of an hour: MINIRLHF_SLOW=1 does it")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_to_its_end(name, small, tmp_path):
    """Every arm, figure and sentence, whatever they say; the constitution's judge may be too small to answer."""
    done = subprocess.run([sys.executable, f"experiments/{name}.py", "--quick", "--sft", small, "--out", str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True)
    if name == "constitution" and "are all unusable" in done.stderr:
        return
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / name / "figure.png").stat().st_size > 5000
    summary = (tmp_path / name / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("Expected: ") and "\nFound: " in summary


def test_a_value_that_was_not_finite_is_null_in_a_log(tmp_path):
    rows = [{"kl": 1.0, "kl_k3": None}, {"kl": 3.0, "kl_k3": 2.0}, {"kl": 5.0, "kl_k3": 4.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    means = lab.path(tmp_path, ("kl", "kl_k3"), window=2)
    assert means["kl"] == [2.0, 5.0]
    assert math.isnan(means["kl_k3"][0])
    assert means["kl_k3"][1] == 4.0
