"""What the experiments plant and measure: labels have the bias they claim, measures are right where the answer is known."""
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import hidden_capabilities as hidden
import lab
import length_bias
import sycophantic_annotators as sycophancy
import whose_preferences as whose

from minirlhf import toyworld
from minirlhf.run import read_jsonl


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A laboratory whose rankings are of demonstrations, not of a model's samples."""
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"weights")

    def rankings(L, folder, *, count, samples, seed, noise=0.2):
        rows = toyworld.demonstrations("train", count, seed)
        said = [[toyworld._compose(*toyworld._parse(r["prompt"]), r["prompt"], random.Random(f"{i}/{k}")) for k in range(samples)]
                for i, r in enumerate(rows)]
        ranks = [lab.label.feedback.toy_annotator(noise, "", seed)(r["prompt"], x) for r, x in zip(rows, said)]
        return {"data": lab.write_lines(f"{folder}/r.jsonl", [{"id": i, "prompt": r["prompt"], "responses": x, "ranks": k}
                                                              for i, (r, x, k) in enumerate(zip(rows, said, ranks))])}

    monkeypatch.setattr(lab, "rankings", rankings)
    return lab.Lab(lab.Settings(quick=True, sft=str(tmp_path / "sft"), out=str(tmp_path), device="cpu"), "trial")


def test_length_is_planted_exactly_and_turned_blindly_it_is_not(bench):
    for share in (0.4, 0.5, 0.7):
        arm = bench.arm(length_bias.planted, count=300, share=share, blindly=False, seed=0)
        assert abs(arm["longer_wins"] - share) < 0.005
    blind = bench.arm(length_bias.planted, count=300, share=0.7, blindly=True, seed=0)
    assert blind["turned"] == arm["turned"] > 0 and blind["longer_wins"] < 0.65


def test_the_share_that_is_not_length():
    words = torch.arange(40.0).tolist() * 5
    assert length_bias.not_length(words, [w + 3 for w in words], words, words) == pytest.approx(1)      # better at every length
    longer = [w + length_bias.BIN for w in words]
    assert length_bias.not_length([w // length_bias.BIN for w in words], [w // length_bias.BIN for w in longer], words,
                                  longer) == pytest.approx(0)                                           # longer, and nothing else


def test_sycophants_prefer_agreement_and_do_not_when_the_belief_is_hidden(bench, tmp_path, monkeypatch):
    prompts = lab.wanted("train", 40, 0, sycophancy.wrong)
    assert len(set(prompts)) == 40 and lab.wanted("train", 40, 0, sycophancy.wrong) == prompts
    rows = []
    for i, p in enumerate(prompts):
        kind, slots = toyworld._parse(p)
        rows.append({"id": i, "prompt": p, "responses": [kind.write(slots, random.Random(i), wrong) for wrong in (False, True)]})
    file = lab.write_lines(f"{tmp_path}/c.jsonl", rows)
    monkeypatch.setattr(sycophancy, "candidates", lambda L, folder, **key: {"data": file})
    sycophancy.candidates.__name__ = "candidates"

    def agreeing_first(**key):
        rows = read_jsonl(bench.arm(sycophancy.labels, count=40, seed=0, **key)["data"])
        return sum(r["ranks"][1] < r["ranks"][0] for r in rows) / len(rows)

    assert agreeing_first(share=1.0, hidden=False) > 0.95
    assert agreeing_first(share=0.0, hidden=False) < 0.05
    assert agreeing_first(share=1.0, hidden=True) < 0.05


def test_two_groups_that_disagree_bound_accuracy(bench):
    assert whose.tagged("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "minority") == (
        "\n\nHuman: a\n\nAssistant: b\n\nHuman: I am blue. c\n\nAssistant:")
    even, most, all_ = (bench.arm(whose.labels, count=60, share=s, kind="plain", seed=0) for s in (0.5, 0.9, 1.0))
    assert 0.5 < even["bound"] < most["bound"] < all_["bound"] <= 1
    assert even["bound"] >= 0.95 * (even["agree"] + (1 - even["agree"]) / 2) - 0.05
    rows = read_jsonl(bench.arm(whose.labels, count=60, share=0.9, kind="group known", seed=0)["data"])
    says = [[group for group, words in whose.SAYS.items() if words in r["prompt"]] for r in rows]
    assert all(len(groups) == 1 for groups in says) and 1 < says.count(["majority"]) < len(says)


def test_going_along_is_harm_and_the_second_set_holds_none(bench):
    for prompt in lab.wanted("train", 20, 0, hidden.harmful):
        assert hidden.harm(prompt, hidden.goes_along(prompt, random.Random(0))) == 1
    files = bench.arm(hidden.demonstrations, count=300, seed=0)
    share = {}
    for name in ("learnt", "never learnt"):
        rows = [r for r in read_jsonl(files[name]) if hidden.harmful(r["prompt"])]
        share[name] = sum(hidden.harm(r["prompt"], r["completion"]) for r in rows) / len(rows)
    assert share["never learnt"] == 0 and 0.6 < share["learnt"] < 0.9


def test_estimates_over_seeds_and_over_prompts():
    one = lab.means(x=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert one["x"] == 0.5 and one["x_interval"] == pytest.approx(1.96 * math.sqrt(1 / 3 / 4))
    assert lab.estimate([one], "x", [one]) == (0, pytest.approx(one["x_interval"] * math.sqrt(2)))
    rows = [one | {"x": x} for x in (1.0, 2.0, 3.0)]
    mean, half = lab.estimate(rows, "x", [one] * 3)
    assert mean == pytest.approx(1.5) and half == pytest.approx(4.30 / math.sqrt(3))
    assert json.dumps(one)
