"""How well a reward agrees with people's pairs, beside counting characters."""

import json

import pytest
from conftest import tiny

import evaluate
from minirlhf import UserError, agreement
from minirlhf.data import Prompt, Ranking
from minirlhf.files import read_json
from minirlhf.model import ScalarGPT
from minirlhf.rewards import TrainedReward


def rankings_of(*rows, subsets=None) -> list[Ranking]:
    """(better, worse) of one prompt each."""
    rankings = []
    for i, (better, worse) in enumerate(rows):
        columns = {"subset": subsets[i]} if subsets else {}
        rankings.append(Ranking(Prompt.of(f"q {i}", **columns), [worse, better], [2, 1], "here"))
    return rankings


def count_a(prompts, responses) -> list[float]:
    return [float(response.count("a")) for response in responses]


def test_accuracy_beside_length():
    rows = [("aa", "b"), ("a", "bbb"), ("b", "aaa"), ("bbbb", "b")]  # right, right, wrong, tie
    result = agreement.measure(count_a, rankings_of(*rows, subsets=["x", "x", "y", "y"]))
    assert result["accuracy"]["mean"] == 2.5 / 4 and result["accuracy"]["pairs"] == 4
    assert result["longer_wins"]["mean"] == 0.5
    assert result["where_longer"]["mean"] == 0.75 and result["where_shorter"]["mean"] == 0.5
    assert {name: cell["mean"] for name, cell in result["subsets"].items()} == {"x": 1, "y": 0.25}
    assert "warning" in agreement.sentences(result)[-1]


def test_rankings_count_every_untied_pair():
    ranking = Ranking(Prompt.of("q"), ["a", "aa", "aaa", "x"], [3, 2, 1, 3], "here")
    result = agreement.measure(count_a, [ranking])
    assert result["accuracy"]["pairs"] == 5 and result["accuracy"]["mean"] == 1


def test_as_a_command(tokenizer, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {i}", "chosen": "a" * i, "rejected": "b"} for i in range(1, 40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.py").write_text(
        "def count_a(prompts, responses):\n    return [r.count('a') for r in responses]\n"
    )
    model = tiny(tokenizer, ScalarGPT, spread=2.0)
    model.save_pretrained(tmp_path / "rm")
    for reward in (f"{tmp_path / 'my.py'}:count_a", str(tmp_path / "rm")):
        out = tmp_path / "evaluation.json"
        evaluate.main(evaluate.Settings(reward=reward, data=str(pairs), out=str(out)))
        said = capsys.readouterr().out
        assert "accuracy" in said and "longer" in said
        assert read_json(out)["accuracy"]["pairs"] == 39
    assert "sure to" in said  # a reward model claims chances
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n')
    with pytest.raises(UserError):  # no pairs: policies are compared, and there are none
        evaluate.main(
            evaluate.Settings(policies=str(tmp_path / "no"), reward=reward, data=str(prompts))
        )


def test_a_prompt_that_a_reward_model_cannot_read_is_skipped_and_counted(tokenizer, capsys):
    reward = TrainedReward(tiny(tokenizer, ScalarGPT, spread=2.0))
    long = Ranking(Prompt.of("Why? " * 60), ["a", "b"], [1, 2], "here")
    rankings = [long, *rankings_of(("a", "b"), ("a", "b" * 200))]
    assert agreement.measure(reward, rankings)["accuracy"]["pairs"] == 2
    assert "1 of 3 rankings skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 1"):
        agreement.measure(reward, [long])


def test_rankings_of_one_prompt_are_not_independent():
    rankings = rankings_of(("aa", "b"), ("b", "aa"), ("a", "b"))
    repeated = agreement.measure(count_a, rankings * 9)
    assert repeated["accuracy"]["interval"] == pytest.approx(
        agreement.measure(count_a, rankings)["accuracy"]["interval"]
    )


def test_a_reward_is_compared_with_length_pair_by_pair():
    """It is right where length is, and once more: by half of all, clearly."""
    rows = [("a" * i, "b") for i in range(2, 30)] + [("a", "b" * i) for i in range(2, 30)]
    result = agreement.measure(count_a, rankings_of(*rows))
    assert result["lead"]["mean"] == 0.5 and not agreement.warning(result)
    result = agreement.measure(lambda prompts, texts: list(map(len, texts)), rankings_of(*rows))
    assert result["lead"]["mean"] == 0 and "coin" in agreement.warning(result)
