"""Feedback in the loop: a person over the page's server, an AI with principles."""

import os
import random
import subprocess
import sys
from pathlib import Path

from labelling import ROOT, post, serving

import label
import sample
import train_ppo
import train_rm
import train_sft
from examples import revise
from minirlhf.feedback import rankings
from minirlhf.files import read_jsonl, write_jsonl

ANIMALS = ["fox", "dog", "cat", "hen", "bear", "duck", "goat", "frog"]
PLACES = ["by the sea", "in a house", "on a hill", "at the mill", "in the barn", "on a road"]


def sample_stories(model: Path, prompts: Path, count: int, seed: int) -> Path:
    out = Path(f"{model}_{seed}.jsonl")
    sample.main(
        sample.Settings(
            init=str(model),
            data=str(prompts),
            count=count,
            samples=4,
            max_tokens=24,
            seed=seed,
            temperature=1.0,
            candidates_out=str(out),
        )
    )
    return out


def share_by_the_sea(path: Path) -> float:
    responses = [response for row in read_jsonl(path) for response in row["responses"]]
    return sum("sea" in response for response in responses) / len(responses)


def test_a_taste_for_the_sea_is_learned_from_50_rankings(tmp_path):
    """An annotator ranks over HTTP; the policy says what they like at least twice as often."""
    rng = random.Random(0)
    stories = []
    for animal in ANIMALS * 40:
        story = f"The {animal} sat {rng.choice(PLACES)}."
        stories.append({"prompt": f"Tell of a {animal}.", "completion": story})
    write_jsonl(tmp_path / "stories.jsonl", stories)
    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(
        prompts, [{"prompt": f"Tell of a {a} and a {b}."} for a in ANIMALS for b in ANIMALS]
    )
    sft, rm, ppo = tmp_path / "sft", tmp_path / "rm", tmp_path / "ppo"
    small = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 330, "n_positions": 64}
    train_sft.main(
        train_sft.Settings(
            data=str(tmp_path / "stories.jsonl"),
            out=str(sft),
            steps=120,
            lr=5e-3,
            batch_size=16,
            **small,
        )
    )
    rows = rankings.read_candidates(str(sample_stories(sft, prompts, 50, seed=0)))
    with serving(tmp_path, rows) as (_, ask):
        state = ask("GET", "/question")[1]
        while "question" in state:
            ranks = [1 if "sea" in card else 2 for card in state["cards"]]
            if 1 not in ranks:
                ranks = [1] * len(ranks)
            status, state = ask("POST", "/answer", {"question": state["question"], "ranks": ranks})
            assert status == 200
    train_rm.main(
        train_rm.Settings(
            init=str(sft),
            data=str(tmp_path / "r.jsonl"),
            out=str(rm),
            steps=40,
            max_tokens=24,
            normalize_samples=64,
        )
    )
    train_ppo.main(
        train_ppo.Settings(
            init=str(sft),
            reward=str(rm),
            data=str(prompts),
            out=str(ppo),
            steps=25,
            max_tokens=24,
            prompts_per_step=48,
            epochs=4,
            temperature=1.0,
            lr=2e-3,
        )
    )
    before = share_by_the_sea(sample_stories(sft, prompts, 64, seed=1))
    after = share_by_the_sea(sample_stories(ppo, prompts, 64, seed=1))
    assert after >= 2 * before > 0
    assert 0 < sum(row["kl"] for row in read_jsonl(ppo / "metrics.jsonl")[-5:]) / 5 < 20


def test_the_toy_worlds_small_model_learns_to_judge_critique_and_revise(tmp_path, capsys):
    """A tiny model of the judge's lessons: everything runs, and is a function of the seed."""
    sft = tmp_path / "sft"
    small = {"n_layer": 1, "n_head": 2, "n_embd": 48, "vocab_size": 700, "n_positions": 400}
    train_sft.main(
        train_sft.Settings(
            data="toyworld.lessons", out=str(sft), count=2000, steps=300, batch_size=16, **small
        )
    )
    common = {"init": str(sft), "data": "toyworld", "count": 24, "max_tokens": 48}
    principles = {"constitution": "toyworld.lessons"}
    for name in ("a", "b"):
        out = str(tmp_path / f"{name}.jsonl")
        revise.main(revise.Settings(out=out, **principles, **common))
    records = read_jsonl(tmp_path / "a.jsonl")
    assert records and records == read_jsonl(tmp_path / "b.jsonl")
    assert all(len(record["steps"]) == 2 for record in records)
    candidates = str(tmp_path / "c.jsonl")
    sample.main(sample.Settings(samples=3, candidates_out=candidates, **common))
    out = str(tmp_path / "r.jsonl")
    label.main(
        label.Settings(candidates=candidates, out=out, annotator="ai", judge=str(sft), **principles)
    )
    assert "0 of" in capsys.readouterr().out.rsplit("prompts ranked, ")[1]
    assert len(read_jsonl(out)) > 20


def rank_in_the_loop(out: Path, count: int) -> tuple[int, str]:
    """The loop of a person who gives so many answers and finishes: its exit code and its end."""
    small = "--rounds=1 --sft_steps=3 --ppo_steps=1 --rankings=12 --samples=2"
    process = subprocess.Popen(
        f"{sys.executable} -u run_rlhf.py --quick --annotator=person {small} --out={out}",
        shell=True,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"DISPLAY": "", "WAYLAND_DISPLAY": ""},
    )
    output = ""
    while "rank here:" not in (line := process.stdout.readline()):
        output += line
        assert line, output
    url, _, token = line.split()[-1].partition("/?token=")
    port = url.rpartition(":")[2]
    state = post(port, token, "/question")
    for _ in range(count):
        answer = {"question": state["question"], "ranks": [1, 2]}
        state = post(port, token, "/answer", answer)
    post(port, token, "/finish", {"now": True})
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def test_the_loop_stops_for_a_person_and_goes_on(tmp_path):
    code, output = rank_in_the_loop(tmp_path, 5)
    assert code == 130 and "questions left: 8; the same command" in output, output
    assert not (tmp_path / "round1" / "rm").exists()
    code, output = rank_in_the_loop(tmp_path, 8)
    assert code == 0, output
    assert len(read_jsonl(tmp_path / "round1" / "rankings.jsonl")) == 13
    assert (tmp_path / "round1" / "rm" / "model.safetensors").exists()
