"""The stages as a user runs them: they learn, they resume bit for bit, and wrong input is one clear sentence."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import label
import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, cli, toyworld
from minirlhf.model import GPT, ScalarGPT
from minirlhf.run import Run, read_jsonl

ROOT = Path(__file__).parents[1]
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 400, "n_positions": 192, "count": 200, "batch_size": 8}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with a small SFT model, candidates, rankings and a reward model, made by the scripts themselves."""
    out = tmp_path_factory.mktemp("stages")
    train_sft.main(train_sft.Settings(out=str(out / "sft"), steps=60, lr=5e-3, **SMALL))
    sample.main(sample.Settings(init=str(out / "sft"), data="toy", count=40, samples=3, max_tokens=24,
                                candidates_out=str(out / "candidates.jsonl")))
    label.main(label.Settings(candidates=str(out / "candidates.jsonl"), out=str(out / "rankings.jsonl"), annotator="toy"))
    train_rm.main(train_rm.Settings(init=str(out / "sft"), data=str(out / "rankings.jsonl"), out=str(out / "rm"), max_tokens=24,
                                    batch_size=4))
    return out


def settings_of(stage: str, stages: Path, out: Path):
    common = {"out": str(out), "save_every": 4}
    return {
        "sft": lambda: train_sft.Settings(steps=10, eval_every=5, **common, **SMALL),
        "rm": lambda: train_rm.Settings(init=str(stages / "sft"), data=str(stages / "rankings.jsonl"), batch_size=4, steps=10,
                                        max_tokens=16, **common),
        "ppo": lambda: train_ppo.Settings(init=str(stages / "sft"), reward=str(stages / "rm"), steps=10, prompts_per_step=6,
                                          max_tokens=12, count=50, kl_target=3.0, minibatches=2, **common),
    }[stage]()


MAIN = {"sft": train_sft.main, "rm": train_rm.main, "ppo": train_ppo.main}
TIMES = ("seconds", "tokens_per_second", "peak_gib")


def lasting(folder: Path, name: str) -> list[dict]:
    """A log without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_jsonl(folder / name)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(stage, stages, tmp_path, monkeypatch):
    whole, cut = settings_of(stage, stages, tmp_path / "whole"), settings_of(stage, stages, tmp_path / "cut")
    saved = {}
    finish = Run.finish

    def keep_state(self, model, **more):
        saved[self.folder.name] = (self.optimizer.state_dict()["state"], dict(self.extra))
        finish(self, model, **more)

    log = Run.log

    def die(self, step, *args, **kwargs):
        row = log(self, step, *args, **kwargs)
        if step == 5:                                         # after the checkpoint at 4, with two steps logged beyond it
            raise Killed
        return row

    monkeypatch.setattr(Run, "finish", keep_state)
    MAIN[stage](whole)
    with monkeypatch.context() as m:
        m.setattr(Run, "log", die)
        with pytest.raises(Killed):
            MAIN[stage](cut)
    assert (tmp_path / "cut" / "resume.safetensors").exists() and not (tmp_path / "cut" / "model.safetensors").exists()
    MAIN[stage](replace(cut, resume=True))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    (state_a, extra_a), (state_b, extra_b) = saved["whole"], saved["cut"]
    assert extra_a == extra_b
    assert all(torch.equal(state_a[i][k], state_b[i][k]) for i in state_a for k in state_a[i])
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lasting(tmp_path / "whole", name) == lasting(tmp_path / "cut", name)
    assert [row["step"] for row in read_jsonl(tmp_path / "cut" / "metrics.jsonl")] == list(range(10))


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_micro_batches_change_nothing_but_rounding(stage, stages, tmp_path):
    one = replace(settings_of(stage, stages, tmp_path / "one"), steps=2)
    many = replace(settings_of(stage, stages, tmp_path / "many"), steps=2, token_budget=1)     # every row alone
    MAIN[stage](one)
    MAIN[stage](many)
    rows = [lasting(tmp_path / name, "metrics.jsonl")[0] for name in ("one", "many")]
    name = "policy_loss" if stage == "ppo" else "loss"
    assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-3)


def test_an_iteration_at_learning_rate_zero_changes_nothing(stages, tmp_path):
    settings = replace(settings_of("ppo", stages, tmp_path / "ppo"), lr=0.0, steps=1, epochs=3)
    train_ppo.main(settings)
    before, after = (load_file(folder / "model.safetensors") for folder in (stages / "sft", tmp_path / "ppo"))
    assert all(torch.equal(before[k], after[k]) for k in before)
    row = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[0]
    assert row["first_ratio_off"] < 1e-4 and row["kl"] == 0 and row["clip_fraction"] == 0 and row["approx_kl"] < 1e-8


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_first_ratio_is_one(stages, tmp_path, temperature):
    settings = replace(settings_of("ppo", stages, tmp_path / "ppo"), steps=4, temperature=temperature, token_budget=200)
    train_ppo.main(settings)
    rows = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")
    assert len(rows) == 4 and max(row["first_ratio_off"] for row in rows) < 1e-4
    assert rows[0]["kl"] == 0 and rows[-1]["kl"] != 0


def test_another_temperature_in_training_is_caught(stages, tmp_path, monkeypatch):
    original = train_ppo.rollout.logprobs
    monkeypatch.setattr(train_ppo.rollout, "logprobs",
                        lambda model, batch, t=1.0: original(model, batch, 0.9 * t if torch.is_grad_enabled() else t))
    with pytest.raises(UserError, match="must be 1"):
        train_ppo.main(settings_of("ppo", stages, tmp_path / "ppo"))


def test_a_loss_that_is_not_finite_stops_before_the_step(stages, tmp_path, monkeypatch):
    settings = settings_of("sft", stages, tmp_path / "sft")
    calls = []
    loss_of = train_sft.loss_of

    def poisoned(*args):
        calls.append(1)
        return loss_of(*args) * (float("nan") if len(calls) > 6 else 1)

    monkeypatch.setattr(train_sft, "loss_of", poisoned)
    with pytest.raises(UserError, match="not finite"):
        train_sft.main(settings)
    monkeypatch.undo()
    train_sft.main(replace(settings, resume=True))
    assert all(x.isfinite().all() for x in load_file(tmp_path / "sft" / "model.safetensors").values())


def test_a_fresh_reward_models_loss_is_ln_2(stages):
    rows = read_jsonl(stages / "rm" / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5) and rows[0]["accuracy"] == 0.5


def test_reward_scores_are_normalised_and_do_not_depend_on_the_batch(stages):
    from minirlhf import rewards
    model = ScalarGPT.from_pretrained(stages / "rm")
    assert model.config.score_std != 1.0
    reward_fn = rewards.load(str(stages / "rm"))
    prompts = toyworld.prompts("train", 300, 9)
    responses = [d["completion"] for d in toyworld.demonstrations("train", 300, 9)]
    together = reward_fn(prompts, responses)
    alone = [reward_fn([p], [r])[0] for p, r in zip(prompts[:20], responses)]
    assert together[:20] == pytest.approx(alone, abs=1e-4)


def test_ppo_learns_in_a_minute(stages, tmp_path):
    """A reward that any policy can raise: short responses. It must rise, at a finite KL, and the model must change."""
    (tmp_path / "short.py").write_text("def brevity(prompts, responses):\n    return [-len(r) / 20 for r in responses]\n")
    train_ppo.main(train_ppo.Settings(init=str(stages / "sft"), reward=f"{tmp_path / 'short.py'}:brevity", steps=25, count=100,
                                      prompts_per_step=32, max_tokens=32, lr=3e-3, kl_coef=0.01, unfinished_score=-8.0,
                                      out=str(tmp_path / "ppo")))
    rows = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")
    first, last = (sum(r["score"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    spread = rows[0]["score_std"]
    assert last > first + 0.4 * spread and rows[-1]["length"] < rows[0]["length"]
    assert all(abs(r["kl"]) < 100 for r in rows)


def test_candidates_are_deterministic_and_rankings_go_on_where_they_stopped(stages, tmp_path):
    again = sample.Settings(init=str(stages / "sft"), data="toy", count=40, samples=3, max_tokens=24,
                            candidates_out=str(tmp_path / "candidates.jsonl"))
    sample.main(again)
    assert (tmp_path / "candidates.jsonl").read_bytes() == (stages / "candidates.jsonl").read_bytes()
    whole = read_jsonl(stages / "rankings.jsonl")
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in whole[:7]))
    toy = label.Settings(candidates=again.candidates_out, out=str(tmp_path / "rankings.jsonl"), annotator="toy")
    label.main(toy)
    label.main(toy)                                                                                        # nothing to add
    got = read_jsonl(tmp_path / "rankings.jsonl")
    assert [(r["id"], r["ranks"]) for r in got] == [(r["id"], r["ranks"]) for r in whole]


def test_a_chat_answers_and_remembers(stages, monkeypatch, capsys):
    lines = iter(["What is 2 + 3?", "And a dog?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    sample.main(sample.Settings(init=str(stages / "sft"), chat=True, max_tokens=10))
    assert capsys.readouterr().out.count("Assistant:") == 2


def test_the_saved_policy_is_a_model_folder(stages):
    names = {p.name for p in (stages / "sft").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt", "run.json", "metrics.jsonl"} <= names
    assert "resume.safetensors" not in names
    run = json.loads((stages / "sft" / "run.json").read_text())
    assert run["finished"] and run["settings"]["steps"] == 60
    GPT.from_pretrained(stages / "sft")


# ---------------------------------------------------------------------------------------------- wrong input

def run_script(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def file_with(tmp_path, *lines) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


GOOD = json.dumps({"prompt": "hi", "completion": "hello"})
PAIR = json.dumps({"prompt": "hi", "chosen": "a", "rejected": "b"})


@pytest.mark.parametrize(("script", "lines", "said"), [
    ("train_sft.py", [GOOD] * 16 + ['{"prompt": "hi"'], ["line 17", "JSON"]),
    ("train_sft.py", [], ["holds no record"]),
    ("train_sft.py", ['{"question": "hi", "answer": "x"}'], ["line 1", "prompt"]),
    ("train_sft.py", ['{"prompt": 5, "completion": "x"}'], ["line 1", "prompt"]),
    ("train_rm.py", ['{"prompt": "hi", "chosen": "same", "rejected": "same"}'], ["line 1", "chosen"]),
    ("train_rm.py", [PAIR, '{"prompt": "hi", "responses": ["a", "b"], "ranks": [1]}'], ["line 2", "ranks"]),
    ("train_ppo.py", ['{"completion": "x"}'], ["line 1", "prompt"]),
    ("sample.py", [json.dumps({"prompt": "word " * 500})], ["does not fit the model's context"]),
    ("label.py", ['{"prompt": "hi"}'], ["line 1", "responses"]),
])
def test_a_wrong_record_is_one_sentence_and_exit_code_2(script, lines, said, stages, tmp_path):
    data = file_with(tmp_path, *lines)
    flags = {"train_sft.py": ["--data", data, "--out", tmp_path / "x"],
             "train_rm.py": ["--data", data, "--init", stages / "sft", "--out", tmp_path / "x"],
             "train_ppo.py": ["--data", data, "--init", stages / "sft", "--reward", stages / "rm", "--out", tmp_path / "x"],
             "sample.py": ["--data", data, "--init", stages / "sft"],
             "label.py": ["--candidates", data, "--out", tmp_path / "x.jsonl"]}[script]
    done = run_script(script, *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in said), done.stderr
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_missing_files_and_folders(stages, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    for words, said in [
        (("train_sft.py", "--data", tmp_path / "no.jsonl", "--out", tmp_path / "x"), "no.jsonl"),
        (("train_rm.py", "--init", tmp_path / "nothing", "--data", stages / "rankings.jsonl", "--out", tmp_path / "x"), "nothing"),
        (("train_ppo.py", "--init", bare, "--reward", stages / "rm", "--out", tmp_path / "x"), "model.safetensors"),
        (("sample.py", "--init", stages / "sft"), "--prompt"),
        (("train_ppo.py", "--init", stages / "sft", "--reward", tmp_path / "r.py:f", "--out", tmp_path / "x"), "r.py"),
    ]:
        done = run_script(*words)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_vocabulary_that_does_not_match(stages, tmp_path):
    train_sft.main(train_sft.Settings(out=str(tmp_path / "other"), steps=1, **(SMALL | {"vocab_size": 300})))
    with pytest.raises(UserError, match=r"400 tokens.*300"):
        train_ppo.main(replace(settings_of("ppo", stages, tmp_path / "ppo"), init=str(tmp_path / "other")))


def test_a_finished_run_is_never_overwritten_unasked(stages, tmp_path):
    before = (stages / "sft" / "model.safetensors").read_bytes()
    settings = train_sft.Settings(out=str(stages / "sft"), steps=60, lr=5e-3, **SMALL)
    with pytest.raises(UserError, match="already holds a run"):
        train_sft.main(settings)
    with pytest.raises(UserError, match=r"other settings \(lr\)"):
        train_sft.main(replace(settings, lr=1e-3, resume=True))
    train_sft.main(replace(settings, resume=True))
    assert (stages / "sft" / "model.safetensors").read_bytes() == before
    (stages / "sft" / "mine.txt").write_text("a note of the user's")
    again = train_sft.Settings(out=str(tmp_path / "sft"), steps=2, **SMALL)
    train_sft.main(again)
    (tmp_path / "sft" / "mine.txt").write_text("a note of the user's")
    train_sft.main(replace(again, steps=3, overwrite=True))
    assert (tmp_path / "sft" / "mine.txt").exists() and len(read_jsonl(tmp_path / "sft" / "metrics.jsonl")) == 3


@pytest.mark.parametrize(("code", "said"), [
    ("return [1.0]", "1 scores for"), ("return [float('nan')] * len(r)", "nan"), ("return ['x'] * len(r)", "'x'"),
    ("raise KeyError('oops')", "KeyError"), ("return [None] * len(r)", "None")])
def test_a_reward_function_that_misbehaves_is_named(code, said, tmp_path):
    from minirlhf import rewards
    (tmp_path / "mine.py").write_text(f"def f(p, r):\n    {code}\n")
    with pytest.raises(UserError, match=said) as error:
        rewards.load(f"{tmp_path / 'mine.py'}:f")(["a"] * 3, ["b"] * 3)
    assert "mine.py:f" in str(error.value)


@pytest.mark.parametrize("script", ["train_sft.py", "train_rm.py", "train_ppo.py", "sample.py", "label.py", "evaluate.py",
                                    "run_rlhf.py", "train_dpo.py"])
def test_every_flag_has_help(script):
    done = run_script(script, "--help")
    assert done.returncode == 0 and "(default:" in done.stdout
    module = __import__(script[:-3])
    from minirlhf.cli import comments
    missing = [name for name in module.Settings.__dataclass_fields__ if not comments(module.Settings).get(name)]
    assert not missing, missing


def test_show_batch_colours_what_is_supervised(stages, capsys):
    for stage in ("sft", "rm", "ppo"):
        MAIN[stage](replace(settings_of(stage, stages, stages / "unused"), show_batch=True))
        assert "\x1b[32m" in capsys.readouterr().out
    assert not (stages / "unused").exists()


@pytest.mark.parametrize(("module", "flag", "value", "fine"), [
    (train_sft, "batch_size", "0", "1"), (train_sft, "steps", "-3", "1"), (train_ppo, "samples_per_prompt", "0", "4"),
    (train_ppo, "warmup", "-1", "0"), (train_ppo, "lr", "nan", "0.1"), (train_ppo, "lr", "inf", "0"),
    (train_ppo, "kl_coef", "-1", "0"), (train_rm, "normalize_samples", "-1", "0"), (train_ppo, "unfinished_score", "nan", "-2")])
def test_a_number_that_can_mean_nothing_is_refused_by_name(module, flag, value, fine, monkeypatch, capsys):
    """0 is a whole number's lowest value where it is the default or its comment says what it means, else 1 is."""
    monkeypatch.setattr(sys, "argv", ["x", f"--{flag}", value])
    with pytest.raises(SystemExit) as stopped:
        cli.start(lambda settings: pytest.fail("it went on"), module.Settings)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith((f"error: --{flag} {value}: ", f"error: --{flag} {float(value)}: "))
    assert float(getattr(cli.parse(module.Settings, [f"--{flag}", fine]), flag)) == float(fine)
