"""train_ppo.py as a user runs it, on tiny models: what must hold in every method."""

import json
import math
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from safetensors.torch import load_file

import train_ppo
from minirlhf import UserError, cli, losses, rollout
from minirlhf.data import Prompt
from minirlhf.files import read_json, read_jsonl
from minirlhf.model import ScalarGPT
from minirlhf.run import Run
from minirlhf.tokenizer import Tokenizer

METHODS = ("gae", "rloo", "grpo", "reinforce")
QUESTIONS = ("What is 2 + 3?", "Tell me of a fox.", "Why not?", "Who ran home?", "Why?", "And you?")
FUNCTIONS = """
def brevity(prompts, responses):
    return [-len(r) / 20 for r in responses]
def huge(prompts, responses):
    half = len(responses) // 2
    return [1e6] * half + [-1e6] * (len(responses) - half)
def same(prompts, responses):
    return [3.0] * len(responses)
def sometimes(prompts, completions):
    return [None if i % 3 == 0 else float(i) for i in range(len(completions))]
def never(prompts, responses):
    return [None] * len(responses)
def beyond(prompts, responses):
    return [1e30 * i for i in range(len(responses))]
"""


@pytest.fixture(scope="module")
def world(tokenizer, tmp_path_factory):
    """A policy some of whose samples finish, a reward model, one with other tokens, functions."""
    out = tmp_path_factory.mktemp("world")
    policy = tiny(tokenizer, spread=2.0)
    with torch.no_grad():  # EOS gets a logit of 3 more
        eos = policy.wte.weight[tokenizer.eos_id]
        policy.ln_f.bias += 3 * eos / eos.square().sum()
    policy.save_pretrained(out / "sft")
    tiny(tokenizer, ScalarGPT, spread=2.0).save_pretrained(out / "rm")
    foreign = Tokenizer.train(["a b c. " * 9], 270)
    tiny(foreign, n_positions=200).save_pretrained(out / "foreign")
    tiny(foreign, ScalarGPT, n_positions=200).save_pretrained(out / "foreign_rm")
    tiny(tokenizer, n_positions=16).save_pretrained(out / "short")
    (out / "mine.py").write_text(FUNCTIONS)
    (out / "text.txt").write_text(
        "The quick brown fox jumps over the lazy dog while it rains. " * 60
    )
    prompts = [json.dumps({"prompt": question}) for question in QUESTIONS]
    (out / "prompts.jsonl").write_text("\n".join(prompts))
    return out


def settings_of(world: Path, out: Path, **changes) -> train_ppo.Settings:
    settings = {
        "init": str(world / "sft"),
        "reward": str(world / "rm"),
        "data": str(world / "prompts.jsonl"),
        "out": str(out),
        "steps": 4,
        "prompts_per_step": 3,
        "samples_per_prompt": 3,
        "max_tokens": 10,
        "save_every": 2,
        "log_every": 2,
    }
    return train_ppo.Settings(**(settings | changes))


def metrics(folder: Path) -> list[dict]:
    """The log without what depends on the clock."""
    rows = []
    for row in read_jsonl(folder / "metrics.jsonl"):
        timed = ("seconds", "tokens_per_second", "peak_gib")
        rows.append({name: x for name, x in row.items() if not name.startswith(timed)})
    return rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- rewards


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo", "reinforce"])
def test_a_response_without_a_score_is_left_out(world, tmp_path, advantage, capsys):
    reward, none = (f"{world / 'mine.py'}:{name}" for name in ("sometimes", "never"))
    settings = settings_of(world, tmp_path / "some", advantage=advantage, reward=reward)
    train_ppo.main(replace(settings, unfinished_score=0.0, max_tokens=30, watch=none))
    rows = metrics(tmp_path / "some")
    assert all(math.isfinite(row["score"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[0][f"watch_{none}"] is None
    settings = replace(settings, reward=none, kl_coef=0.0, out=str(tmp_path / "none"))
    train_ppo.main(settings)
    assert all(row["raw_score"] is None for row in metrics(tmp_path / "none"))
    assert "look at what the reward returns" in " ".join(capsys.readouterr().out.split())


def test_without_a_score_there_is_no_advantage_and_no_new_value(world):
    rewards = torch.tensor([[0.0, 1.0], [0.0, math.nan], [0.5, 0.0]])
    values = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    mask = torch.ones(3, 2).bool()
    settings = train_ppo.Settings()
    advantages, returns = train_ppo.gae_advantages(rewards, values, mask, settings)
    rest = [0, 2]
    others = train_ppo.gae_advantages(rewards[rest], values[rest], mask[rest], settings)
    assert torch.allclose(advantages[rest], others[0]) and torch.equal(returns[rest], others[1])
    assert not advantages[1].any() and torch.equal(returns[1], values[1])


def test_what_has_no_score_does_not_count_as_explained(tokenizer):
    prompts = [Prompt.of(question) for question in QUESTIONS]
    batch = rollout.Rollout.of(tokenizer, prompts, ["It ran."] * 6, torch.device("cpu"))
    mask = batch.mask  # (6, R)
    values, logprobs = torch.randn(mask.shape), torch.randn(mask.shape)
    scores = torch.tensor([1.0, -1.0, math.nan, math.nan, math.nan, 2.0])
    settings = train_ppo.Settings()
    rewards = losses.token_rewards(scores, torch.zeros(mask.shape), mask, 0.0)
    advantages, returns = train_ppo.gae_advantages(rewards, values, mask, settings)
    episodes = train_ppo.Episodes(batch, logprobs, logprobs, values, advantages, returns)
    logged = train_ppo.episode_metrics(episodes, scores, torch.zeros(mask.shape), 1)
    rest = [0, 1, 5]
    expected = losses.explained_variance(values[rest], returns[rest], mask[rest])
    assert float(logged["explained_variance"]) == pytest.approx(float(expected))
    assert logged["has_score"].float().mean() == 0.5


def test_the_log_has_each_reward_and_the_score_before_the_penalty(world, tmp_path):
    one, other = f"{world / 'mine.py'}:brevity", f"{world / 'mine.py'}:same"
    settings = settings_of(world, tmp_path / "a", advantage="rloo", reward=f"{one},{other}")
    train_ppo.main(replace(settings, reward_weights="2,0.5", unfinished_score=-7.0))
    for row in metrics(tmp_path / "a"):
        assert row["reward_same"] == 3
        assert row["raw_score"] == pytest.approx(2 * row["reward_brevity"] + 1.5)
        expected = row["raw_score"] if row["finished"] == 1 else -7
        assert expected <= row["score"] <= max(row["raw_score"], expected)
        assert row["no_spread"] < 1
    settings = settings_of(world, tmp_path / "b", advantage="rloo", reward=other)
    train_ppo.main(replace(settings, unfinished_score=3.0))
    assert metrics(tmp_path / "b")[0]["no_spread"] == 1
    settings = settings_of(world, tmp_path / "c", advantage="rloo", reward=one, max_tokens=2)
    train_ppo.main(replace(settings, penalise_unfinished=False))
    for row in metrics(tmp_path / "c"):
        assert row["finished"] < 1 and row["score"] == row["raw_score"]


def test_a_value_clip_of_0_does_not_clip(world, tmp_path):
    settings = settings_of(world, tmp_path / "none", value_clip=0.0, lr=1e-2, epochs=2)
    train_ppo.main(settings)
    train_ppo.main(replace(settings, out=str(tmp_path / "wide"), value_clip=1e9))
    assert same(weights(tmp_path / "none"), weights(tmp_path / "wide"))
    train_ppo.main(replace(settings, out=str(tmp_path / "narrow"), value_clip=1e-3))
    assert any(row["value_clip_fraction"] > 0 for row in metrics(tmp_path / "narrow"))
    assert not same(weights(tmp_path / "none"), weights(tmp_path / "narrow"))


def test_the_samples_that_are_shown_answer_different_prompts(world, tmp_path):
    train_ppo.main(settings_of(world, tmp_path, advantage="rloo", overwrite=True))
    rows = [row for row in read_jsonl(tmp_path / "samples.jsonl") if "fixed" not in row]
    prompts = [row["prompt"] for row in rows if row["step"] == 0]
    assert len(prompts) == len(set(prompts)) == 3
    assert "tokens" in rows[0]


def test_the_same_requests_are_asked_at_every_logged_step(world, tmp_path):
    train_ppo.main(settings_of(world, tmp_path / "files", lr=0.0))
    rows = [row for row in read_jsonl(tmp_path / "files" / "samples.jsonl") if row.get("fixed")]
    rounds = [rows[:4], rows[4:8], rows[8:]]
    assert [answers[0]["step"] for answers in rounds] == [0, 2, 3]
    for answers in rounds:
        assert [row["prompt"] for row in answers] == list(QUESTIONS[:4])
        for before, now in zip(rounds[0], answers):  # the same random numbers and the same policy
            assert (before["response"], before["score"]) == (now["response"], now["score"])
    prompts = tmp_path / "asking.py"
    prompts.write_text(
        "def prompts(split, count, seed):\n"
        "    return [{'prompt': f'{split} {i}?'} for i in range(count)]\n"
    )
    train_ppo.main(settings_of(world, tmp_path / "world", data=str(prompts), count=9, steps=1))
    rows = read_jsonl(tmp_path / "world" / "samples.jsonl")
    assert [row["prompt"] for row in rows if row.get("fixed")] == [f"test {i}?" for i in range(4)]


# --- the ratio before an update


@pytest.mark.parametrize(
    ("advantage", "temperature"),
    [("gae", 0.7), ("gae", 1.0), ("rloo", 0.7), ("grpo", 1.0), ("reinforce", 0.7)],
)
def test_a_run_starts_every_iteration_at_ratio_1(advantage, temperature, world, tmp_path):
    out = tmp_path / "a"
    settings = settings_of(world, out, advantage=advantage, temperature=temperature)
    train_ppo.main(replace(settings, token_budget=150))
    rows = metrics(out)
    assert len(rows) == 4 and max(row["first_ratio_off"] for row in rows) < 1e-4
    assert rows[0]["kl"] == 0 and rows[-1]["kl"] != 0
    assert ("explained_variance" in rows[0]) == ("value_loss" in rows[0]) == (advantage == "gae")
    assert ("kl_loss" in rows[0]) == (advantage == "grpo")
    assert not same(weights(world / "sft"), weights(out))


@pytest.mark.parametrize("advantage", ["gae", "grpo"])
def test_at_learning_rate_0_an_iteration_changes_nothing(advantage, world, tmp_path):
    out = tmp_path / "a"
    settings = settings_of(world, out, advantage=advantage, lr=0.0, steps=1, epochs=3)
    train_ppo.main(settings)
    row = metrics(out)[0]
    assert same(weights(world / "sft"), weights(out)) and row["updates"] == 6
    assert row["kl"] == 0 and row["clip_fraction"] == 0 and row["approx_kl"] < 1e-8


def shifted(model, batch, temperature):
    return rollout.logprobs(model, batch, temperature).roll(1, dims=1)


def warmer(model, batch, temperature):
    return rollout.logprobs(model, batch, 0.9 * temperature)


def with_dropout(model, batch, temperature):
    hooks = []
    for block in model.h:
        hooks.append(block.register_forward_hook(lambda block, x, y: F.dropout(y, 0.1)))
    logprobs = rollout.logprobs(model, batch, temperature)
    for hook in hooks:
        hook.remove()
    return logprobs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [shifted, warmer, with_dropout])
def test_a_fault_in_the_training_forward_stops_the_run(fault, dtype, world, tmp_path, monkeypatch):
    right = rollout.logprobs

    def logprobs(model, batch, temperature):
        if not torch.is_grad_enabled():
            return right(model, batch, temperature)
        with monkeypatch.context() as patch:
            patch.setattr(rollout, "logprobs", right)
            return fault(model, batch, temperature)

    monkeypatch.setattr(rollout, "logprobs", logprobs)
    settings = settings_of(world, tmp_path / "a", advantage="rloo", dtype=dtype, steps=1)
    with pytest.raises(UserError, match=r"step 0: .*must be 1"):
        train_ppo.main(settings)


@pytest.mark.parametrize("advantage", ["gae", "grpo"])
def test_bfloat16_trains_like_float32(advantage, world, tmp_path):
    rows = {}
    for dtype in ("float32", "bfloat16"):
        settings = settings_of(world, tmp_path / dtype, advantage=advantage, dtype=dtype, lr=3e-3)
        train_ppo.main(replace(settings, steps=10, prompts_per_step=6, token_budget=150))
        rows[dtype] = metrics(tmp_path / dtype)
    assert len(rows["bfloat16"]) == 10
    off = [row["first_ratio_off"] for row in rows["bfloat16"]]
    assert max(off) < train_ppo.FIRST_RATIO_LIMIT[torch.bfloat16] / 2
    first = rows["bfloat16"][0], rows["float32"][0]
    assert first[0]["entropy"] == pytest.approx(first[1]["entropy"], rel=0.1)


# --- it is one loop


@pytest.mark.parametrize(
    ("advantage", "length_norm"),
    [("gae", "token"), ("grpo", "response"), ("grpo", "constant")],
)
def test_micro_batches_change_nothing_but_rounding(advantage, length_norm, world, tmp_path):
    text = {"ptx_data": str(world / "text.txt"), "ptx_coef": 0.5}
    settings = settings_of(world, tmp_path / "one", advantage=advantage, steps=1, **text)
    settings = replace(settings, length_norm=length_norm)
    train_ppo.main(settings)
    train_ppo.main(replace(settings, out=str(tmp_path / "many"), token_budget=1))
    one, many = metrics(tmp_path / "one")[0], metrics(tmp_path / "many")[0]
    assert one.keys() == many.keys()
    for name in one.keys() - {"first_ratio_off", "log_ratio_rms", "approx_kl"}:
        assert one[name] == pytest.approx(many[name], rel=1e-3, abs=1e-5), name


def test_length_normalisers_are_three_different_losses(world, tmp_path):
    norms = {}
    for name in ("auto", "token", "response", "constant"):
        settings = settings_of(world, tmp_path / name, advantage="rloo", length_norm=name, steps=1)
        train_ppo.main(settings)
        norms[name] = metrics(tmp_path / name)[0]["grad_norm"]
    assert norms["auto"] == norms["constant"]
    assert len({round(norm, 6) for norm in norms.values()}) == 3


def test_the_kl_in_the_reward_and_in_the_log_are_one(world, tmp_path):
    train_ppo.main(settings_of(world, tmp_path / "a", kl_coef=0.5))
    for row in metrics(tmp_path / "a"):
        assert row["reward"] == pytest.approx(row["score"] - 0.5 * row["kl"], abs=1e-4)


def test_an_adaptive_kl_coefficient_rises_above_its_target(world, tmp_path):
    settings = settings_of(world, tmp_path / "a", kl_target=1e-6, lr=1e-2, steps=6)
    train_ppo.main(settings)
    rows = metrics(tmp_path / "a")
    for before, after in pairwise(rows):
        horizon = 6 * 9 / train_ppo.HORIZONS
        expected = losses.adapt_kl_coef(before["kl_coef"], before["kl"], 1e-6, 9, horizon)
        assert after["kl_coef"] == pytest.approx(expected)
    assert rows[-1]["kl_coef"] > 1.5 * rows[0]["kl_coef"]  # six iterations are enough to matter


def test_updates_end_when_the_policy_has_moved_too_far(world, tmp_path):
    settings = settings_of(world, tmp_path / "a", lr=3e-2, epochs=4, advantage="rloo")
    train_ppo.main(replace(settings, stop_update_kl=1e-4))
    assert 1 <= metrics(tmp_path / "a")[1]["updates"] < 8
    train_ppo.main(replace(settings, stop_update_kl=0, out=str(tmp_path / "b")))  # 0: never
    assert metrics(tmp_path / "b")[1]["updates"] == 8


class Killed(Exception):
    pass


@pytest.mark.parametrize("advantage", ["gae", "grpo"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(advantage, world, tmp_path, monkeypatch):
    text = {"ptx_data": str(world / "text.txt"), "ptx_coef": 0.5}
    settings = settings_of(world, tmp_path / "whole", advantage=advantage, kl_target=2.0, **text)
    train_ppo.main(settings)
    cut = replace(settings, out=str(tmp_path / "cut"))
    log = Run.log

    def die(self, step, *args, **metrics):
        log(self, step, *args, **metrics)
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "log", die)
        train_ppo.main(cut)
    train_ppo.main(replace(cut, resume=True))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


# --- it learns


@pytest.mark.parametrize("advantage", METHODS)
def test_it_learns(advantage, world, tmp_path):
    """A reward that any policy can raise: short responses."""
    settings = settings_of(world, tmp_path / "a", advantage=advantage, steps=20, lr=3e-3)
    settings.reward = f"{world / 'mine.py'}:brevity"
    train_ppo.main(
        replace(settings, prompts_per_step=6, samples_per_prompt=4, max_tokens=24, kl_coef=0.01)
    )
    rows = metrics(tmp_path / "a")
    first = sum(row["score"] for row in rows[:3]) / 3
    last = sum(row["score"] for row in rows[-3:]) / 3
    assert last > first + 0.4 * rows[0]["score_std"]
    assert all(abs(row["kl"]) < 100 for row in rows)


def test_the_pretraining_mix_keeps_the_language_model(world, tmp_path):
    """The loss on held-out text is logged with the mix or without, and only the mix lowers it."""
    rows, end = {}, {}
    for name, coef in (("without", 0.0), ("with", 1.0)):
        settings = settings_of(world, tmp_path / name, advantage="rloo", lr=3e-3, steps=6)
        train_ppo.main(replace(settings, ptx_data=str(world / "text.txt"), ptx_coef=coef))
        rows[name] = metrics(tmp_path / name)
        end[name] = read_json(tmp_path / name / "run.json")["lm_loss"]
    assert rows["with"][0]["lm_loss"] == rows["without"][0]["lm_loss"]
    assert "lm_loss" not in rows["with"][1]  # logged every second step
    assert end["with"] < rows["with"][0]["lm_loss"] - 0.3 and end["with"] < end["without"] - 0.3


@pytest.mark.parametrize(("kind", "samples"), [("rloo", 4), ("grpo", 4), ("reinforce", 1)])
def test_a_tabular_policy_approaches_the_optimum_and_does_not_exceed_it(kind, samples):
    """One prompt, six responses of one token; the optimum is pi0 exp(r / beta) / Z."""
    generator = torch.Generator().manual_seed(0)
    beta = 0.5
    reward = torch.tensor([1.0, 0.5, 0.0, -1.0, 0.8, 0.2])
    ref = torch.log_softmax(torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, 1.0]), 0)
    best = float(beta * torch.logsumexp(ref + reward / beta, 0))  # max of E r - beta KL
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.03)
    reached = []
    mask = torch.ones(256, 1, dtype=torch.bool)
    for step in range(250):
        logp = torch.log_softmax(logits, 0)
        with torch.no_grad():
            reached.append(float(logp.exp() @ reward - beta * losses.exact_kl(logp, ref)))
        action = torch.multinomial(logp.exp().detach(), 256, replacement=True, generator=generator)
        old = logp[action][:, None].detach()  # (B, 1)
        kl = old - ref[action][:, None]
        total = losses.token_rewards(reward[action], kl, mask, beta).sum(1)
        groups = total.view(-1, samples)
        advantages = losses.group_advantages(groups, kind, divide_by_std=False).reshape(-1, 1)
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 250)
        loss, _ = losses.ppo_policy_loss(logp[action][:, None], old, advantages, mask, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(reached) <= best + 1e-6
    assert reached[-1] > best - 0.02 * (best - reached[0])
    assert torch.allclose(logits.softmax(0), torch.softmax(ref + reward / beta, 0), atol=0.05)


# --- what can go wrong


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"advantage": "rloo", "samples_per_prompt": 1}, "--samples_per_prompt"),
        (
            {"advantage": "reinforce", "samples_per_prompt": 1, "prompts_per_step": 1},
            "--samples_per_prompt",
        ),
        ({"ptx_coef": 1.0}, "--ptx_data"),
        ({"kl_coef": 0.0, "kl_target": 1.0}, "--kl_target"),
        ({"ensemble": "min"}, "--ensemble"),
        ({"reward_weights": "1,2"}, "--reward_weights"),
        ({"minibatches": 0}, "--minibatches"),
        ({"reference": "foreign"}, "--reference"),
        ({"reference": "short"}, "--reference short has a shorter context"),
        ({"reward": "foreign_rm"}, "value model"),
        ({"max_tokens": 63}, "prompts"),
    ],
)
def test_what_cannot_be_names_the_flag(changes, named, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    with pytest.raises(UserError, match=named):
        train_ppo.main(settings_of(world, tmp_path / "a", **changes))
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_a_reward_model_with_other_tokens_will_do_without_a_value_model(world, tmp_path):
    both = f"{world / 'foreign_rm'},{world / 'rm'}"
    settings = settings_of(world, tmp_path / "b", reward=both, ensemble="min", advantage="rloo")
    train_ppo.main(replace(settings, steps=1, watch=f"{world / 'mine.py'}:brevity"))
    assert any(name.startswith("watch_") for name in metrics(tmp_path / "b")[0])


CASES = {
    "huge rewards": {"reward": "mine.py:huge"},
    "equal rewards": {"reward": "mine.py:same"},
    "one token": {"max_tokens": 1},
    "one prompt": {"prompts_per_step": 1, "minibatches": 4},
    "lora": {"lora_rank": 4},
    "another reference": {"reference": "sft"},
}


@pytest.mark.parametrize("case", CASES)
def test_extremes_stay_finite(case, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    for advantage in ("gae", "grpo"):
        settings = settings_of(world, tmp_path / advantage, advantage=advantage, **CASES[case])
        train_ppo.main(replace(settings, steps=2))
        check_finite(tmp_path / advantage)


def check_finite(folder: Path) -> None:
    for row in metrics(folder):
        assert all(isinstance(x, int | float) for x in row.values()), row  # NaN is written as null
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_a_loss_that_is_not_finite_stops_the_run(world, tmp_path):
    reward = f"{world / 'mine.py'}:beyond"
    with pytest.raises(UserError, match="not finite"):
        train_ppo.main(settings_of(world, tmp_path / "a", advantage="gae", reward=reward))


def test_show_batch_colours_what_is_sampled(world, tmp_path, capsys):
    train_ppo.main(settings_of(world, tmp_path / "a", show_batch=True))
    assert "\x1b[32m" in capsys.readouterr().out and not (tmp_path / "a").exists()


def test_every_flag_has_help_and_a_group():
    notes = cli.comments(train_ppo.Settings)
    assert all(notes[field.name][1] for field in fields(train_ppo.Settings))
    assert {heading for heading, _ in notes.values()} >= {"everyday", "method", "memory", "run"}
