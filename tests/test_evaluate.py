"""evaluate.py on tiny models, and what it computes from texts and scores."""

import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import tiny

import evaluate
import toyworld
from minirlhf import UserError, hub, rollout, user_function
from minirlhf.answers import score
from minirlhf.data import Prompt
from minirlhf.files import read_json
from minirlhf.model import GPT, ScalarGPT
from minirlhf.report import write as write_report
from minirlhf.report.summary import collect
from minirlhf.stats import mean_of
from minirlhf.tokenizer import Tokenizer
from minirlhf.winrate import assess, distinct_ngrams, judged, ranked_right, wins

FUNCTIONS = """
def brevity(prompts, responses):
    return [-len(r) / 20 for r in responses]
def sometimes(prompts, responses):
    return [None if len(r) % 3 == 0 else len(r) for r in responses]
def never(prompts, responses):
    return [None for r in responses]
def vowels(prompts, responses):
    return [float(sum(map(r.count, "aeiou"))) for r in responses]
def shorter(prompt, pair):
    assert prompt in ("What is 2 + 3?", "Why not?", "p", "q")
    a, b = map(len, pair)
    return 0.5 if a == b else float(a < b)
def first(prompt, pair):
    return 1
def sure(prompt, pair):
    return 7
def broken(prompt, pair):
    raise KeyError("oops")
def of_numpy(prompt, pair):
    import numpy
    return numpy.float32(0.25)
"""


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """An SFT model, a policy that moved away from it, a reward model, functions, prompts."""
    out = tmp_path_factory.mktemp("evaluate")
    policy = tiny(tokenizer, spread=2.0, n_positions=128)
    with torch.no_grad():  # EOS gets a logit of 3 more
        eos = policy.wte.weight[tokenizer.eos_id]
        policy.ln_f.bias += 3 * eos / eos.square().sum()
        policy.save_pretrained(out / "sft")
        for parameter in policy.h.parameters():
            parameter.mul_(1.1)
    policy.save_pretrained(out / "ppo")
    reward_model = tiny(tokenizer, ScalarGPT, spread=2.0, n_positions=128)
    reward_model.config.score_std = 2.0
    reward_model.save_pretrained(out / "rm")
    foreign = Tokenizer.train(["a b c. " * 9], 270)
    tiny(foreign, n_positions=128).save_pretrained(out / "foreign")
    (out / "mine.py").write_text(FUNCTIONS)
    rows = [{"prompt": "What is 2 + 3?"}, {"prompt": "Why not?"}]
    (out / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return out


def settings_of(folder, tmp_path, **changes) -> evaluate.Settings:
    settings = {
        "policies": f"{folder / 'sft'},{folder / 'ppo'}",
        "data": str(folder / "prompts.jsonl"),
        "samples": 3,
        "max_tokens": 8,
        "out": str(tmp_path / "evaluation.json"),
    }
    return evaluate.Settings(**(settings | changes))


# ---- from texts and scores


def test_win_rates_are_clustered_by_prompt():
    scores = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    baseline = torch.tensor([[1.0, 2.0], [2.0, 2.0]])
    by_hand = []
    for row, other in zip(scores.tolist(), baseline.tolist()):
        by_hand.append(sum((a > b) + (a == b) / 2 for a, b in product(row, other)) / 4)
    assert wins(scores, baseline).tolist() == by_hand == [0.625, 0.25]
    repeated = mean_of(wins(scores.repeat(1, 50), baseline.repeat(1, 50)))  # the same two prompts
    assert repeated == mean_of(wins(scores, baseline))


def test_what_has_no_score_is_left_out():
    nan = math.nan
    scores = torch.tensor([[1.0, nan, 3.0], [4.0, 4.0, 4.0], [nan, nan, nan]])
    cell = mean_of(scores)
    assert (cell["mean"], cell["prompts"]) == (3.0, 2)
    baseline = torch.tensor([[2.0, nan, nan], [nan, 5.0, 5.0], [1.0, 1.0, 1.0]])
    assert mean_of(wins(scores, baseline))["mean"] == 0.25  # of [1/2, 0, NaN]
    assert ranked_right(scores, torch.tensor([[1.0, 2.0, 3.0]] * 3))["pairs"] == 1 + 3


def test_a_judges_liking_for_the_first_place_cancels(folder):
    def judge(name):
        return user_function.load(f"{folder / 'mine.py'}:{name}", "--judge")

    p, q = Prompt.of("p"), Prompt.of("q")
    responses, baseline = [["a", "bbb"], ["cc", "dd"]], [["aa", "b"], ["cc", "ee"]]
    won, agreement = judged(judge("shorter"), [p, q], responses, baseline)
    assert won.tolist() == [[1, 0], [0.5, 0.5]] and agreement == 1
    won, agreement = judged(judge("first"), [p], [["a", "b"]], [["b", "b"]])
    assert won.tolist() == [[0.5, 0.5]] and agreement == 0.5  # equal texts tie unasked
    assert judged(judge("of_numpy"), [p], [["a"]], [["b"]])[0].tolist() == [[0.5]]
    for name, words in (("sure", "7"), ("broken", "KeyError")):
        with pytest.raises(UserError, match=words):
            judged(judge(name), [p], [["a"]], [["b"]])


def test_distinct_ngrams():
    assert distinct_ngrams(["a b a b", "a b"], 2) == 2 / 4  # ab ba ab, ab
    assert distinct_ngrams(["a"], 2) == 0 and distinct_ngrams(["a b", "c"], 1) == 1


def test_ranked_right_counts_pairs_where_gold_sees_a_difference():
    gold = torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    assert ranked_right(torch.tensor([[0.0, 1.0, -1.0], [1.0, 2.0, 3.0]]), gold)["mean"] == 0.5
    assert ranked_right(gold, gold)["pairs"] == 2


def test_texts_are_assessed_by_kind_where_a_world_knows_kinds():
    prompts = [Prompt.of(record["prompt"]) for record in toyworld.prompts("test", 28, 0)]
    responses = [["I do not know.", "I do not know."] for _ in prompts]
    gold = torch.zeros(len(prompts), 2)
    result = assess(prompts, responses, toyworld, gold)
    assert set(result["kinds"]) == set(toyworld.KINDS) and result["words"]["mean"] == 4
    assert result["parts"]["helpful"]["mean"] < 0 and "total" not in result["parts"]
    open_ended = sum(toyworld.kind(p.source) in toyworld.OPEN_ENDED for p in prompts)
    assert result["distinct_open_ended"] == 1 / (2 * open_ended)
    plain = assess(prompts, responses)
    assert not plain.keys() & {"gold", "kinds", "parts"}
    assert plain["distinct_open_ended"] == 1 / (2 * len(prompts))


# ---- the script


def test_a_policys_folder_says_at_which_temperature_it_was_trained(tokenizer, tmp_path):
    model = tiny(tokenizer)
    path = tmp_path / "generation_config.json"
    model.save_pretrained(tmp_path)
    assert not path.exists() and GPT.from_pretrained(tmp_path).temperature is None
    model.temperature = 0.5
    model.save_pretrained(tmp_path)
    said = json.loads(path.read_text())
    assert said["temperature"] == 0.5 and said["eos_token_id"] == tokenizer.eos_id
    assert GPT.from_pretrained(tmp_path).temperature == 0.5
    ScalarGPT.from_pretrained(tmp_path).save_pretrained(tmp_path)  # it replaces the policy
    assert not path.exists()
    for value in ("null", '"hot"', "-1", "1e999", "[]"):
        path.write_text(f'{{"temperature": {value}}}')
        assert ScalarGPT.from_pretrained(tmp_path).temperature is None


def test_policies_are_compared_at_the_temperature_of_their_training(folder, tmp_path):
    for name, temperature in (("warm", 1.25), ("cold", 0.5)):
        policy = GPT.from_pretrained(folder / "sft")
        policy.temperature = temperature
        policy.save_pretrained(tmp_path / name)
    sft, warm, cold = str(folder / "sft"), str(tmp_path / "warm"), str(tmp_path / "cold")
    assert evaluate.common_temperature([sft, str(folder / "ppo")]) == rollout.TEMPERATURE
    assert evaluate.common_temperature([sft, warm]) == 1.25
    assert evaluate.common_temperature([cold, sft]) == 0.5
    assert evaluate.common_temperature([cold, warm, sft]) == 1.25  # cold is the baseline
    settings = settings_of(folder, tmp_path, policies=f"{sft},{warm},{cold}")
    settings.judge = f"{folder / 'mine.py'}:first"
    with pytest.raises(UserError, match="--temperature"):
        evaluate.main(settings)
    assert evaluate.main(replace(settings, temperature=1.0))["temperature"] == 1
    assert evaluate.main(replace(settings, policies=f"{sft},{warm}"))["temperature"] == 1.25


def test_as_many_prompts_as_asked_for_where_there_are_so_many(folder, tmp_path, capsys):
    rows = [{"prompt": "Why? " * 100}] * 20 + [{"prompt": "fox " * i} for i in range(1, 6)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = settings_of(folder, tmp_path, data=str(tmp_path / "p.jsonl"), count=3)
    settings.judge = f"{folder / 'mine.py'}:first"
    assert evaluate.main(settings)["prompts"] == 3
    assert "--max_tokens 8" in capsys.readouterr().out
    settings.truncate, settings.count = True, 6  # all that are different
    examples = evaluate.main(settings)["examples"]
    assert rows[0]["prompt"] in [example["prompt"] for example in examples]


def test_a_policy_with_a_shorter_context_is_named(folder, tokenizer, tmp_path):
    short = tmp_path / "short"
    tiny(tokenizer, n_positions=21).save_pretrained(short)  # for one of the two prompts
    compared = {"policies": f"{folder / 'sft'},{short}", "reward": str(folder / "rm")}
    settings = settings_of(folder, tmp_path, **compared)
    with pytest.raises(UserError, match=f"{short} has a shorter context.*--reference {short}"):
        evaluate.main(settings)


def test_an_evaluation_by_a_judge_that_compares(folder, tmp_path, capsys):
    mine = folder / "mine.py"
    policies = f"{folder / 'sft'},{folder / 'ppo'},{folder / 'foreign'}"
    settings = settings_of(
        folder, tmp_path, policies=policies, reward=f"{mine}:vowels", judge=f"{mine}:shorter"
    )
    report = evaluate.main(settings)
    base, policy, foreign = report["results"]
    assert "gold" not in base and base["win_rate"]["mean"] == 0.5
    assert base["kl"]["mean"] == base["exact_kl"]["mean"] == 0 < policy["exact_kl"]["mean"]
    assert "both_orders_agree" in policy and math.isnan(foreign["kl"]["mean"])
    assert "other tokens" in capsys.readouterr().out
    assert read_json(settings.out)["results"][1]["win_rate"] == policy["win_rate"]
    best = base["best_of_n"]
    assert [row["n"] for row in best] == [1, 2, 3]
    assert best[1]["kl_bound"] == pytest.approx(math.log(2) - 0.5)
    assert best[0]["reward"]["mean"] == pytest.approx(base["reward"]["mean"])
    assert best[2]["reward"]["mean"] >= best[1]["reward"]["mean"]
    assert len(collect(tmp_path)["policies"]) == 3
    assert [example["prompt"] for example in report["examples"]] == ["What is 2 + 3?", "Why not?"]


def test_a_reward_is_measured_on_the_split_that_is_asked_for(folder, tmp_path, monkeypatch):
    pairs = [{"prompt": f"q{i}", "chosen": "ab", "rejected": "abc"} for i in range(3)]
    splits = []

    def data_files(name, split):
        splits.append(split)
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        return [tmp_path / "pairs.jsonl"]

    monkeypatch.setattr(hub, "data_files", data_files)
    reward = f"{folder / 'mine.py'}:brevity"
    settings = settings_of(folder, tmp_path, policies="", reward=reward, data="hh-helpful-base")
    report = evaluate.main(settings)
    assert report["accuracy"]["mean"] == 1 and splits[-1] == settings.split == "test"


def test_greedy_answers_have_no_kl_and_it_is_said(folder, tmp_path, capsys):
    gold = f"{folder / 'mine.py'}:brevity"
    report = evaluate.main(settings_of(folder, tmp_path, gold=gold, temperature=0.0))
    assert "there is no KL" in capsys.readouterr().out
    start, policy = (row["kl"]["mean"] for row in report["results"])
    assert start == 0 and math.isnan(policy)


def test_an_evaluation_does_not_replace_what_it_reads(folder, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "Why?"}\n')
    settings = settings_of(folder, tmp_path, data=str(questions))
    with pytest.raises(UserError, match="is read as --data and would be replaced"):
        evaluate.main(replace(settings, out=str(questions)))
    assert questions.read_text() == '{"prompt": "Why?"}\n'


def test_an_evaluation_by_a_reward(folder, tmp_path):
    report = evaluate.main(settings_of(folder, tmp_path, reward=f"{folder / 'mine.py'}:brevity"))
    assert report["judge"] == "reward" and "win_rate_previous" in report["results"][1]


def test_a_reward_that_gives_none_now_and_then(folder, tmp_path, capsys):
    functions = folder / "mine.py"
    options = {"data": "toyworld", "count": 24, "reward": f"{functions}:sometimes"}
    report = evaluate.main(settings_of(folder, tmp_path, **options))
    assert "reward: no score for " in capsys.readouterr().out
    for result in report["results"][:2]:
        assert result["reward"]["mean"] > 0 and result["reward_accuracy"]["mean"] > 0
        assert result["finished"] < 1 and math.isfinite(result["reward_as_trained"]["mean"])
        assert all(row["gold"]["mean"] is not None for row in result["best_of_n"])
    assert write_report(tmp_path).exists()
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "chosen": "abcd", "rejected": "abcdefg"[:n]} for n in (2, 3, 5)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    settings = settings_of(folder, tmp_path, policies="", reward=f"{functions}:sometimes")
    result = evaluate.main(replace(settings, data=str(pairs)))
    assert (result["accuracy"]["mean"], result["accuracy"]["pairs"]) == (0.5, 2)
    assert "no score for 1 of 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="None for all"):
        evaluate.main(settings_of(folder, tmp_path, reward=f"{functions}:never"))
    weighted = f"{functions}:sometimes,{functions}:vowels"
    settings = settings_of(folder, tmp_path, reward=weighted, reward_weights="2,0")
    assert evaluate.main(settings)["results"][0]["reward"]["mean"] > 0


def test_the_exact_kl_is_what_the_sampled_one_estimates(folder, prompts):
    policy, sft = (GPT.from_pretrained(folder / name) for name in ("ppo", "sft"))
    generator = torch.Generator().manual_seed(0)
    batch = rollout.sample(policy, prompts, 6, generator, samples_per_prompt=400)
    answers = score(batch, 400, policy, sft, {}, temperature=1.0)
    sampled, exact = mean_of(answers.log_ratio.T), mean_of(answers.exact_kl.T)
    assert sampled["mean"] == pytest.approx(exact["mean"], abs=2 * sampled["interval"])
    assert exact["interval"] < sampled["interval"]


def test_an_evaluation_probes_the_reward_and_the_policies(folder, tmp_path, capsys):
    vowels = f"{folder / 'mine.py'}:vowels"
    settings = settings_of(
        folder, tmp_path, data="toyworld", count=48, reward=str(folder / "rm"), watch=vowels
    )
    report = evaluate.main(settings)
    sft, ppo, demonstrations = report["results"]
    of_sft, of_ppo = ({row["probe"]: row for row in r["probes"]} for r in (sft, ppo))
    assert demonstrations["policy"] == "demonstrations" and "probes" not in demonstrations
    assert of_sft.keys() | of_ppo.keys() == set(evaluate.probes.PROBES)
    assert of_ppo.keys() - of_sft.keys() == {
        "accuracy near the reference, less far from it",
        "gain in reward, less a held-out judge's",
        "best gold at a smaller KL, less gold at the largest",
    }
    gains = [row["says"] for row in ppo["probes"] if row["probe"].startswith("gain in reward")]
    assert "by gold" in gains[0] and vowels in gains[1]
    assert ppo["kinds"].keys() == sft["kinds"].keys() and f"watch_{vowels}" in ppo
    assert "win_rate" in capsys.readouterr().out


def test_a_world_of_ones_own_needs_no_more_than_a_reward(folder, tmp_path):
    (tmp_path / "small_world.py").write_text(
        "def prompts(split, count, seed):\n    return ['Why?', 'Who?', 'How?'][:count]\n"
        "def kind(prompt):\n    return prompt[:1]\n"
        "def reward(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    name = str(tmp_path / "small_world.py")
    settings = settings_of(folder, tmp_path, data=name, gold=name, reward=f"{folder / 'rm'}")
    result = evaluate.main(settings)["results"][1]
    assert set(result["kinds"]) == {"W", "H"} and "parts" not in result
    assert len(evaluate.main(settings)["results"]) == 2  # nobody wrote demonstrations


def test_who_cannot_judge_is_an_error(folder, tmp_path):
    settings = settings_of(folder, tmp_path)
    wrong = {
        "judge": {},  # gold is the toy world's, which does not know these prompts
        "nothing": {"judge": f"{folder / 'mine.py'}:nothing"},
        "watch": {"watch": str(folder / "rm"), "judge": f"{folder / 'mine.py'}:shorter"},
        "policies": {"policies": " , "},
        "count": {"count": 0},
    }
    for words, changes in wrong.items():
        with pytest.raises(UserError, match=words):
            evaluate.main(replace(settings, **changes))
    assert not (tmp_path / "evaluation.json").exists()
