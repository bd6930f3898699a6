"""--overwrite loses nothing to a mistake: old results go when the new run's first step has gone through, and no run
writes over what it reads."""
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny

import train_dpo
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError
from minirlhf.model import GPT, ScalarGPT
from minirlhf.run import Run, describe_result, read_jsonl

SCRIPTS = {"sft": train_sft, "rm": train_rm, "ppo": train_ppo, "dpo": train_dpo}
QUESTIONS = ["What is 2 + 3?", "Tell me of a fox.", "Why not?", "Tell me of a dog.", "Who ran home?", "Who slept?"]
BROKEN = """
def no_such_name(prompts, responses): return [lenght(r) for r in responses]
def not_one_each(prompts, responses): return [1.0]
def good(prompts, responses): return [float(len(r)) for r in responses]
"""


@pytest.fixture
def made(tokenizer, tmp_path):
    """Everything that a run can read, and no more."""
    tiny(tokenizer).save_pretrained(tmp_path / "policy")
    tiny(tokenizer, seed=1).save_pretrained(tmp_path / "reference")
    tiny(tokenizer, ScalarGPT).save_pretrained(tmp_path / "rm")
    tiny(tokenizer, ScalarGPT, seed=1).save_pretrained(tmp_path / "watched")
    rankings = [{"prompt": q, "chosen": "It is 5.", "rejected": "The fox ran."} for q in QUESTIONS]
    texts = [{"prompt": q, "completion": "The dog slept by the fire."} for q in QUESTIONS]
    for name, rows in (("rankings", rankings), ("texts", texts)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(BROKEN)
    return tmp_path


def settings_of(stage: str, made: Path, **changed):
    common = {"init": f"{made}/policy", "out": f"{made}/out", "steps": 2, "device": "cpu"}
    own = {
        "sft": {"data": f"{made}/texts/data.jsonl", "batch_size": 2, "validation": 0.3},
        "rm": {"data": f"{made}/rankings/data.jsonl", "batch_size": 2, "validation": 0.3, "max_tokens": 4,
               "normalize_on": f"{made}/reference"},
        "ppo": {"data": f"{made}/texts/data.jsonl", "reference": f"{made}/reference", "reward": f"{made}/rm",
                "watch": f"{made}/watched", "ptx_data": f"{made}/texts/data.jsonl", "prompts_per_step": 3, "max_tokens": 4},
        "dpo": {"data": f"{made}/texts/data.jsonl", "reference": f"{made}/reference", "reward": f"{made}/rm",
                "online": True, "batch_size": 2, "max_tokens": 4, "validation": 0.3, "eval_every": 1},
    }[stage]
    return SCRIPTS[stage].Settings(**common | own | changed)


def run(stage: str, settings) -> None:
    SCRIPTS[stage].main(settings)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Name -> bytes and time of the last change, of every file."""
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


INPUTS = [("sft", "init"), ("sft", "data"),
          ("rm", "init"), ("rm", "data"), ("rm", "normalize_on"),
          ("ppo", "init"), ("ppo", "reference"), ("ppo", "reward"), ("ppo", "watch"), ("ppo", "data"), ("ppo", "ptx_data"),
          ("dpo", "init"), ("dpo", "reference"), ("dpo", "reward"), ("dpo", "data")]
MISTAKES = [*((stage, {field: "{made}/typo.jsonl"}) for stage, field in INPUTS),
            ("sft", {"optimizer": "adamm"}), ("sft", {"lora_rank": 999}),
            ("ppo", {"ensemble": "men"}), ("ppo", {"advantage": "gea"}), ("ppo", {"watch": "{made}/watched,{made}/typo"}),
            ("ppo", {"reward": "{made}/rm*0.5+{made}/typo"}), ("ppo", {"reward": "{made}/code/mine.py:typo"}),
            ("ppo", {"reward": "{made}/code/mine.py:no_such_name"}), ("ppo", {"watch": "{made}/code/mine.py:no_such_name"}),
            ("ppo", {"reward": "{made}/code/mine.py:not_one_each"}), ("dpo", {"reward": "{made}/code/mine.py:no_such_name"}),
            ("dpo", {"loss": "sigmoit"}), ("dpo", {"lora_rank": 999})]


@pytest.mark.parametrize(("stage", "mistake"), MISTAKES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_a_mistake_leaves_the_old_run_as_it_was(stage, mistake, made):
    run(stage, settings_of(stage, made))
    (made / "out" / "mine.txt").write_text("a note of the user's")
    before = contents(made / "out")
    assert {"run.json", "metrics.jsonl", "model.safetensors"} <= before.keys()
    wrong = {field: value.format(made=made) if isinstance(value, str) else value for field, value in mistake.items()}
    with pytest.raises(UserError):
        run(stage, settings_of(stage, made, overwrite=True, **wrong))
    assert contents(made / "out") == before
    run(stage, settings_of(stage, made, overwrite=True, steps=3))              # the right command still replaces it
    after = contents(made / "out")
    assert after.keys() == before.keys() and after["mine.txt"] == before["mine.txt"]
    assert len(read_jsonl(made / "out" / "metrics.jsonl")) == 3
    assert describe_result(made / "out")["finished"] and describe_result(made / "out")["settings"]["steps"] == 3


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_mistake_in_a_new_run_leaves_nothing_that_stands_in_the_way(stage, made):
    with pytest.raises(UserError):
        run(stage, settings_of(stage, made, data=f"{made}/typo.jsonl"))
    run(stage, settings_of(stage, made))
    assert describe_result(made / "out")["finished"]


def test_a_reward_function_that_fails_leaves_nothing_that_stands_in_the_way(made):
    with pytest.raises(UserError, match="NameError"):
        run("ppo", settings_of("ppo", made, reward=f"{made}/code/mine.py:no_such_name"))
    assert not contents(made / "out")
    run("ppo", settings_of("ppo", made, reward=f"{made}/code/mine.py:good"))


def test_a_run_that_is_replaced_before_its_end_is_not_resumed(made):
    """The checkpoint of the old run must not become the new one's."""
    old = settings_of("sft", made, steps=4, save_every=1, lr=1e-2)
    log = Run.log

    def die(self, step, *args, **kwargs):
        log(self, step, *args, **kwargs)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", die)
        with pytest.raises(KeyboardInterrupt):
            run("sft", old)
    assert (made / "out" / "resume.safetensors").exists()
    run("sft", replace(old, lr=0.0, overwrite=True))
    assert [row["step"] for row in read_jsonl(made / "out" / "metrics.jsonl")] == [0, 1, 2, 3]
    assert (made / "out" / "model.safetensors").read_bytes() == (made / "policy" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_model_that_is_no_runs_is_not_replaced_unasked(name, resume, made):
    (made / "out").mkdir()
    (made / "out" / name).write_bytes(b"somebody's")
    with pytest.raises(UserError, match=r"holds a .* that is no run's: --overwrite"):
        run("sft", settings_of("sft", made, resume=resume))
    assert (made / "out" / name).read_bytes() == b"somebody's"
    run("sft", settings_of("sft", made, overwrite=True))
    GPT.from_pretrained(made / "out")


def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(made):
    first, second = (Run(settings_of("sft", made), "train_sft.py") for _ in range(2))
    first.samples(0, [])
    before = contents(made / "out")
    with pytest.raises(UserError, match="another run has begun"):
        second.samples(0, [])
    assert contents(made / "out") == before


# ---------------------------------------------------------------------------------------------- out is an input

HOW = [{}, {"overwrite": True}, {"resume": True}, {"overwrite": True, "resume": True}]


def refused(stage: str, settings, field: str) -> None:
    with pytest.raises(UserError, match=f"--out .* is, holds or lies in --{field} .*choose another --out"):
        run(stage, settings)


@pytest.mark.parametrize(("stage", "field"), INPUTS)
def test_out_that_is_an_input_is_refused(stage, field, made):
    """In every spelling: the folder itself, through links, inside it, around it."""
    given = Path(getattr(settings_of(stage, made), field))
    original = given.parent if given.suffix == ".jsonl" else given
    folder = made / "alone" / original.name                  # with nothing else that the run reads beside it
    shutil.copytree(original, folder)
    link = made / "link"
    link.symlink_to(folder)
    inside = given.relative_to(original)
    before = contents(folder)
    outs = [folder, folder.parent, link, folder / ".." / folder.name, os.path.relpath(folder)]
    if given == original:
        outs.append(folder / "deeper")
    for out in outs:
        for how in HOW:
            refused(stage, settings_of(stage, made, **{field: str(folder / inside)}, out=str(out), **how), field)
    for how in HOW:
        refused(stage, settings_of(stage, made, **{field: str(link / inside)}, out=str(folder), **how), field)
    assert contents(folder) == before


@pytest.mark.parametrize(("stage", "field", "value"), [
    ("ppo", "reward", "{made}/watched,{made}/rm"), ("ppo", "reward", "{made}/watched*0.5+{made}/rm*-1"),
    ("ppo", "watch", "{made}/watched,{made}/rm"), ("ppo", "reward", "{made}/rm/mine.py:good"),
    ("ppo", "ptx_data", "{made}/texts/data.jsonl, {made}/rm/data.jsonl"), ("dpo", "reward", "{made}/watched,{made}/rm"),
    ("dpo", "data", "{made}/texts/data.jsonl,{made}/rm/data.jsonl")])
def test_one_of_several_inputs_is_enough(stage, field, value, made):
    (made / "rm" / "mine.py").write_text(BROKEN)
    (made / "rm" / "data.jsonl").write_bytes((made / "texts" / "data.jsonl").read_bytes())
    before = contents(made / "rm")
    given = {"reward": f"{made}/watched"} | {field: value.format(made=made)}
    refused(stage, settings_of(stage, made, out=f"{made}/rm", overwrite=True, **given), field)
    assert contents(made / "rm") == before


def test_a_folder_whose_weights_are_a_link_into_out_is_an_input_there(made):
    run("sft", settings_of("sft", made))
    (made / "linked").mkdir()
    for file in (made / "policy").iterdir():
        (made / "linked" / file.name).symlink_to(made / "out" / file.name)
    before = contents(made / "out")
    refused("sft", settings_of("sft", made, init=f"{made}/linked", overwrite=True), "init")
    assert contents(made / "out") == before


def test_a_published_model_in_the_cache_is_an_input_there(made, monkeypatch):
    monkeypatch.setenv("MINIRLHF_CACHE", str(made / "cache"))
    monkeypatch.chdir(made)
    (made / "policy").rename(made / "cache_of_one")
    (made / "cache").mkdir()
    (made / "cache_of_one").rename(made / "cache" / "gpt2")
    for out in ("cache/gpt2", "cache"):
        refused("sft", settings_of("sft", made, init="gpt2", out=str(made / out), overwrite=True), "init")


@pytest.mark.parametrize("stage", SCRIPTS)
def test_neighbours_are_no_inputs(stage, made):
    """A name that only begins like another, and a folder beside its data, as in run_rlhf.py."""
    settings = settings_of(stage, made, out=f"{made}/policy2")
    run(stage, settings)
    run(stage, replace(settings, resume=True))
    assert describe_result(made / "policy2")["finished"]
