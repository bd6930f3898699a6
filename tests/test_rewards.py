"""Rewards of text: models, functions of one's own, worlds, ensembles and weighted sums."""

import json

import pytest
import torch
from conftest import tiny

from minirlhf import UserError, losses, rewards
from minirlhf.data import Prompt, read_prompts
from minirlhf.model import ScalarGPT
from minirlhf.tokenizer import Tokenizer

FUNCTIONS = """
def brevity(prompts, responses):
    return [-len(r) / 20 for r in responses]
def vowels(prompts, completions):
    return [sum(c in "aeiou" for c in r) for r in completions]
def any_names(p, r):
    return [float(len(x)) for x in p]
def by_place(prompts, responses, /, *more, level):
    assert not more
    return [len(r) + (l or 0) for r, l in zip(responses, level)]
def right(prompts, responses, answer, weight=2.0):
    return [weight * (a is not None and a in r) for a, r in zip(answer, responses)]
def everything(completions, **columns):
    assert set(columns) == {"answer", "level"}, columns
    return [float(level or 0) for level in columns["level"]]
def sources(prompts, responses):
    return [1.0 if isinstance(p, str) else 2.0 for p in prompts]
def picky(prompts, responses):
    return [1.0 / (r != "bad") for r in responses]
def crowd(prompts, responses):
    return [1.0 / (len(responses) < 2) for r in responses]
"""


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt.of(text) for text in texts]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A reward model, one with other tokens, a language model, and functions."""
    out = tmp_path_factory.mktemp("rewards")
    tiny(tokenizer, ScalarGPT).save_pretrained(out / "rm")
    other = Tokenizer.train(["a b c. " * 9], 270)
    tiny(other, ScalarGPT, n_positions=200).save_pretrained(out / "other_rm")
    tiny(tokenizer).save_pretrained(out / "lm")
    (out / "mine.py").write_text(FUNCTIONS)
    return out


def test_a_function_gets_the_fields_that_it_names(folder):
    path = folder / "prompts.jsonl"
    records = [
        {"prompt": "2 + 3?", "answer": "5", "level": 1},
        {"prompt": "Who?", "level": 3},
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    prompts = read_prompts(str(path))

    def scores(name: str) -> list[float]:
        return rewards.load(f"{folder / 'mine.py'}:{name}")(prompts, ["5", "me", "5"])

    assert scores("right") == [2, 0, 0]  # an answer that a record lacks is None
    assert scores("everything") == [1, 3, 0]
    assert scores("sources") == [1, 1, 2]  # prompts are as the records had them
    assert scores("any_names") == [6, 4, 1]
    assert scores("by_place") == [2, 5, 1]


def test_equal_texts_get_one_score(folder):
    model = rewards.load(str(folder / "rm"))
    texts = ["the fox", "ran", "the fox", "home and away", "the fox"]
    scores = model(prompts_of(*["x"] * 5), texts)
    assert scores[0] == scores[2] == scores[4]
    alone = [model(prompts_of("x"), [text])[0] for text in texts]
    assert scores == pytest.approx(alone, abs=1e-4) and len(set(alone)) == 3


def test_models_may_be_named_on_the_hub(folder):
    spec = f"owner/rm,{folder / 'mine.py'}:brevity,toyworld,{folder / 'rm'}"
    assert rewards.models_named(spec) == ["owner/rm", str(folder / "rm")]


def test_columns_named_as_a_functions_own_parameters_are_no_columns(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("def f(prompt, response, **rest):\n    return [len(rest)] * len(response)")
    prompts = [Prompt.of("hi", response="from the file", level=3)]
    assert rewards.load(f"{path}:f")(prompts, ["yo"]) == [1]


def test_fields_that_a_reward_names_are_used(folder, capsys):
    path = folder / "columns.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 3?", "answer": "5", "level": 1}) + "\n")

    def printed(*names: str) -> str:
        columns = rewards.columns(*(f"{folder / 'mine.py'}:{name}" for name in names))
        read_prompts(str(path), columns=columns)
        return capsys.readouterr().out

    assert "fields not used: level;" in printed("right")
    assert "fields not used: answer, level;" in printed("brevity")
    assert printed("brevity", "everything") == ""  # **columns takes all
    assert rewards.columns("", str(folder / "rm"), "toyworld") >= {"prompts", "responses"}


def test_sums_and_ensembles(folder):
    prompts, responses = prompts_of("x", "y", "z"), ["aaa", "bb bb bb", "e"]
    names = [f"{folder / 'mine.py'}:{name}" for name in ("brevity", "vowels")]
    names.append(str(folder / "rm"))
    scores = torch.tensor([rewards.load(name)(prompts, responses) for name in names])  # (3, 3)
    spec = ", ".join(names)
    for kind in ("mean", "min", "uwo"):
        combined = torch.tensor(rewards.load(spec, ensemble=kind)(prompts, responses))
        assert torch.allclose(combined, losses.combine_scores(scores, kind), atol=1e-5), kind
    weighted = rewards.load(spec, weights="0.7,-0.3,2")(prompts, responses)
    expected = 0.7 * scores[0] - 0.3 * scores[1] + 2 * scores[2]
    assert weighted == pytest.approx(expected.tolist(), abs=1e-4)
    assert rewards.models_named(spec) == [str(folder / "rm")]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ensemble": "min"}, "--ensemble min"),
        ({"weights": "0.5,0.5"}, "--reward_weights"),
        ({"weights": "much"}, "--reward_weights much"),
    ],
)
def test_combinations_that_cannot_be(options, named, folder):
    with pytest.raises(UserError, match=named):
        rewards.load(str(folder / "rm"), **options)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("return [1.0]", "for 3 responses"),
        ("return None", "None"),
        ("return [float('nan')] * len(r)", "nan"),
        ("return ['x'] * len(r)", "'x'"),
        ("raise KeyError('oops')", "KeyError"),
    ],
)
def test_a_function_that_misbehaves_is_named(code, named, tmp_path):
    (tmp_path / "bad.py").write_text(f"def f(p, r):\n    {code}\n")
    reward_fn = rewards.load(f"{tmp_path / 'bad.py'}:f")
    with pytest.raises(UserError, match=named) as error:
        reward_fn(prompts_of("a", "b", "c"), ["x", "y", "z"])
    assert "bad.py:f" in str(error.value)


def test_a_function_that_does_not_tell_its_parameters_gets_the_two(tmp_path):
    (tmp_path / "builtin.py").write_text("largest = max\n")
    name = f"{tmp_path / 'builtin.py'}:largest"
    assert rewards.columns(name) == set()
    with pytest.raises(UserError, match="gave 'z' for the response 'z'"):  # max(["a"], ["z"])
        rewards.load(name)(prompts_of("a"), ["z"])


def test_the_first_response_that_a_function_fails_on_is_named(folder):
    picky = rewards.load(f"{folder / 'mine.py'}:picky")
    with pytest.raises(UserError, match=r"ZeroDivisionError.*response 2 of 4: 'bad' to 'c'"):
        picky(prompts_of(*"abcd"), ["x", "y", "bad", "bad"])
    crowd = rewards.load(f"{folder / 'mine.py'}:crowd")
    with pytest.raises(UserError, match="for no response alone"):
        crowd(prompts_of("a", "b"), ["x", "y"])


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("mine.py", "brevity, by_place, crowd"),  # no function named: those that there are
        ("mine.py:nothing", "brevity"),
        ("nowhere.py:f", "does not exist"),
        ("broken.py:f", "SyntaxError"),
        ("lm", "train_rm.py"),
        ("rm,,lm", "commas"),
    ],
)
def test_a_reward_that_is_none(spec, named, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=named):
        rewards.load(spec)


def test_a_world_is_a_reward(tmp_path):
    path = tmp_path / "short_world.py"
    path.write_text("def reward(prompts, responses):\n    return [-len(r) for r in responses]\n")
    assert rewards.load(str(path))(prompts_of("a", "b"), ["xx", ""]) == [-2, 0]
    assert len(rewards.load("toyworld")(prompts_of("What is 2 plus 3?"), ["2 plus 3 is 5."])) == 1


def test_a_reward_models_scores_do_not_depend_on_the_batch(folder):
    reward_fn = rewards.load(str(folder / "rm"))
    prompts = prompts_of("What is 2 + 3?", "Why not?", "Tell me of the dog by the fire.") * 4
    responses = [" the fox" * (i % 5) for i in range(12)]
    together = reward_fn(prompts, responses)
    alone = [reward_fn([p], [r])[0] for p, r in zip(prompts, responses)]
    assert together == pytest.approx(alone, abs=1e-4) and len(set(together)) > 6


def test_a_response_beyond_the_context_is_read_as_far_as_it_fits(tokenizer):
    model = tiny(tokenizer, ScalarGPT, spread=2.0)
    limit = model.config.n_positions
    prompt = Prompt.of("Why?")
    words = " the fox" * limit
    ids = tokenizer.encode_prompt(prompt.turns) + tokenizer.encode_response(prompt.turns, words)
    tokens = torch.tensor([[*ids[: limit - 1], tokenizer.eos_id]])
    with torch.no_grad():
        expected = model(tokens)[:, -1].tolist()
    assert rewards.TrainedReward(model)([prompt], [words]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="no room"):
        rewards.TrainedReward(model)(prompts_of(words), [" the fox"])


@pytest.mark.parametrize(
    "code",
    [
        "torch.zeros(len(r), 2)",
        "torch.tensor(1.0)",
        "[10**400] * len(r)",
        "[1e300] * len(r)",
        "['1'] * len(r)",
        "dict.fromkeys(range(len(r)))",
        "r.clear() or []",
        "sys.exit(3)",
        "[10**5000] * len(r)",
        "10**5000",
        "(int(x) for x in r)",
        "numpy.zeros((len(r), 2))",
        "[float('nan')] * len(r)",
    ],
)
def test_what_is_no_number_for_each_response_is_one_sentence(tmp_path, code):
    file = tmp_path / "odd_rewards.py"
    file.write_text(f"import sys, numpy, torch\n\ndef f(p, r):\n    return {code}\n")
    prompts = [Prompt.of("hi")] * 3
    with pytest.raises(UserError, match=r"odd_rewards\.py:f"):
        rewards.load(f"{file}:f")(prompts, ["a", "b", "c"])


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    file = tmp_path / "good_rewards.py"
    file.write_text(
        "import numpy, torch\n\ndef f(p, r):\n"
        "    yield from [numpy.float32(1), torch.tensor(2.0), True]\n"
    )
    assert rewards.load(f"{file}:f")([Prompt.of("hi")] * 3, ["a", "b", "c"]) == [1, 2, 1]
    with pytest.raises(UserError, match="--reward_weights"):
        rewards.load(f"{file}:f", weights="nan")


def test_what_a_function_does_to_its_arguments_changes_nothing(tmp_path):
    file = tmp_path / "rude_rewards.py"
    file.write_text(
        "def f(prompts, responses, tags):\n"
        "    prompts[0].pop()\n"
        "    tags[0].append('seen')\n"
        "    scores = [float(len(p)) for p in prompts]\n"
        "    prompts.reverse()\n"
        "    responses.sort()\n"
        "    return scores\n"
    )
    messages = [{"role": "user", "content": "Who?"}]
    prompt = Prompt.of(messages, tags=[])
    responses = ["b", "a"]
    assert rewards.load(f"{file}:f")([prompt, prompt], responses) == [0, 1]
    assert prompt.source == messages and len(messages) == 1 and prompt.columns == {"tags": []}
    assert responses == ["b", "a"]


def test_a_file_may_use_neighbours_dataclasses_and_a_pool(tmp_path):
    (tmp_path / "neighbour_of_pool.py").write_text("BONUS = 2.0\n")
    (tmp_path / "pool_rewards.py").write_text(
        "from __future__ import annotations\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from dataclasses import dataclass\n"
        "from neighbour_of_pool import BONUS\n\n"
        "@dataclass\nclass Answer:\n    text: str\n\n"
        "def value(answer: Answer) -> float:\n    return len(answer.text) + BONUS\n\n"
        "def f(prompts, responses):\n"
        "    with ProcessPoolExecutor(1) as pool:\n"
        "        return list(pool.map(value, map(Answer, responses)))\n"
    )
    reward_fn = rewards.load(f"{tmp_path / 'pool_rewards.py'}:f")
    assert reward_fn(prompts_of("x", "y"), ["a", "bb"]) == [3, 4]
