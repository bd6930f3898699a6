"""A reward model of little data: its scale is finite, and no room is known before training."""

import json
import math

import pytest
import torch
from conftest import tiny

import evaluate
import train_dpo
import train_rm
from minirlhf import UserError, report
from minirlhf.json_text import to_json, to_json_lines
from minirlhf.model import GPT, ScalarGPT
from minirlhf.run import Run, describe_result, read_jsonl

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
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(part, parse_constant=refuse_constant)


# --- little data


@pytest.mark.parametrize(
    "rows", [[GARDEN], [GARDEN, AGAIN, AGAIN], [GARDEN, BIRD], [BIRD, BIRD, AGAIN]]
)
@pytest.mark.parametrize("normalize_samples", [0, 1, 256])
def test_a_reward_model_of_one_or_two_prompts_loads(parent, tmp_path, rows, normalize_samples):
    settings = settings_of(parent, tmp_path, rows, normalize_samples=normalize_samples)
    train_rm.main(settings)
    model = ScalarGPT.from_pretrained(tmp_path / "rm")
    assert math.isfinite(model.config.score_mean)
    assert 0 < model.config.score_std < 1e6
    assert_strict_json(tmp_path / "rm")
    run = describe_result(tmp_path / "rm")
    held_out = len({row["prompt"] for row in rows}) - 1
    assert (run["validation_accuracy"] is None) == (held_out == 0)


def test_one_prompt_is_trained_on_whatever_its_hash(parent, tmp_path):
    for i in range(12):  # a tenth of all prompts is held out by its hash
        row = BIRD | {"prompt": f"Why {i}?"}
        train_rm.main(settings_of(parent, tmp_path, [row], out=str(tmp_path / str(i)), steps=1))


def test_dpo_on_one_and_two_prompts_writes_json(parent, tmp_path):
    for name, rows in (("one", [GARDEN, AGAIN]), ("two", [GARDEN, BIRD])):
        out = str(tmp_path / name)
        options = {"init": str(parent), "data": file_of(tmp_path, rows), "steps": 2}
        train_dpo.main(train_dpo.Settings(**options, out=out, max_tokens=8, eval_every=1))
        assert_strict_json(tmp_path / name)


def test_the_scale_is_that_of_the_samples():
    scores = torch.tensor([1.0, 3.0])
    assert train_rm.normalization(scores) == (2.0, 1.0)  # biased: divided by 2, not by 1
    assert train_rm.normalization(torch.tensor([0.5])) == (0.5, 1.0)
    assert train_rm.normalization(torch.full((9,), -2.0)) == (-2.0, 1.0)
    with pytest.raises(UserError, match="not finite"):
        train_rm.normalization(torch.tensor([1.0, math.inf]))


def test_a_held_out_prompt_that_does_not_fit_is_skipped(parent, tmp_path, capsys):
    too_long = LONG | {"prompt": "The fox ran home. " * 60}
    for i in range(8):  # some of them would have been the one that is held out
        rows = [GARDEN, BIRD, too_long | {"prompt": too_long["prompt"] + str(i)}]
        train_rm.main(settings_of(parent, tmp_path, rows, out=str(tmp_path / str(i)), steps=1))
        assert "1 of 3 rankings skipped" in capsys.readouterr().out
        assert describe_result(tmp_path / str(i))["validation_pairs"] > 0


# --- no room for a response


@pytest.mark.parametrize("max_tokens", [90, 96, 500])
def test_no_room_for_a_response_is_said_before_training(parent, tmp_path, max_tokens):
    longer = GARDEN | {"prompt": LONG["prompt"] + "Why?"}
    settings = settings_of(parent, tmp_path, [LONG, LONG, longer], max_tokens=max_tokens)
    with pytest.raises(UserError) as caught:
        train_rm.main(settings)
    message = str(caught.value)
    tokenizer = GPT.from_pretrained(parent).tokenizer
    shortest = len(tokenizer.encode_prompt(f"\n\nHuman: {LONG['prompt']}\n\nAssistant:"))
    room = f"leaves a prompt 96 - {max_tokens} = {96 - max_tokens} tokens"
    remedy = f"take --max_tokens {96 - shortest} or less"
    assert f"--max_tokens {max_tokens} {room}" in message
    assert f"the shortest prompt has {shortest}: {remedy}" in message
    assert not (tmp_path / "rm").exists()
    settings.max_tokens = 96 - shortest
    train_rm.main(settings)


def test_without_normalisation_no_room_is_needed(parent, tmp_path):
    settings = settings_of(parent, tmp_path, [LONG, GARDEN], max_tokens=96, normalize_samples=0)
    train_rm.main(settings)


def test_the_context_is_that_of_the_policy_which_is_sampled(parent, tokenizer, tmp_path):
    tiny(tokenizer, n_positions=24).save_pretrained(tmp_path / "short")
    settings = settings_of(parent, tmp_path, [LONG, LONG])
    settings.normalize_on = str(tmp_path / "short")
    with pytest.raises(UserError, match=r"24 - 8 = 16 tokens of .*short.*longer context"):
        train_rm.main(settings)
    with pytest.raises(UserError, match="nowhere"):
        settings.normalize_on = str(tmp_path / "nowhere")
        train_rm.main(settings)
    assert not (tmp_path / "rm").exists()


# --- what is written


def test_json_has_no_word_for_what_is_not_finite():
    rows = {"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": math.nan}, "e": "NaN"}
    expected = {"a": None, "b": [None, [None, 1.5]], "c": {"d": None}, "e": "NaN"}
    assert json.loads(to_json(rows), parse_constant=refuse_constant) == expected
    assert to_json({"é": 0.1, "n": 3}, ensure_ascii=False) == '{"é": 0.1, "n": 3}'
    assert to_json_lines([{"a": 1}, {"a": math.nan}]) == '{"a": 1}\n{"a": null}\n'


def test_a_run_logs_null_and_reads_it_again(tokenizer, tmp_path):
    settings = train_rm.Settings(out=str(tmp_path / "run"), device="cpu")
    run = Run(settings, "train_rm.py")
    run.total = 9
    model = run.place(tiny(tokenizer, ScalarGPT))
    optimizer = run.adamw([model], 1e-3)
    run.track(optimizer, model=model)
    run.log(0, ("loss",), loss=math.inf, accuracy=torch.tensor(math.nan), fine=1.0)
    run.samples(0, [{"prompt": "p", "response": "r", "score": math.nan}], show=1)
    run.checkpoint(1)
    assert_strict_json(tmp_path / "run")
    settings.resume = True
    again = Run(settings, "train_rm.py")
    again.place(model)
    again.track(optimizer, model=model)  # rewrites both logs
    assert again.row == {"step": 0, "loss": None, "accuracy": None, "fine": 1.0}
    assert read_jsonl(tmp_path / "run" / "samples.jsonl")[0]["score"] is None
    again.finish(model, peak_gib=math.nan)
    assert_strict_json(tmp_path / "run")


def test_a_config_with_a_null_scale_loads(tokenizer, tmp_path):
    model = tiny(tokenizer, ScalarGPT)
    model.config.score_mean = model.config.score_std = math.nan
    model.save_pretrained(tmp_path)
    assert_strict_json(tmp_path)
    config = ScalarGPT.from_pretrained(tmp_path).config
    assert (config.score_mean, config.score_std) == (0.0, 1.0)


def test_evaluation_and_report_hold_no_nan_and_read_null(parent, tokenizer, tmp_path):
    """One prompt has no interval."""
    reward = str(tmp_path / "round1" / "rm")
    train_rm.main(settings_of(parent, tmp_path, [GARDEN, BIRD], out=reward))
    ppo = tmp_path / "round1" / "ppo"
    GPT.from_pretrained(parent).save_pretrained(ppo)
    options = {"reward": reward, "max_tokens": 8, "temperature": 0.7}
    run = {"settings": options | {"ensemble": "mean", "data": "x", "prompts_per_step": 1}}
    (ppo / "run.json").write_text(json.dumps(run))
    row = {"step": 0, "score": None, "score_std": None, "kl": None}
    (ppo / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    evaluate.main(
        evaluate.Settings(
            policies=f"{parent},{ppo}",
            data=file_of(tmp_path, [{"prompt": "Why?"}]),
            out=str(tmp_path / "evaluation.json"),
            judge="reward",
            samples=2,
            **options,
        )
    )
    report.write(str(tmp_path))
    assert_strict_json(tmp_path)
