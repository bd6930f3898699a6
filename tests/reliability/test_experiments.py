"""Every experiment runs to its end on a model that has learnt a little: arms, figure, summary."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train_sft

ROOT = Path(__file__).parents[2]
EXPERIMENTS = [
    path.stem
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "    start(main)\n" in path.read_text(encoding="utf-8")
]

if not os.environ.get("MINIRLHF_SLOW"):
    pytest.skip("half an hour: MINIRLHF_SLOW=1 does it", allow_module_level=True)


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("sft") / "sft")
    model = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 256, "vocab_size": 1024}
    lessons = {"data": "toyworld.lessons", "count": 8000, "steps": 200}
    train_sft.main(train_sft.Settings(out=out, device="cpu", **lessons, **model))
    return out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_to_its_end(name, sft, tmp_path):
    command = [sys.executable, f"experiments/{name}.py", "--quick", "--sft", sft]
    command += ["--out", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if name == "constitution" and "are all unusable" in process.stderr:
        return  # its judge may be too small to answer
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / name / "figure.png").stat().st_size > 5000
    summary = (tmp_path / name / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("Expected: ") and "\nFound:" in summary
