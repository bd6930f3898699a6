"""Supervised fine-tuning: what is learnt, what is held out, micro-batches."""

import json
import random
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, tiny
from safetensors.torch import load_file

import train_sft
from minirlhf import UserError
from minirlhf.batches import held_out
from minirlhf.files import read_json, read_jsonl
from minirlhf.model import GPT
from minirlhf.supervised import (
    add_gradient,
    lm_loss,
    row_prompt,
    supervised_tokens,
    to_rows,
    validation_loss,
)


def settings_of(out, **changes) -> train_sft.Settings:
    options = {"out": str(out), "steps": 6, "eval_every": 3, "save_every": 4} | SMALL
    return train_sft.Settings(**options | changes)


def test_the_loss_is_the_mean_over_supervised_tokens(policy):
    """Against plain log-probs, one conversation at a time."""
    conversations = [
        (("user", "hi"), ("assistant", "It is 5."), ("user", "Why?"), ("assistant", "")),
        (("text", ""), ("assistant", "The fox ran home.")),
    ]
    rows = to_rows(policy, conversations)
    expected = 0.0
    for ids, mask in rows:
        with torch.no_grad():
            logprobs = policy(torch.tensor([ids]))[0].log_softmax(-1)  # (T, V)
        for position in range(1, len(ids)):
            if mask[position]:
                expected -= float(logprobs[position - 1, ids[position]])
    expected /= supervised_tokens(rows)
    assert lm_loss(policy, rows, supervised_tokens(rows)).item() == pytest.approx(
        expected, abs=1e-5
    )
    assert validation_loss(policy, rows, 8) == pytest.approx(expected, abs=1e-5)


def test_micro_batches_add_up(policy):
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["fox", "dog", "the", "cat"], k=rng.randrange(1, 9))) for _ in range(9)
    ]
    rows = to_rows(policy, [(("user", "hi"), ("assistant", text)) for text in texts])
    gradients = []
    for token_budget in (1, 10_000):
        policy.zero_grad()
        loss = add_gradient(policy, rows, token_budget)
        gradients.append((loss, policy.wte.weight.grad.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-5)


def test_long_texts_become_rows_and_rows_are_split(tokenizer):
    model = tiny(tokenizer, n_positions=16)
    short = [(("text", ""), ("assistant", f"fox {number}")) for number in range(3)]
    long = (("text", ""), ("assistant", "The fox ran home. " * 60))
    rows = to_rows(model, [*short, long])
    assert len(rows) > 20 and all(len(ids) <= 16 for ids, _ in rows)
    assert sum(ids == rows[0][0] for ids, _ in rows) == 1
    train, validation = held_out(rows, key=row_prompt, fraction=0.2)
    assert 1 <= len(validation) < len(rows) / 2 and len(train) + len(validation) == len(rows)


def test_a_dialogue_that_does_not_fit_is_skipped(tokenizer, capsys):
    model = tiny(tokenizer, n_positions=16)
    fits, too_long = (
        (("user", "hi"), ("assistant", "yo")),
        (("user", "hi " * 30), ("assistant", "yo")),
    )
    assert len(to_rows(model, [fits, too_long])) == 1
    assert "1 of 2" in capsys.readouterr().out
    with pytest.raises(UserError, match="16"):
        to_rows(model, [too_long])


def test_a_run_learns_and_leaves_a_model_folder(tmp_path):
    train_sft.main(settings_of(tmp_path / "a", steps=30))
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["validation_loss"] > 0
    assert read_json(tmp_path / "a" / "run.json")["finished"] is True
    model = GPT.from_pretrained(tmp_path / "a")
    assert model.config.n_embd == 32

    train_sft.main(
        settings_of(tmp_path / "b", steps=3, init=str(tmp_path / "a"), lora_rank=2, lr=0.0)
    )
    before = load_file(tmp_path / "a" / "model.safetensors")
    after = load_file(tmp_path / "b" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)  # a learning rate of 0


def test_a_model_that_is_given_learns_more_slowly_than_a_fresh_one(tmp_path):
    fresh, tuned = tmp_path / "fresh", tmp_path / "tuned"
    common = {"steps": 2, "warmup": 0, "lr": train_sft.Settings.lr}
    train_sft.main(settings_of(fresh, **common))
    train_sft.main(settings_of(tuned, init=str(fresh), **common))
    first = [read_jsonl(out / "metrics.jsonl")[0]["lr"] for out in (fresh, tuned)]
    assert first == [pytest.approx(2e-2), pytest.approx(1e-4)]


def test_settings_that_do_not_go_together(tmp_path):
    for changes, word in (
        ({"lora_rank": 4}, "--lora_rank"),
        ({"n_embd": 33}, "--n_embd"),
        ({"batch_size": 0}, "--batch_size"),
        ({"data": "nothing.jsonl"}, "nothing.jsonl"),
    ):
        with pytest.raises(UserError, match=word):
            train_sft.main(settings_of(tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_show_batch_colours_what_is_supervised(tmp_path, capsys):
    train_sft.main(settings_of(tmp_path / "x", show_batch=True))
    shown = capsys.readouterr().out
    assert "\x1b[32m" in shown and "\x1b[2m" in shown
    assert not (tmp_path / "x").exists()


def test_one_seed_is_one_run(tmp_path):
    for name in "ab":
        train_sft.main(settings_of(tmp_path / name))
    train_sft.main(replace(settings_of(tmp_path / "c"), seed=1))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_epochs_decide_how_many_steps_there_are(tmp_path):
    rows = [json.dumps({"prompt": f"{i}?", "completion": "yes"}) for i in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    options = {"data": str(tmp_path / "data.jsonl"), "n_embd": 16, "vocab_size": 260}
    options |= {"validation": 0, "batch_size": 4, "out": str(tmp_path / "run")}
    train_sft.main(train_sft.Settings(epochs=1.5, **options))
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 8  # 1.5 * 20 / 4
    with pytest.raises(UserError, match="--epochs"):
        train_sft.main(train_sft.Settings(epochs=1.5, steps=10, **options))
