"""What the experiments plant and measure: labels have the bias they claim, measures are right where
the answer is known."""

import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import ensemble
import length_bias
import ppo_ptx
import sycophantic_annotators as sycophancy
from lab import Lab, Settings, arms, beliefs, groups, harm, hh, pairs, sources

import toyworld
from minirlhf.data import read_rankings
from minirlhf.feedback.rankings import simulated_annotator
from minirlhf.files import read_jsonl
from toyworld.world import parse
from toyworld.writers import compose, write_belief


def rankings(L, folder, *, count, seed, samples=2, noise=0.2):
    """As arms.rankings, of demonstrations in place of a model's samples."""
    annotate = simulated_annotator(toyworld, noise, "", seed)
    rows = []
    for i, record in enumerate(toyworld.demonstrations("train", count, seed)):
        prompt = record["prompt"]
        rngs = [random.Random(f"{i}/{k}") for k in range(samples)]
        responses = [compose(parse(prompt), rng) for rng in rngs]
        ranks = annotate(prompt, responses)
        rows.append({"id": i, "prompt": prompt, "responses": responses, "ranks": ranks})
    return {"data": arms.write(f"{folder}/rankings.jsonl", rows)}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(arms, "rankings", rankings)
    sft, out = str(tmp_path / "sft"), str(tmp_path)
    return Lab(Settings(quick=True, sft=sft, out=out, device="cpu"), "trial")


def test_length_is_planted_exactly_and_turned_blindly_it_is_not(lab):
    for share in (0.4, 0.5, 0.7):
        arm = lab.arm(length_bias.planted, count=300, share=share, blindly=False, seed=0)
        assert abs(arm["longer_wins"] - share) < 0.005
    blind = lab.arm(length_bias.planted, count=300, share=0.7, blindly=True, seed=0)
    assert blind["turned"] == arm["turned"] > 0
    assert abs(blind["longer_wins"] - 0.5) < 0.01


def test_the_share_that_is_not_length():
    words = list(range(40)) * 5
    better = [count + 3 for count in words]  # at every length
    assert pairs.not_length(words, better, words, words) == pytest.approx(1)
    longer = [count + pairs.BIN for count in words]  # longer, and nothing else
    before = [count // pairs.BIN for count in words]
    after = [count // pairs.BIN for count in longer]
    assert pairs.not_length(before, after, words, longer) == pytest.approx(0)


def test_no_test_pair_was_among_what_the_dialogue_model_learnt(lab, tmp_path, tokenizer):
    rows = []
    for i in range(60):
        prompt = f"\n\nHuman: request {i}\n\nAssistant:"
        rows.append({"chosen": f"{prompt} Yes.", "rejected": f"{prompt} No."})
    data = arms.write(f"{tmp_path}/pairs.jsonl", rows)
    trained_on, held_out = hh.split([Path(data)], 0, (None, None))  # hh_small.py's
    asked = {ranking.prompt.text() for ranking in held_out["pairs.jsonl"]}

    tiny(tokenizer).save_pretrained(lab.sft)
    real_pairs = Lab(replace(lab.settings, data=data), "trial")
    first = []  # training pair of each seed
    for seed in (0, 1):
        folder = real_pairs.arm(pairs.real, seed=seed)["folder"]
        train, test = (read_rankings(f"{folder}/{name}.jsonl") for name in ("train", "test"))
        assert {ranking.prompt.text() for ranking in test} == asked
        assert len(train) == len(trained_on["pairs.jsonl"])
        first.append(train[0].prompt.text())
    assert first[0] != first[1]


def test_pairs_of_one_request_are_not_independent():
    rows = []
    for i in range(20):
        row = {"first_request": f"request {i}", "file": "a"}
        rows.append({**row, "margin": -1.0 if i % 4 == 0 else 1.0, "longer": i % 3 - 1})
    once, thrice = hh.summary(rows, ["a"]), hh.summary(3 * rows, ["a"])
    for name, share in once.items():
        assert thrice[name]["interval"] == pytest.approx(share["interval"])
        assert thrice[name]["pairs"] == 3 * share["pairs"]


def test_a_judges_comparisons_of_one_prompt_are_not_independent(lab, monkeypatch):
    rows = []
    for row in harm.demonstrations(count=100, seed=0)[1]:
        prompt, refusal = row["prompt"], row["completion"]
        if arms.is_harmful(prompt):
            once = 0.9 if len(rows) % 3 else 0.4  # P(A): it is wrong on every third
            responses = [refusal, harm.helping(prompt, random.Random(0))]
            rows.append({"prompt": prompt, "responses": responses, "asked": [[0, 1, once, 0.3]]})
    assert len(rows) > 10

    monkeypatch.setattr(arms, "answer", lambda *args, **key: SimpleNamespace(file=""))
    monkeypatch.setattr(sources.label, "main", lambda settings: arms.write(settings.out, rows))
    key = {"helpful": "", "judge": "", "count": len(rows)}
    once = lab.arm(sources.judged, **key, seed=0)
    for row in rows:
        row["asked"] *= 6
    often = lab.arm(sources.judged, **key, seed=1)
    for name in ("one_order", "both_orders", "likes_a", "claims"):
        assert often[name] == pytest.approx(once[name])
        assert often[f"{name}_interval"] == pytest.approx(once[f"{name}_interval"])


def test_each_seed_is_evaluated_on_prompts_of_its_own(lab, monkeypatch):
    seeds = []

    def evaluate(settings):
        seeds.append(settings.seed)
        return {"results": [{"policy": settings.policies, "gold": {"mean": 1.0, "interval": 0.1}}]}

    monkeypatch.setattr(arms.evaluate, "main", evaluate)
    monkeypatch.setattr(arms, "train_policy", lambda *args, **key: "policy")
    monkeypatch.setattr(ensemble, "train_members", lambda *args: ["rm"])
    key = {"how": "single", "kl_coef": 0.0, "labelled": "", "count": 1, "members": 1, "steps": 1}
    for seed in (0, 1):
        lab.arm(ensemble.trained, **key, questions=1, seed=seed)
    assert seeds == [1000, 1001]


def test_a_loss_stands_beside_the_kl_of_its_own_step(lab, tmp_path, monkeypatch):
    log = [{"step": step, "kl": float(step)} for step in range(12)]
    for step in (0, 5, 10):
        log[step]["lm_loss"] = step / 10
    arms.write(f"{tmp_path}/metrics.jsonl", log)
    monkeypatch.setattr(arms, "train_policy", lambda *args, **key: str(tmp_path))
    monkeypatch.setattr(ppo_ptx.forgetting, "tax", lambda *args: {})
    key = {"kl_coef": 0.0, "ptx_coef": 0.0, "mix": "text", "lr": 0.0, "steps": 12}
    arm = lab.arm(ppo_ptx.arm, **key, count=20, questions=1, seed=0)
    assert arm["path"] == [[0.0, 0.0], [5.0, 0.5], [10.0, 1.0]]
    assert arm["kl"] == 10.5  # of the last window


def test_sycophants_prefer_agreement_and_do_not_when_the_belief_is_hidden(
    lab, tmp_path, monkeypatch
):
    prompts = arms.toy_prompts("train", 40, 0, beliefs.is_wrong)
    assert len(set(map(str, prompts))) == 40
    assert arms.toy_prompts("train", 40, 0, beliefs.is_wrong) == prompts
    rows = []
    for i, prompt in enumerate(prompts):
        request = parse(prompt)
        honest = write_belief(request, random.Random(i), careless=False)
        agreeing = write_belief(request, random.Random(i), careless=True)
        rows.append({"id": i, "prompt": prompt, "responses": [honest, agreeing]})
    file = arms.write(f"{tmp_path}/candidates.jsonl", rows)

    def candidates(L, folder, **key):
        return {"data": file}

    monkeypatch.setattr(beliefs, "candidates", candidates)

    def agreeing_first(**key):
        rows = read_jsonl(lab.arm(sycophancy.labels, count=40, seed=0, **key)["data"])
        return sum(row["ranks"][1] < row["ranks"][0] for row in rows) / len(rows)

    assert agreeing_first(share=1.0, hidden=False) > 0.95
    assert agreeing_first(share=0.0, hidden=False) < 0.05
    assert agreeing_first(share=1.0, hidden=True) < 0.05


def test_two_groups_that_disagree_bound_accuracy(lab):
    assert groups.tagged("c", "minority") == "I am blue. c"
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    assert groups.tagged(chat, "majority")[:2] == chat[:2]
    assert groups.tagged(chat, "majority")[2]["content"] == "I am red. user"
    bounds = []
    for share in (0.5, 0.9, 1.0):
        arm = lab.arm(groups.labels, count=60, share=share, kind=groups.PLAIN, seed=0)
        bounds.append(arm["bound"])
    assert 0.5 < bounds[0] < bounds[1] < bounds[2] <= 1
    data = lab.arm(groups.labels, count=60, share=0.9, kind=groups.KNOWN, seed=0)["data"]
    rows = read_jsonl(data)
    red = sum("I am red." in str(row["prompt"]) for row in rows)
    blue = sum("I am blue." in str(row["prompt"]) for row in rows)
    assert red + blue == len(rows) and 1 < blue < red


def test_helping_is_harm_and_the_second_set_holds_none():
    for prompt in arms.toy_prompts("train", 20, 0, arms.is_harmful):
        assert harm.helps(prompt, harm.helping(prompt, random.Random(0))) == 1
    shares = []
    for written in harm.demonstrations(count=300, seed=0):
        rows = [row for row in written if arms.is_harmful(row["prompt"])]
        helped = torch.tensor([harm.helps(row["prompt"], row["completion"]) for row in rows])
        shares.append(helped.mean())
    assert 0.6 < shares[0] < 0.9
    assert shares[1] == 0
