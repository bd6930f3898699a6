"""train_dpo.py on tiny models: every loss, online and off. The formulas are in test_losses.py."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file

import train_dpo
from minirlhf import UserError, cli
from minirlhf.data import Prompt
from minirlhf.files import read_jsonl
from minirlhf.model import GPT
from minirlhf.run import Run
from minirlhf.tokenizer import Tokenizer

PROMPTS = [
    "What is 2 + 3?",
    "Tell me of a fox.",
    "Why not?",
    "Tell me of a dog.",
    "Tell me of the cat.",
    "Who ran home?",
]
TEXTS = [
    "It is 5.",
    "The fox ran home.",
    "Because it can't.",
    "The dog slept by the fire, and the cat looked on.",
]
ONLINE = {
    "online": True,
    "reward": "shorter.py:shorter",
    "samples_per_prompt": 4,
    "unfinished_score": -99.0,
    "data": "rankings.jsonl",
}
VARIANTS = {
    "sigmoid": {},
    "conservative": {"label_smoothing": 0.1},
    "ipo": {"loss": "ipo"},
    "simpo": {"loss": "simpo"},
    "orpo": {"loss": "orpo"},
    "kto": {"loss": "kto"},
    "lora": {"lora_rank": 4},
    "online": ONLINE,
}
LN_2 = math.log(2)
START = {
    "sigmoid": LN_2,
    "conservative": LN_2,
    "ipo": 25.0,
    "kto": 0.5,
    "lora": LN_2,
    "online": LN_2,
}


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def ranking(i: int, prompt: str) -> dict:
    """2 to 4 responses, with ties; every second one repeats a response."""
    size = 2 + i % 3
    responses = [TEXTS[(i + k) % 4] for k in range(size)]
    ranks = [1 + (i + k) % 4 // 2 + k for k in range(size)]
    if i % 2:
        responses.append(TEXTS[i % 4])
        ranks.append(3)
    return {"prompt": prompt, "responses": responses, "ranks": ranks}


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dpo")
    model = tiny(tokenizer, spread=2.0)
    with torch.no_grad():  # EOS gets a logit of 4 more: some samples finish
        eos = model.wte.weight[tokenizer.eos_id]
        model.ln_f.bias += 4 * eos / eos.square().sum()
    model.save_pretrained(out / "sft")
    tiny(Tokenizer.train(["a b c. " * 9], 270)).save_pretrained(out / "foreign")
    pairs = list(enumerate(PROMPTS * 2))
    write(out / "rankings.jsonl", [ranking(i, prompt) for i, prompt in pairs])
    labelled = [{"prompt": p, "response": TEXTS[i % 4], "label": i % 3 == 0} for i, p in pairs]
    write(out / "labelled.jsonl", labelled)
    easy = [{"prompt": p, "responses": TEXTS[:3], "ranks": [1, 2, 3]} for p in PROMPTS]
    write(out / "easy.jsonl", easy)
    write(out / "good.jsonl", [{"prompt": "p", "response": x, "label": True} for x in TEXTS])
    write(out / "long.jsonl", [{"prompt": "p", "chosen": "word " * 200, "rejected": "b"}])
    (out / "shorter.py").write_text(
        "def shorter(prompts, responses):\n    return [-float(len(r)) for r in responses]\n"
    )
    return out


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def settings_of(out: Path, **changes) -> train_dpo.Settings:
    settings = {
        "init": "sft",
        "data": "rankings.jsonl",
        "out": str(out),
        "steps": 6,
        "batch_size": 3,
        "validation": 0.3,
        "eval_every": 3,
        "max_tokens": 6,
        "save_every": 2,
        "lr": 1e-3,
        "warmup": 1,
        "temperature": 1.0,
    }
    return train_dpo.Settings(**(settings | changes))


@pytest.mark.parametrize("name", VARIANTS)
def test_it_starts_where_it_must_and_micro_batches_change_only_rounding(name, tmp_path):
    logs = []
    for budget in (4096, 1):
        out = tmp_path / str(budget)
        settings = settings_of(out, **VARIANTS[name], token_budget=budget)
        train_dpo.main(replace(settings, steps=2, eval_every=2))
        logs.append(read_jsonl(out / "metrics.jsonl"))
    one, many = logs
    if name in START:
        assert one[0]["loss"] == pytest.approx(START[name], abs=1e-4)
        assert one[0]["margin"] == pytest.approx(0, abs=1e-5)
    for a, b in zip(one, many):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["rejected_logp"] == pytest.approx(b["rejected_logp"], rel=1e-4)
    assert one[1]["kl"] == pytest.approx(many[1]["kl"], abs=1e-4)
    assert one[0]["loss"] != one[1]["loss"]
    assert ("validation_accuracy" in one[1]) == (name != "online")


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["sigmoid", "kto", "online"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(name, tmp_path, monkeypatch):
    settings = settings_of(tmp_path / "whole", **VARIANTS[name], save_every=3)
    train_dpo.main(settings)
    cut = replace(settings, out=str(tmp_path / "cut"))
    log = Run.log

    def die(self, step, *args, **metrics):
        log(self, step, *args, **metrics)
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "log", die)
        train_dpo.main(cut)
    train_dpo.main(replace(cut, resume=True))
    whole, resumed = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for file in ("metrics.jsonl", "samples.jsonl"):
        logs = []
        for out in ("whole", "cut"):
            logs.append([row | {"seconds": 0} for row in read_jsonl(tmp_path / out / file)])
        assert logs[0] == logs[1] and logs[0]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "online"])
def test_every_loss_learns_the_order(name, tmp_path):
    settings = settings_of(tmp_path / "x", **VARIANTS[name], steps=40, batch_size=12)
    lr = 1e-2 if name == "lora" else 3e-3
    train_dpo.main(replace(settings, data="easy.jsonl", lr=lr, validation=0.0, eval_every=40))
    rows = read_jsonl(tmp_path / "x" / "metrics.jsonl")
    assert rows[-1]["accuracy"] == 1 and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["margin"] > rows[0]["margin"] and rows[-1]["kl"] != 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_online_finds_what_is_rewarded(tmp_path, dtype):
    settings = settings_of(tmp_path / "x", **ONLINE, steps=25, batch_size=12, lr=3e-3, dtype=dtype)
    settings = replace(settings, max_tokens=10, validation=0.0, unfinished_score=-50.0)
    train_dpo.main(replace(settings, eval_every=25))
    scores = [row["score"] for row in read_jsonl(tmp_path / "x" / "metrics.jsonl")]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 3


def test_samples_are_compared_as_they_were_sampled(tmp_path):
    settings = settings_of(tmp_path, samples_per_prompt=4, max_tokens=5)
    policy = GPT.from_pretrained("sft")
    prompts = [Prompt.of(text) for text in PROMPTS]

    def sample_and_rank(reward_fn):
        generator = torch.Generator().manual_seed(0)
        return train_dpo.sample_and_rank(settings, policy, prompts, reward_fn, generator)

    def finished(response: list[int]) -> bool:
        return response[-1] == policy.tokenizer.eos_id

    items, scores = sample_and_rank(lambda prompts, texts: [float(len(text)) for text in texts])
    assert scores.shape == (24,) and 0 < len(items) <= 6
    for item in items:
        assert len({tuple(ids) for ids in item.responses}) == len(item.ranks) > 1
        for rank, response in zip(item.ranks, item.responses):
            for other_rank, other in zip(item.ranks, item.responses):
                if finished(response) and not finished(other):
                    assert rank < other_rank  # the unfinished score is below any length
    nan = math.nan
    some, _ = sample_and_rank(lambda prompts, texts: [1.0, nan, 2.0, nan] * (len(texts) // 4))
    assert all(len(item.responses) <= 2 for item in some)  # None of a reward is no score
    equal_scores, _ = sample_and_rank(lambda prompts, texts: [0.0] * len(texts))
    for item in equal_scores:  # only finishing tells them apart
        assert any(finished(response) for response in item.responses)


def test_log_probs_of_an_item_are_those_of_its_rows_alone(tmp_path):
    policy = GPT.from_pretrained("sft")
    settings = settings_of(tmp_path)
    items = train_dpo.read(settings, policy)
    train_dpo.add_reference_logprobs(policy, items, settings)
    for item in items:
        start = len(item.prompt_ids)
        for response, reference in zip(item.responses, item.reference_logprobs):
            with torch.no_grad():
                logprobs = policy(torch.tensor([item.prompt_ids + response]))[0].log_softmax(-1)
            alone = [logprobs[start - 1 + i, token] for i, token in enumerate(response)]
            assert reference == pytest.approx(float(sum(alone)), abs=1e-3)


def test_repeated_records_do_not_narrow_the_interval(tmp_path):
    policy = GPT.from_pretrained("sft")
    settings = settings_of(tmp_path)
    reference = GPT.from_pretrained("sft")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.9)
        items = train_dpo.read(settings, policy)
        train_dpo.add_reference_logprobs(reference, items, settings)
        _, once = train_dpo.batch_loss(policy, reference, items, settings)
        _, thrice = train_dpo.batch_loss(policy, reference, items * 3, settings)
    assert once["interval"] == pytest.approx(thrice["interval"]) and once["interval"] > 0


def test_pairs_that_are_all_ranked_right_leave_an_interval(tmp_path):
    policy = GPT.from_pretrained("sft")
    settings = settings_of(tmp_path)
    items = train_dpo.read(settings, policy)
    with torch.no_grad():
        train_dpo.add_reference_logprobs(policy, items, settings)
        for item in items:  # the reference likes what is worse more than the policy does
            pairs = zip(item.reference_logprobs, item.ranks, strict=True)
            item.reference_logprobs = [logprob + 5 * rank for logprob, rank in pairs]
        _, values = train_dpo.batch_loss(policy, policy, items, settings)
    prompts = len({item.prompt for item in items})
    assert values["accuracy"] == 1 and values["interval"] == pytest.approx(min(1, 3 / prompts))


def test_long_prompts_are_cut_for_the_samples_too(folder, tmp_path):
    long = "The dog slept by the fire, and the cat looked on. " * 20
    rows = [{"prompt": f"{long}{i}", "chosen": "It is 5.", "rejected": "No."} for i in range(6)]
    write(tmp_path / "long.jsonl", rows)
    settings = settings_of(tmp_path / "out", data=str(tmp_path / "long.jsonl"), truncate=True)
    train_dpo.main(settings)
    third = read_jsonl(tmp_path / "out" / "metrics.jsonl")[2]
    assert math.isfinite(third["kl"])


def test_good_and_bad_responses_may_come_from_two_files(folder, tmp_path):
    bad = [{"prompt": "q", "response": x, "label": False} for x in TEXTS]
    write(folder / "bad.jsonl", bad)
    both = {"data": "good.jsonl,bad.jsonl", "data_weights": "0.5,0.5", "loss": "kto"}
    items = train_dpo.read(settings_of(tmp_path, **both), GPT.from_pretrained("sft"))
    assert {item.good for item in items} == {True, False}


@pytest.mark.parametrize("loss", train_dpo.REFERENCE_FREE)
def test_without_a_reference_none_is_asked(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(train_dpo, "add_reference_logprobs", None)
    train_dpo.main(settings_of(tmp_path, loss=loss))


def test_ktos_point_of_reference(tmp_path):
    """Against a direct computation; 0 at the start, and never of a response to the same prompt."""
    policy, reference = GPT.from_pretrained("sft"), GPT.from_pretrained("sft")
    settings = settings_of(tmp_path, loss="kto", data="labelled.jsonl")
    items = train_dpo.read(settings, policy)
    assert train_dpo.mismatched_kl(policy, reference, items, settings) == 0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.8)
        ratios = []
        for item, following in zip(items, items[1:] + items[:1]):
            pair = [replace(item, responses=following.responses)]
            logprobs = [train_dpo.response_logprobs(m, pair, 1.0) for m in (policy, reference)]
            ratios.append(float(logprobs[0] - logprobs[1]))
    mean = sum(ratios) / len(ratios)
    kl = train_dpo.mismatched_kl(policy, reference, items, settings)
    assert mean != 0 and kl == pytest.approx(max(0, mean), rel=1e-3)
    assert train_dpo.mismatched_kl(policy, reference, [items[0], items[0]], settings) == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "--label_smoothing"),
        ({"label_smoothing": 0.5}, "--label_smoothing"),
        ({"online": True}, "--reward"),
        (ONLINE | {"samples_per_prompt": 1}, "--samples_per_prompt"),
        (ONLINE | {"loss": "kto"}, "kto"),
        ({"reference": "nowhere"}, "nowhere"),
        ({"reference": "foreign"}, "--reference"),
        ({"data": "labelled.jsonl"}, "--loss kto"),
        ({"data": "good.jsonl", "loss": "kto"}, "4 good and 0 bad"),
        ({"data": "long.jsonl"}, "none of the records"),
        ({"lora_rank": 33}, "--lora_rank"),
    ],
)
def test_what_cannot_be_is_named(changes, named, tmp_path):
    with pytest.raises(UserError, match=named):
        train_dpo.main(settings_of(tmp_path / "x", **changes))


def test_show_batch_and_help(tmp_path, capsys):
    train_dpo.main(settings_of(tmp_path / "x", show_batch=True))
    printed = capsys.readouterr().out
    assert printed.count("rank ") >= 6 and "\x1b[32m" in printed
    assert not (tmp_path / "x").exists()
    notes = cli.comments(train_dpo.Settings)
    assert all(notes[field.name][1] for field in fields(train_dpo.Settings))


def test_a_prompt_counts_for_each_row_that_it_stands_in():
    """A budget for micro-batches is one of the tokens that are computed."""
    short = train_dpo.Item(Prompt.of("x"), [5] * 200, [[6] * 100, [7] * 100])
    long = train_dpo.Item(Prompt.of("x"), [5] * 400, [[6] * 100, [7] * 100])
    assert short.tokens() == 200 + 100 + 100
    assert long.tokens() == 400 + 100 + 400 + 100
