"""Methods beside PPO, rewards of one's own, the pretraining mix, best of n, evaluation: as a user runs them."""
import importlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from safetensors.torch import load_file

import evaluate
import sample
import train_ppo
import train_sft
from minirlhf import UserError, losses, probes, report, rewards, rollout, toyworld
from minirlhf.data import read_demonstrations
from minirlhf.model import ScalarGPT
from minirlhf.run import Run, read_jsonl
from minirlhf.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
MINE = """
def brevity(prompts, responses):
    return [-len(r) / 20 for r in responses]
def vowels(prompts, responses):
    return [sum(c in "aeiou" for c in r) for r in responses]
def picky(prompts, responses):
    return [1.0 / (r != "bad") for r in responses]
def crowd(prompts, responses):
    return [1.0 / (len(responses) < 2) for r in responses]
def shorter(prompt, responses):
    a, b = map(len, responses)
    return (1 + (a < b) - (a > b)) / 2
def first(prompt, responses):
    return 0.9
def sure(prompt, responses):
    return 7
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small SFT model, two reward models with random heads (the second with other tokens), functions, prompts, texts."""
    out = tmp_path_factory.mktemp("world")
    train_sft.main(train_sft.Settings(out=str(out / "sft"), steps=50, lr=5e-3, n_layer=1, n_head=2, n_embd=32, vocab_size=300,
                                      n_positions=256, count=150, batch_size=8))
    model = ScalarGPT.from_pretrained(out / "sft")
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(out / "rm")
    tiny(Tokenizer.train(["a b c. " * 9], 270), ScalarGPT, n_positions=400).save_pretrained(out / "other_rm")
    (out / "mine.py").write_text(MINE)
    (out / "text.txt").write_text("The quick brown fox jumps over the lazy dog while it rains. " * 60)
    questions = ("Who are you?", "Why?", "And then what?")
    (out / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    return out


def settings_of(world: Path, out: Path, **more) -> train_ppo.Settings:
    return train_ppo.Settings(**{"init": str(world / "sft"), "reward": str(world / "rm"), "steps": 4, "prompts_per_step": 3,
                                 "samples_per_prompt": 3, "max_tokens": 10, "count": 40, "out": str(out), "save_every": 2,
                                 "log_every": 2} | more)


def metrics(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_second", "peak_gib"))}
            for row in read_jsonl(folder / "metrics.jsonl")]


# ---------------------------------------------------------------------------------------------- RLOO, GRPO, REINFORCE

@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce"])
def test_a_method_without_a_value_model_runs_and_starts_at_ratio_1(advantage, world, tmp_path):
    train_ppo.main(settings_of(world, tmp_path / "a", advantage=advantage, steps=2, token_budget=150))
    rows = metrics(tmp_path / "a")
    assert len(rows) == 2 and max(r["first_ratio_off"] for r in rows) < 1e-4
    assert not rows[0].keys() & {"value_loss", "explained_variance"} and ("kl_loss" in rows[0]) == (advantage == "grpo")
    before, after = (load_file(p / "model.safetensors") for p in (world / "sft", tmp_path / "a"))
    assert any(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_bfloat16_trains_to_the_results_of_float32(advantage, world, tmp_path):
    rows = {}
    for dtype in ("float32", "bfloat16"):
        train_ppo.main(settings_of(world, tmp_path / dtype, reward=f"{world / 'mine.py'}:brevity",
                                   advantage=advantage, dtype=dtype, steps=10, lr=3e-3, kl_coef=0.01,
                                   prompts_per_step=16, samples_per_prompt=4, max_tokens=24,
                                   token_budget=400, unfinished_score=-6.0))
        rows[dtype] = metrics(tmp_path / dtype)
    off = [row["first_ratio_off"] for row in rows["bfloat16"]]
    assert len(off) == 10
    assert losses.FIRST_RATIO_OFF[torch.float32] < max(off) < losses.FIRST_RATIO_OFF[torch.bfloat16] / 3
    wide, narrow = (sum(row["score"] for row in part[-3:]) / 3 for part in rows.values())
    start = rows["float32"][0]
    assert min(wide, narrow) > start["score"] + start["score_std"]
    assert wide == pytest.approx(narrow, abs=0.2 * start["score_std"])


def shifted(logprobs, monkeypatch):
    """Each response token's log-prob is read of the token before it."""
    tokens = rollout.response_tokens

    def changed(model, batch, temperature=1.0):
        with monkeypatch.context() as patch:
            patch.setattr(rollout, "response_tokens", lambda batch: tokens(batch).roll(1))
            return logprobs(model, batch, temperature)
    return changed


def warmer(logprobs, monkeypatch):
    return lambda model, batch, temperature=1.0: logprobs(model, batch, 0.9 * temperature)


def with_dropout(logprobs, monkeypatch):
    def changed(model, batch, temperature=1.0):
        hooks = [block.mlp_proj.register_forward_hook(lambda layer, x, y: F.dropout(y, 0.1))
                 for block in model.h]
        found = logprobs(model, batch, temperature)
        for hook in hooks:
            hook.remove()
        return found
    return changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [shifted, warmer, with_dropout])
def test_what_is_wrong_in_the_training_forward_is_no_rounding(fault, dtype, world, tmp_path, monkeypatch):
    right = rollout.logprobs
    wrong = fault(right, monkeypatch)
    monkeypatch.setattr(rollout, "logprobs", lambda *args: (wrong if torch.is_grad_enabled() else right)(*args))
    with pytest.raises(UserError, match=r"step 0: .*must be 1, .* look for dropout"):
        train_ppo.main(settings_of(world, tmp_path / "a", advantage="rloo", dtype=dtype, steps=1))


@pytest.mark.parametrize("length_norm", ["token", "response", "none"])
def test_micro_batches_change_nothing_but_rounding(length_norm, world, tmp_path):
    options = {"advantage": "grpo", "length_norm": length_norm, "steps": 2, "ptx_data": str(world / "text.txt"), "ptx_coef": 0.5}
    train_ppo.main(settings_of(world, tmp_path / "one", **options))
    train_ppo.main(settings_of(world, tmp_path / "many", **options, token_budget=1))
    one, many = (metrics(tmp_path / name)[0] for name in ("one", "many"))
    for name in ("policy_loss", "kl_loss", "ptx_loss", "grad_norm", "lm_loss"):
        assert one[name] == pytest.approx(many[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_the_first_pass_may_go_back_through_the_scoring_forward(advantage, world, tmp_path):
    """As it does from the second iteration on where the episodes are one micro-batch."""
    options = {"advantage": advantage, "epochs": 1, "minibatches": 1, "steps": 2, "lr": 0.0}
    train_ppo.main(settings_of(world, tmp_path / "kept", **options))
    train_ppo.main(settings_of(world, tmp_path / "again", **options, token_budget=1))
    kept, again = (metrics(tmp_path / name) for name in ("kept", "again"))
    assert kept[0]["first_ratio_off"] > 0 == kept[1]["first_ratio_off"] < again[1]["first_ratio_off"] < 1e-4
    for name in kept[1].keys() - {"first_ratio_off", "ratio_mean", "approx_kl"}:
        assert kept[1][name] == pytest.approx(again[1][name], rel=1e-3, abs=1e-5), name


def test_the_length_normalisers_are_three_different_losses(world, tmp_path):
    norms = {}
    for name in ("paper", "token", "response", "none"):
        train_ppo.main(settings_of(world, tmp_path / name, advantage="rloo", length_norm=name, steps=1, epochs=1))
        norms[name] = metrics(tmp_path / name)[0]["grad_norm"]
    assert norms["paper"] == norms["none"] and len({round(n, 6) for n in norms.values()}) == 3, norms


class Killed(Exception):
    pass


def test_grpo_with_a_pretraining_mix_resumes_bit_for_bit(world, tmp_path, monkeypatch):
    whole = settings_of(world, tmp_path / "whole", advantage="grpo", ptx_data=str(world / "text.txt"), ptx_coef=0.5, kl_target=2.0)
    cut, log = replace(whole, out=str(tmp_path / "cut")), Run.log

    def die(self, step, *args, **kwargs):
        row = log(self, step, *args, **kwargs)
        if step == 3:
            raise Killed
        return row

    train_ppo.main(whole)
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(Run, "log", die)
        train_ppo.main(cut)
    train_ppo.main(replace(cut, resume=True))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a) and metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_grpo_learns(world, tmp_path):
    train_ppo.main(settings_of(world, tmp_path / "a", advantage="grpo", reward=f"{world / 'mine.py'}:brevity", steps=15, lr=3e-3,
                               prompts_per_step=8, samples_per_prompt=4, max_tokens=24, kl_coef=0.01, unfinished_score=-6.0))
    rows = metrics(tmp_path / "a")
    first, last = (sum(r["score"] for r in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.5 * rows[0]["score_std"] and abs(rows[-1]["kl"]) < 100


def test_the_pretraining_mix_keeps_the_language_model(world, tmp_path):
    """The loss on held-out text is logged with the mix or without it, and only the mix brings it down."""
    for name, coef in (("without", 0.0), ("with", 1.0)):
        train_ppo.main(settings_of(world, tmp_path / name, advantage="rloo", ptx_data=str(world / "text.txt"),
                                   ptx_coef=coef, lr=3e-3, steps=6))
    rows = {name: metrics(tmp_path / name) for name in ("without", "with")}
    assert rows["with"][0]["lm_loss"] == rows["without"][0]["lm_loss"] and "lm_loss" not in rows["with"][1]
    end = {name: json.loads((tmp_path / name / "run.json").read_text())["lm_loss"] for name in rows}
    assert end["with"] < rows["with"][0]["lm_loss"] - 0.3 and end["with"] < end["without"] - 0.3


@pytest.mark.parametrize(("wrong", "said"), [
    ({"advantage": "rloo", "samples_per_prompt": 1}, "--samples_per_prompt must be 2 or more"),
    ({"advantage": "grpo", "samples_per_prompt": 1}, "--samples_per_prompt must be 2 or more"),
    ({"advantage": "ppo"}, "--advantage ppo: unknown; take gae, rloo, grpo, reinforce"),
    ({"advantage": "reinforce", "samples_per_prompt": 1, "prompts_per_step": 1}, "--samples_per_prompt must be 2"),
    ({"kl_in": "both"}, "--kl_in both"), ({"length_norm": "words"}, "--length_norm words"),
    ({"ptx_coef": 1.0}, "--ptx_data"), ({"ensemble": "max"}, "--ensemble max"), ({"ensemble": "min"}, "needs several")])
def test_what_cannot_be_is_one_sentence(wrong, said, world, tmp_path):
    with pytest.raises(UserError, match=said):
        train_ppo.main(settings_of(world, tmp_path / "a", **wrong))
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_ids_are_shared_only_by_models_with_the_same_tokens(world, tmp_path):
    """A reward reads text, so a foreign reward model will do where no value model is made from it."""
    with pytest.raises(UserError, match=r"260 tokens.*not the same.*value model"):
        train_ppo.main(settings_of(world, tmp_path / "a", reward=str(world / "other_rm")))
    both = f"{world / 'other_rm'},{world / 'rm'}"
    train_ppo.main(settings_of(world, tmp_path / "b", reward=both, ensemble="min", advantage="rloo", steps=1))
    tiny(Tokenizer.train(["a b c. " * 9], 270)).save_pretrained(tmp_path / "foreign")
    with pytest.raises(UserError, match="the reference reads the policy's tokens"):
        train_ppo.main(settings_of(world, tmp_path / "c", reference=str(tmp_path / "foreign")))


# ---------------------------------------------------------------------------------------------- rewards

def test_sums_and_ensembles_of_rewards(world):
    prompts, responses = ["x"] * 3, ["aaa", "bb bb bb", "e"]
    brevity, vowels, rm = (f"{world / 'mine.py'}:brevity", f"{world / 'mine.py'}:vowels", str(world / "rm"))
    b, v, r = (torch.tensor(rewards.load(spec)(prompts, responses)) for spec in (brevity, vowels, rm))
    stack = torch.stack([b, v, r])
    for spec, ensemble, expected in [
            (f"{brevity}*0.7+{vowels}*-0.3", "mean", 0.7 * b - 0.3 * v), (f"{brevity}*2", "mean", 2 * b),
            (f"{brevity}, {vowels}, {rm}", "mean", stack.mean(0)), (f"{brevity},{vowels},{rm}", "min", stack.amin(0)),
            (f"{brevity},{vowels},{rm}", "uwo=0.1", stack.mean(0) - 0.1 * ((stack - stack.mean(0)) ** 2).mean(0)),
            (f"{brevity},{vowels}*2+{rm}", "uwo", 2 * ((b + v) / 2 - 0.5 * ((b - v) / 2) ** 2) + r)]:
        assert torch.allclose(torch.tensor(rewards.load(spec, ensemble=ensemble)(prompts, responses)), expected, atol=1e-5), spec
    assert rewards.folders(f"{brevity},{rm}*0.5+{vowels}") == [rm]


@pytest.mark.parametrize("spec", ["a+", "a,,b", "a*much", "*2", "a*nan", "a*2*3", "a,b*"])
def test_a_sum_that_is_none(spec):
    with pytest.raises(UserError, match="is no reward"):
        rewards.load(spec)


def test_the_response_that_a_function_stumbles_over_is_named(world, tmp_path):
    with pytest.raises(UserError, match=r"ZeroDivisionError.*first at response 2 of 4: 'bad', to the prompt 'c'"):
        rewards.load(f"{world / 'mine.py'}:picky")(list("abcd"), ["x", "y", "bad", "bad"])
    with pytest.raises(UserError, match="for no response alone, only for the 2 together"):
        rewards.load(f"{world / 'mine.py'}:crowd")(["a", "b"], ["x", "y"])
    (tmp_path / "none.py").write_text("def f(p, r):\n    pass\n")
    with pytest.raises(UserError, match="gave None: return a list"):
        rewards.load(f"{tmp_path / 'none.py'}:f")(["a"], ["b"])
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(UserError, match="cannot be imported, SyntaxError"):
        rewards.load(f"{tmp_path / 'broken.py'}:f")
    with pytest.raises(UserError, match="no reward head"):
        rewards.load(str(world / "sft"))


def test_the_sums_example_knows_what_is_right(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    sums = importlib.import_module("sums")
    assert sums.right(["What is 7 plus 4?", "What is 9 minus 3?", "What is 7 plus 4?", "What is 7 plus 4?"],
                      ["7 plus 4 is 11.", "It is 5.", "", "11 apples, so 4."]) == [1, 0, 0, 0]
    assert len(set(sums.questions())) == 117
    asked = [d for d in toyworld.demonstrations("train", 2000, 0) if sums.re.search("What is .*(plus|minus)[^.]*$", d["prompt"])]
    mine = sums.right([d["prompt"] for d in asked], [d["completion"] for d in asked])
    gold = [toyworld.gold(d["prompt"], d["completion"])["helpful"] > 0 for d in asked]
    assert len(asked) > 20 and sum(a == b for a, b in zip(mine, gold)) > 0.8 * len(asked) and 0 < sum(mine) < len(mine)


# ---------------------------------------------------------------------------------------------- best of n

def test_the_best_of_n_is_the_best_of_the_same_samples(world, tmp_path):
    common = {"init": str(world / "sft"), "data": "toy", "count": 12, "max_tokens": 16}
    sample.main(sample.Settings(samples=4, candidates_out=str(tmp_path / "all.jsonl"), **common))
    best = {"best_of": 4, "reward": f"{world / 'mine.py'}:vowels", **common}
    sample.main(sample.Settings(candidates_out=str(tmp_path / "best.jsonl"), **best))
    sample.main(sample.Settings(sft_out=str(tmp_path / "sft.jsonl"), **best))
    every, chosen, kept = (read_jsonl(tmp_path / f"{n}.jsonl") for n in ("all", "best", "sft"))
    vowels = rewards.load(best["reward"])
    assert any(c["responses"][0] != e["responses"][0] for e, c in zip(every, chosen))
    finished = {(k["prompt"], k["completion"]) for k in kept}
    assert 0 < len(kept) < len(chosen)                       # those whose four samples never ended are left out
    for e, c in zip(every, chosen):
        assert c["responses"][0] in e["responses"]
        if (c["prompt"], c["responses"][0]) not in finished:                 # none of the four ended
            assert vowels([""], c["responses"]) == [max(vowels([""] * 4, e["responses"]))]
    assert len(read_demonstrations(str(tmp_path / "sft.jsonl"))) == len(kept)


@pytest.mark.parametrize("wrong", [{"best_of": 4}, {"reward": "toy"}, {"best_of": 0, "reward": "toy"}, {"sft_out": "x"},
                                   {"best_of": 2, "reward": "toy", "temperature": 0.0}])
def test_a_best_of_n_that_cannot_be(wrong, world):
    with pytest.raises(UserError, match=r"--best_of|--sft_out needs"):
        sample.main(sample.Settings(init=str(world / "sft"), prompt="hi", **wrong))


# ---------------------------------------------------------------------------------------------- evaluation

def test_win_rates_are_clustered_by_prompt():
    mine, theirs = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 2.0]])
    by_hand = [sum((a > b) + (a == b) / 2 for a, b in itertools.product(x, y)) / 4 for x, y in zip(mine.tolist(), theirs.tolist())]
    assert evaluate.wins(mine, theirs).tolist() == by_hand == [0.625, 0.25]
    copied = evaluate.mean_of(evaluate.wins(mine.repeat(1, 50), theirs.repeat(1, 50)))      # more samples, the same two prompts
    half = 1.96 * math.sqrt(((0.625 - 0.4375) ** 2 + (0.25 - 0.4375) ** 2) / 2)
    assert copied == evaluate.mean_of(evaluate.wins(mine, theirs)) and copied["interval"] == pytest.approx(half)


def test_a_judges_liking_for_the_first_place_cancels(world):
    shorter, first = (rewards.load_function(f"{world / 'mine.py'}:{f}", "--judge") for f in ("shorter", "first"))
    won, agree = evaluate.judged(shorter, ["p", "q"], [["a", "bbb"], ["cc", "dd"]], [["aa", "b"], ["cc", "ee"]])
    assert won.tolist() == [[1, 0], [0.5, 0.5]] and agree == 1
    won, agree = evaluate.judged(first, ["p"], [["a", "b"]], [["b", "b"]])
    assert won[0].tolist() == pytest.approx([0.5, 0.5]) and agree == 0.5        # equal texts tie unasked


def test_evaluation_of_other_prompts_by_a_reward_and_a_judge(world, tmp_path, capsys):
    tiny(Tokenizer.train(["a b c. " * 9], 270), n_positions=200).save_pretrained(tmp_path / "foreign")
    settings = evaluate.Settings(policies=f"{world / 'sft'},{world / 'sft'}2,{tmp_path / 'foreign'}", samples=3, max_tokens=12,
                                 data=str(world / "prompts.jsonl"), reward=f"{world / 'mine.py'}:vowels",
                                 judge=f"{world / 'mine.py'}:shorter", out=str(tmp_path / "e" / "evaluation.json"))
    train_ppo.main(settings_of(world, Path(f"{world / 'sft'}2"), advantage="rloo", steps=2, lr=1e-2))
    result = evaluate.main(settings)
    base, policy, foreign = result["results"]
    assert result["judge"].endswith("mine.py:shorter") and "gold" not in base
    assert base["win_rate"]["mean"] == 0.5 and base["kl"]["mean"] == 0 and policy["kl"]["mean"] != 0
    assert math.isnan(foreign["kl"]["mean"]) and "other tokens" in capsys.readouterr().out
    assert json.loads(Path(settings.out).read_text())["results"][1]["win_rate"] == policy["win_rate"]
    assert [b["n"] for b in base["best_of_n"]] == [1, 2, 3] and base["best_of_n"][1]["kl_bound"] == pytest.approx(math.log(2) - 0.5)
    assert base["best_of_n"][0]["reward"]["mean"] == pytest.approx(base["reward"]["mean"])
    assert base["best_of_n"][2]["reward"]["mean"] >= base["best_of_n"][1]["reward"]["mean"] >= base["reward"]["mean"]
    page = report.write(str(tmp_path / "e")).read_text()
    assert "reward score" in page
    by_reward = evaluate.main(replace(settings, judge="auto", policies=settings.policies.rpartition(",")[0]))
    assert by_reward["judge"] == "reward" and 0 <= by_reward["results"][1]["win_rate"]["mean"] <= 1


def test_an_evaluation_probes_the_reward_and_the_policies(world, tmp_path, capsys):
    brevity, vowels = (f"{world / 'mine.py'}:{f}" for f in ("brevity", "vowels"))
    train_ppo.main(settings_of(world, tmp_path / "ppo", advantage="rloo", reward=brevity, steps=10, lr=1e-2))
    settings = evaluate.Settings(policies=f"{world / 'sft'},{tmp_path / 'ppo'}", samples=3, max_tokens=10, count=48, reward=brevity,
                                 watch=vowels, out=str(tmp_path / "e.json"))
    evaluation = evaluate.main(settings)
    sft, ppo, demonstrations = evaluation["results"]
    of_sft, of_ppo = ({p["probe"]: p for p in r["probes"]} for r in (sft, ppo))
    assert "probes" not in demonstrations and of_sft.keys() | of_ppo.keys() == probes.PROBES.keys() - {
        "claimed accuracy, less the real one"}                                      # whose scores are no log odds
    against_a_policy = {"accuracy near the reference, less far from it", "gain in reward, less a held-out judge's",
                        "reward on training prompts, less held-out ones", "best gold at a smaller KL, less gold at the largest"}
    assert of_ppo.keys() - of_sft.keys() == against_a_policy
    gains = [p for p in ppo["probes"] if p["probe"].startswith("gain in reward")]
    assert ["by gold" in g["says"] for g in gains] == [True, False] and vowels in gains[1]["says"]
    assert ppo["reward"]["mean"] > sft["reward"]["mean"] and ppo[f"watch_{vowels}"]["mean"] < sft[f"watch_{vowels}"]["mean"]
    assert gains[1]["verdict"] == "look here" and gains[1]["mean"] > 1              # what is shorter has no more vowels
    training = of_ppo["reward on training prompts, less held-out ones"]
    last = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[-1]                       # a tenth of ten steps
    assert training["train"]["mean"] == pytest.approx(last["score"]) and training["prompts"] == evaluation["prompts"]
    assert training["train"]["interval"] == pytest.approx(1.96 * last["score_std"] / math.sqrt(3))        # of 3 prompts
    assert -1 <= training["test"]["mean"] < ppo["reward"]["mean"]                   # where the unfinished count -1 as well
    distances = [b["distance"] for b in of_ppo["accuracy near the reference, less far from it"]["by_distance"]]
    assert distances == sorted(distances) and distances[0] < ppo["kl"]["mean"] < distances[-1]
    assert of_ppo["correlation of reward and length, less gold's"]["verdict"] in capsys.readouterr().out
    other = evaluate.main(replace(settings, policies=f"{tmp_path / 'ppo'}", reward=str(world / "rm"), watch="", count=12))
    of_rm = {p["probe"]: p for p in other["results"][0]["probes"]}
    assert len(of_rm["claimed accuracy, less the real one"]["calibration"]) == 6 and not of_rm.keys() & against_a_policy
    with pytest.raises(UserError, match="--watch compares"):
        evaluate.main(replace(settings, reward=""))


def test_nobody_to_judge_is_an_error_and_so_is_a_judge_who_is_too_sure(world, tmp_path):
    settings = evaluate.Settings(policies=f"{world / 'sft'},{world / 'rm'}", data=str(world / "prompts.jsonl"), max_tokens=8,
                                 samples=1, out=str(tmp_path / "e.json"))
    with pytest.raises(UserError, match="nobody says who wins"):
        evaluate.main(settings)
    with pytest.raises(UserError, match="gave 7 for 'a'"):
        evaluate.judged(rewards.load_function(f"{world / 'mine.py'}:sure"), ["p"], [["a"]], [["b"]])
    with pytest.raises(UserError, match="no function nothing"):
        evaluate.main(replace(settings, judge=f"{world / 'mine.py'}:nothing"))
    assert not (tmp_path / "e.json").exists()


def test_distinct_ngrams():
    assert evaluate.distinct_ngrams(["a b a b", "a b"], 2) == 2 / 4          # ab ba ab, ab
    assert evaluate.distinct_ngrams(["a"], 2) == 0 and evaluate.distinct_ngrams(["a b", "c"], 1) == 1


# ---------------------------------------------------------------------------------------------- what is attainable

@pytest.mark.parametrize(("kind", "samples"), [("rloo", 4), ("grpo", 4), ("reinforce", 1)])
def test_a_tabular_policy_approaches_the_optimum_and_does_not_exceed_it(kind, samples):
    """One prompt, six responses of one token, the loop of train_ppo.py in small; the optimum is pi0 exp(r / beta) / Z."""
    generator = torch.Generator().manual_seed(0)
    beta, reward = 0.5, torch.tensor([1.0, 0.5, 0.0, -1.0, 0.8, 0.2])
    ref = torch.log_softmax(torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, 1.0]), 0)
    best = beta * torch.logsumexp(ref + reward / beta, 0)                    # max over policies of E r - beta KL
    drawn = torch.multinomial(ref.exp(), 200_000, replacement=True, generator=generator)
    r_star, kl_star, _ = losses.sampled_optimum(reward[drawn][None], beta)   # the estimate from samples of the reference
    assert float(r_star - beta * kl_star) == pytest.approx(float(best), abs=5e-3)
    logits = ref.clone().requires_grad_()
    optimizer, reached = torch.optim.Adam([logits], lr=0.03), []
    for step in range(250):
        logp = torch.log_softmax(logits, 0)
        with torch.no_grad():
            reached.append(float(logp.exp() @ reward - beta * losses.exact_kl(logp, ref)))
        action = torch.multinomial(logp.exp().detach(), 256, replacement=True, generator=generator)     # (B,) one token each
        old, mask = logp[action][:, None].detach(), torch.ones(256, 1, dtype=torch.bool)                # (B, 1)
        kl = losses.kl_estimates(old, ref[action][:, None])[0]
        total = losses.token_rewards(reward[action], kl, mask, beta).sum(1)
        advantages = losses.group_advantages(total.view(-1, samples), kind, False).reshape(-1, 1)
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 250)
        loss, _ = losses.ppo_policy_loss(torch.log_softmax(logits, 0)[action][:, None], old, advantages, mask, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(reached) <= float(best) + 1e-6
    assert reached[-1] > float(best) - 0.02 * (float(best) - reached[0]), (reached[0], reached[-1], float(best))
    assert torch.allclose(logits.softmax(0), torch.softmax(ref + reward / beta, 0), atol=0.05)


def test_a_response_that_ends_beyond_the_context_is_read_as_far_as_it_fits(tokenizer):
    model = tiny(tokenizer, ScalarGPT, spread=2.0)
    limit, prompt = model.config.n_positions, "Why?"
    ids = tokenizer.encode_prompt(prompt)
    words = " the fox" * limit
    kept = [*(ids + tokenizer.encode_response(prompt, words))[: limit - 1], tokenizer.eos_id]
    with torch.no_grad():
        expected = model.score_last(torch.tensor([kept]), torch.tensor([limit]))
    assert rewards.TrainedReward(model)([prompt], [words]) == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(UserError, match="leaves a response no room"):
        rewards.TrainedReward(model)([words], [" the fox"])
