"""The reward model: its first loss, its scale, little data, no room, what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny

import train_dpo
import train_rm
from minirlhf import UserError, batches
from minirlhf.data import Prompt, read_rankings
from minirlhf.files import read_json, read_jsonl
from minirlhf.model import GPT, ScalarGPT
from minirlhf.preferences import group_scores, to_groups, validate
from minirlhf.rewards import TrainedReward
from minirlhf.rollout import sample

GARDEN = {"prompt": "A fox?", "responses": ["It ran.", "A dog", "?"], "ranks": [1, 2, 3]}
AGAIN = GARDEN | {"responses": ["The fox ran home.", "cat"], "ranks": [2, 1]}
BIRD = {"prompt": "Why?", "chosen": "Because it can.", "rejected": "Not"}
LONG = {"prompt": "The dog slept by the fire. " * 3, "chosen": "It ran.", "rejected": "It slept."}


@pytest.fixture
def parent(tokenizer, tmp_path):
    tiny(tokenizer, n_positions=96).save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def file_of(tmp_path, rows) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings_of(parent, tmp_path, rows, **changes) -> train_rm.Settings:
    options = {"init": str(parent), "data": file_of(tmp_path, rows), "out": str(tmp_path / "rm")}
    options |= {"steps": 2, "batch_size": 2, "max_tokens": 8}
    return train_rm.Settings(**options | changes)


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def assert_strict_json(folder) -> None:
    files = sorted([*folder.rglob("*.json"), *folder.rglob("*.jsonl")])
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8")
        parts = text.splitlines() if path.suffix == ".jsonl" else [text]
        for part in parts:
            json.loads(part, parse_constant=refuse_constant)


def test_a_fresh_reward_models_loss_is_ln_2(stages):
    first = read_jsonl(stages / "rm" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["accuracy"] == 0.5


def test_scores_are_normalised_and_do_not_depend_on_the_batch(stages):
    policy = GPT.from_pretrained(stages / "sft")
    prompts = list({r.prompt: None for r in read_rankings(str(stages / "rankings.jsonl"))})
    batch = sample(policy, prompts, 24, torch.Generator().manual_seed(1), temperature=0.7)
    reward = TrainedReward(ScalarGPT.from_pretrained(stages / "rm"))
    scores = torch.tensor(reward(batch.prompts, batch.responses))
    assert abs(float(scores.mean())) < 0.6 and 0.5 < float(scores.std()) < 1.7
    for row in range(0, len(batch), 7):
        alone = reward(batch.prompts[row : row + 1], batch.responses[row : row + 1])
        assert alone[0] == pytest.approx(float(scores[row]), abs=1e-4)


def test_a_group_scores_as_its_responses_do_alone(tokenizer, tmp_path):
    """K responses share one forward; a row per response is the reference."""
    model = tiny(tokenizer, ScalarGPT)
    groups = to_groups(tokenizer, read_rankings(file_of(tmp_path, [GARDEN, BIRD])), 64)
    scores, ranks, mask, chances = group_scores(model, groups)
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    assert ranks[0].tolist() == [1, 2, 3] and chances[1, 0].tolist() == [0, 1, 0]
    for i, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            ids = torch.tensor([group.prompt_ids + response])
            alone = model(ids)[0, -1].detach()
            assert scores[i, k].item() == pytest.approx(float(alone), abs=1e-4)
    result = validate(model, groups, 64)
    assert result["validation_pairs"] == 4 and 0 <= result["validation_accuracy"] <= 1


LITTLE_DATA = [[GARDEN], [GARDEN, AGAIN, AGAIN], [GARDEN, BIRD], [BIRD, BIRD, AGAIN]]


@pytest.mark.parametrize("rows", LITTLE_DATA)
@pytest.mark.parametrize("normalize_samples", [0, 1, 256])
def test_a_reward_model_of_one_or_two_prompts_loads(parent, tmp_path, rows, normalize_samples):
    train_rm.main(settings_of(parent, tmp_path, rows, normalize_samples=normalize_samples))
    model = ScalarGPT.from_pretrained(tmp_path / "rm")
    assert math.isfinite(model.config.score_mean)
    assert 0 < model.config.score_std < 1e6
    assert_strict_json(tmp_path / "rm")


def test_one_prompt_is_trained_on_whatever_its_hash(parent, tmp_path):
    for i in range(12):  # a tenth of all prompts is held out by its hash
        row = BIRD | {"prompt": f"Why {i}?"}
        train_rm.main(settings_of(parent, tmp_path, [row], out=str(tmp_path / str(i)), steps=1))


def test_dpo_on_one_and_two_prompts_writes_json(parent, tmp_path):
    for name, rows in (("one", [GARDEN, AGAIN]), ("two", [GARDEN, BIRD])):
        options = {"init": str(parent), "data": file_of(tmp_path, rows), "steps": 2}
        out = str(tmp_path / name)
        train_dpo.main(train_dpo.Settings(**options, out=out, max_tokens=8, eval_every=1))
        assert_strict_json(tmp_path / name)


@pytest.mark.parametrize("max_tokens", [90, 96, 500])
def test_no_room_for_a_response_is_said_before_training(parent, tmp_path, max_tokens):
    longer = GARDEN | {"prompt": LONG["prompt"] + "Why?"}
    settings = settings_of(parent, tmp_path, [LONG, LONG, longer], max_tokens=max_tokens)
    with pytest.raises(UserError) as caught:
        train_rm.main(settings)
    tokenizer = GPT.from_pretrained(parent).tokenizer
    shortest = len(tokenizer.encode_prompt(Prompt.of(LONG["prompt"]).turns))
    for word in (f"--max_tokens {max_tokens}", "96", f"{shortest}"):
        assert word in str(caught.value)
    assert not (tmp_path / "rm").exists()
    settings.max_tokens = 96 - shortest
    train_rm.main(settings)
    if max_tokens == 90:
        changes = {"max_tokens": 80, "truncate": True, "out": str(tmp_path / "cut")}
        train_rm.main(replace(settings, **changes))


def test_without_normalisation_no_room_is_needed(parent, tmp_path):
    options = {"max_tokens": 96, "normalize_samples": 0}
    train_rm.main(settings_of(parent, tmp_path, [LONG, GARDEN], **options))


def test_the_context_is_that_of_the_policy_which_is_sampled(parent, tokenizer, tmp_path):
    tiny(tokenizer, n_positions=24).save_pretrained(tmp_path / "short")
    settings = settings_of(parent, tmp_path, [LONG, LONG])
    settings.normalize_on = str(tmp_path / "short")
    with pytest.raises(UserError, match="24"):
        train_rm.main(settings)
    settings.normalize_on = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        train_rm.main(settings)
    assert not (tmp_path / "rm").exists()


def test_a_reward_model_goes_on_learning_and_says_what_it_was_worth(stages, tmp_path):
    newest = tmp_path / "newest.jsonl"
    newest.write_bytes((stages / "rankings.jsonl").read_bytes())
    train_rm.main(
        train_rm.Settings(
            init=str(stages / "rm"),
            normalize_on=str(stages / "sft"),
            data=f"{stages / 'rankings.jsonl'},{newest}",
            out=str(tmp_path / "rm"),
            steps=2,
            max_tokens=8,
        )
    )
    result = read_json(tmp_path / "rm" / "run.json")
    assert 0 <= result["newest_before"] <= 1 and 0 <= result["newest_after"] <= 1
    assert read_jsonl(tmp_path / "rm" / "metrics.jsonl")[0]["loss"] < math.log(2)


def many(count: int) -> list[dict]:
    rows = []
    for i in range(count):
        rows.append({"prompt": f"Why {i}?", "chosen": "Because it can.", "rejected": "No"})
    return rows


def test_the_best_validation_is_kept_and_survives_a_stop(parent, tmp_path, monkeypatch):
    """With an absurd learning rate the first validation is the best one."""
    changes = {"steps": 6, "eval_every": 2, "keep_best": True, "lr": 0.3, "warmup": 0}
    changes |= {"save_every": 3, "normalize_samples": 0, "validation": 0.3}
    settings = settings_of(parent, tmp_path, many(20), **changes)
    train_rm.main(settings)
    rows = read_jsonl(tmp_path / "rm" / "metrics.jsonl")
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 3
    assert read_json(tmp_path / "rm" / "run.json")["validation_loss"] == min(losses)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    settings = train_rm.Settings(**vars(settings) | {"out": str(tmp_path / "again")})
    with monkeypatch.context() as patch:
        patch.setattr(train_rm, "report_accuracy", stop)
        with pytest.raises(KeyboardInterrupt):
            train_rm.main(settings)
    settings.resume = True
    train_rm.main(settings)
    whole, again = (weights_of(tmp_path / name) for name in ("rm", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def weights_of(folder) -> dict:
    return ScalarGPT.from_pretrained(folder).state_dict()


def conversations(count: int) -> list[dict]:
    """Pairs of `count` conversations of three turns, each with its history as the prompt."""
    rows = []
    for i in range(count):
        history = []
        for turn in range(3):
            history = [*history, {"role": "user", "content": f"Question {i}, {turn}?"}]
            rows.append({"prompt": history, "chosen": "It ran.", "rejected": "No."})
            history = [*history, {"role": "assistant", "content": "It ran."}]
    return rows


@pytest.mark.parametrize("script", [train_rm, train_dpo])
def test_a_conversation_is_trained_on_or_held_out_as_a_whole(script, parent, tmp_path, monkeypatch):
    parts = []

    def held_out(items, key, *options):
        parts.extend(batches.held_out(items, key, *options))
        return parts

    monkeypatch.setattr(script, "held_out", held_out)
    settings = {"init": str(parent), "data": file_of(tmp_path, conversations(20))}
    script.main(script.Settings(**settings, out=str(tmp_path / "out"), show_batch=True))
    train, validation = [{group.first_request() for group in part} for part in parts]
    assert train and validation and not train & validation
    assert len(parts[1]) == 3 * len(validation)


def test_pairs_of_one_conversation_do_not_narrow_the_interval(parent, tokenizer, tmp_path):
    rankings = read_rankings(file_of(tmp_path, conversations(6)))
    model = tiny(tokenizer, ScalarGPT, spread=2.0, n_positions=96)
    groups = to_groups(tokenizer, rankings, 96)
    assert validate(model, groups, 512)["beside_length"]["accuracy"]["prompts"] == 6


def test_accuracy_stands_beside_length(parent, tmp_path, capsys):
    changes = {"normalize_samples": 0, "validation": 0.3}
    train_rm.main(settings_of(parent, tmp_path, many(20), **changes))
    said = capsys.readouterr().out
    assert "choosing the longer response" in said
    assert read_json(tmp_path / "rm" / "run.json")["beside_length"]["longer_wins"]["mean"] == 1
    assert "warning: not clearly better than choosing the longer" in said or "coin" in said
    with pytest.raises(UserError, match="--eval_every"):
        train_rm.main(settings_of(parent, tmp_path, many(4), keep_best=True))


def test_training_accuracy_does_not_depend_on_micro_batches(parent, tmp_path):
    """Prompts with three responses and with two: all pairs count alike."""
    model = ScalarGPT.from_pretrained(parent)
    torch.nn.init.normal_(model.score.weight)
    path = file_of(tmp_path, [GARDEN, AGAIN, BIRD])
    groups = to_groups(model.tokenizer, read_rankings(path), model.config.n_positions)
    loss, accuracy = train_rm.add_gradient(model, groups, 4096)
    assert accuracy == pytest.approx(validate(model, groups, 4096)["validation_accuracy"])
    assert train_rm.add_gradient(model, groups, 1) == pytest.approx((loss, accuracy))


def test_the_newest_rankings_are_of_the_last_file_and_of_no_other(parent, tmp_path):
    """One file's name begins as another's does."""
    one, other = str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl.gz")
    groups = []
    for where in (f"{other}, line 1", f"{one}, line 1", f"{one}, line 2"):
        groups.append(train_rm.Group(Prompt.of("A fox?"), [1], [[2], [3]], where=where))
    for name in (one, other):
        Path(name).touch()
    assert train_rm.newest_of(groups, f"{other},{one}") == groups[1:]
    assert train_rm.newest_of(groups, f"{one},{other[:-2]}*") == groups[:1]
