"""A run: resuming, replacing, refusing, what is printed; devices; what is healthy."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL, tiny
from safetensors.torch import load_file

import train_dpo
import train_ppo
import train_rm
import train_sft
from minirlhf import Stopped, UserError, device, health, memory
from minirlhf.checkpoint import read_tensors, write_tensors
from minirlhf.files import read_jsonl, to_json, unlock, write_json
from minirlhf.inputs import content_digest, fingerprint
from minirlhf.model import GPT, Config, ScalarGPT
from minirlhf.optim import adamw, muon, take_step
from minirlhf.run import Run, read_run, seed_of
from minirlhf.tokenizer import Tokenizer


@dataclass
class Settings:
    out: str
    init: str = ""
    data: str = ""
    optimizer: str = "adamw"
    steps: int = 10
    lr: float = 1e-2
    save_every: int = 4
    log_every: int = 2
    token_budget: int = 1024
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    resume: bool = False
    overwrite: bool = False


@pytest.fixture
def train(tokenizer):
    """train(settings, event): a small script. event(step, model) may do harm before the update."""

    def main(settings: Settings, event=lambda step, model: None) -> Run:
        run = Run(settings, "train_x.py")
        if run.finished:
            return run
        model = run.place(tiny(tokenizer), trained=True)
        if settings.optimizer == "muon":
            optimizer = muon(model, settings.lr, weight_decay=0.1)
        else:
            optimizer = adamw([model], settings.lr, weight_decay=0.1)
        run.extra["total"] = 0.0
        run.restore(optimizer, model=model)
        for step in run.steps(settings.steps):
            tokens = torch.randint(300, (2, 9), generator=run.generator("batch", step))
            logits = model(tokens)[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
            loss.backward()
            event(step, model)
            norm = take_step(optimizer, [model], settings.lr / (step + 1), loss.item(), step)
            run.extra["total"] += loss.item()
            run.samples(step, [{"prompt": "a", "response": str(step), "score": loss.item()}])
            run.log(step, ("loss",), loss=loss, grad_norm=norm, total=run.extra["total"])
        run.finish(model, total=run.extra["total"])
        return run

    return main


def results(folder) -> dict:
    """What a run leaves, without clocks."""
    logs = {name: read_jsonl(folder / name) for name in ("metrics.jsonl", "samples.jsonl")}
    return logs | {
        "files": sorted(path.name for path in folder.iterdir()),
        "weights": {k: v.tolist() for k, v in load_file(folder / "model.safetensors").items()},
        "total": read_run(folder)["total"],
    }


class Killed(Exception):
    pass


def kill_at(*steps: int):
    def event(step, model):
        if step in steps:
            raise Killed

    return event


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(optimizer, train, tmp_path):
    settings = Settings(str(tmp_path / "cut"), optimizer=optimizer)
    train(replace(settings, out=str(tmp_path / "whole")))
    for step in (1, 6, 9):  # before the first checkpoint, between two, after the last
        with pytest.raises(Killed):
            train(replace(settings, resume=True), kill_at(step))
    run = train(replace(settings, resume=True))
    assert run.first_step == 8 and results(tmp_path / "cut") == results(tmp_path / "whole")
    assert [row["step"] for row in read_jsonl(tmp_path / "cut" / "metrics.jsonl")] == [*range(10)]
    assert train(replace(settings, resume=True)).finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_also_at_the_last_step(number, train, tmp_path):
    settings = Settings(str(tmp_path / "cut"), resume=True)
    train(Settings(str(tmp_path / "whole")))

    def interrupt(step, model):
        if step in (2, 9):
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(settings, interrupt)
        assert signal.getsignal(number) == handler
    assert train(settings).first_step == 10
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_step(value, train, tmp_path):
    settings = Settings(str(tmp_path / "x"))

    def poison(step, model):
        if step == 6:
            model.ln_f.weight.grad[0] = value

    with pytest.raises(Stopped, match="step 6"):
        train(settings, poison)
    with pytest.raises(UserError, match=r"\(--seed was 0, now it is 1\)"):
        train(replace(settings, resume=True, seed=1))
    train(replace(settings, resume=True, lr=1e-4))
    weights = load_file(tmp_path / "x" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_an_old_run_stays_until_the_new_one_has_a_line(train, tmp_path):
    folder = tmp_path / "x"
    settings = Settings(str(folder), steps=3)
    train(settings)
    (folder / "mine.txt").write_text("a note")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="--overwrite"):
        train(settings)
    with pytest.raises(UserError, match="other settings"):
        train(replace(settings, steps=4, resume=True))
    with pytest.raises(Killed):
        train(replace(settings, steps=4, overwrite=True), kill_at(0))
    unlock(folder / "run.lock")  # as the end of the process would
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(Killed):
        train(replace(settings, steps=4, overwrite=True), kill_at(2))
    assert not (folder / "model.safetensors").exists()
    train(replace(settings, steps=4, resume=True))
    assert len(read_jsonl(folder / "metrics.jsonl")) == 4 and (folder / "mine.txt").exists()


def test_a_run_that_is_replaced_lends_nothing_to_the_new_one(train, tmp_path):
    settings = Settings(str(tmp_path / "x"))
    with pytest.raises(Killed):
        train(settings, kill_at(6))  # leaves a checkpoint
    with pytest.raises(Killed):
        train(replace(settings, seed=1, overwrite=True), kill_at(2))
    run = train(replace(settings, seed=1, resume=True))
    train(replace(settings, seed=1, out=str(tmp_path / "whole")))
    assert run.first_step == 0 and results(tmp_path / "x") == results(tmp_path / "whole")


@pytest.mark.parametrize("given", ["x", "links", "toy, x/samples.jsonl"])
def test_an_input_is_no_output(given, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(Settings("x", steps=1))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.safetensors").symlink_to(tmp_path / "x" / "model.safetensors")
    for flag in ("init", "data"):
        with pytest.raises(UserError, match=f"--{flag}"):
            train(replace(Settings("links/../x", overwrite=True), **{flag: given}))
    assert (tmp_path / "x" / "model.safetensors").exists()


WRITER = """
import sys
from minirlhf.files import lock
lock(sys.argv[1], "x")
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_share_a_folder(train, tmp_path):
    settings = Settings(str(tmp_path / "x"), steps=2)
    (tmp_path / "x").mkdir()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x" / "run.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"process {other.pid}:"):
            train(settings)
        other.kill()
    train(settings)
    assert not (tmp_path / "x" / "run.lock").exists()


def test_folders_that_hold_something_else(train, tmp_path, tokenizer):
    tiny(tokenizer).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"config\.json"):
        train(Settings(str(tmp_path / "model"), resume=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        train(Settings(str(tmp_path / "file" / "x")))


def test_what_a_run_did_not_write_is_not_deleted(train, tmp_path):
    folder = tmp_path / "x"
    settings = Settings(str(folder), steps=1)
    (folder / "a.1.partial").mkdir(parents=True)
    for name in ("movie.mkv.partial", "x.7z.partial", "7.partial", "resume.123.partial"):
        (folder / name).write_text("mine")
    train(settings)
    written = {path.name for path in folder.iterdir() if path.suffix != ".partial"}
    left = {"a.1.partial", "movie.mkv.partial", "x.7z.partial", "7.partial"}
    assert {path.name for path in folder.glob("*.partial")} == left
    (folder / "resume.123.partial").write_text("of a killed process, perhaps")
    with pytest.raises(UserError, match=r"already holds run\.json"):
        train(settings)
    with pytest.raises(UserError, match="other settings"):
        train(replace(settings, seed=1, resume=True))
    assert (folder / "resume.123.partial").exists()
    for name in written | {"generation_config.json", "chat_template.jinja", "resume.safetensors"}:
        mine = tmp_path / f"with {name}" / name
        mine.parent.mkdir()
        mine.write_text("mine")
        for resume in (False, name == "samples.jsonl"):
            with pytest.raises(UserError, match=f"already holds {name}"):
                train(Settings(str(mine.parent), resume=resume))
        unlock(mine.parent / "run.lock")
        assert os.listdir(mine.parent) == [name] and mine.read_text() == "mine"
    train(replace(Settings(str(mine.parent), steps=1), overwrite=True))


def test_a_setting_that_an_old_run_did_not_know_counts_as_its_default(train, tmp_path):
    settings = Settings(str(tmp_path / "x"), steps=2)
    train(settings)
    description = read_run(tmp_path / "x")
    del description["settings"]["optimizer"]
    write_json(tmp_path / "x" / "run.json", description)
    assert train(replace(settings, resume=True)).finished
    with pytest.raises(UserError, match="--optimizer was adamw, now it is muon"):
        train(replace(settings, resume=True, optimizer="muon"))


def test_another_content_of_an_input_is_another_run(train, tmp_path, tokenizer):
    """Whatever it is called: a folder may be moved, a file copied."""
    data, init = tmp_path / "data.jsonl", tmp_path / "init"
    data.write_text("{}\n")
    tiny(tokenizer).save_pretrained(init)
    settings = Settings(str(tmp_path / "x"), init=str(init), data=f"{data},toyworld", steps=8)
    with pytest.raises(Killed):
        train(settings, kill_at(5))
    with data.open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match=r"what --data .*data.jsonl,toyworld holds has changed"):
        train(replace(settings, resume=True))
    data.rename(tmp_path / "longer.jsonl")
    data.write_text("{}\n")
    with pytest.raises(UserError, match=r"--data was .*data.jsonl,toyworld, now it is .*longer"):
        train(replace(settings, resume=True, data=f"{tmp_path}/longer.jsonl,toyworld"))
    init.rename(tmp_path / "kept")
    tiny(tokenizer, seed=1).save_pretrained(init)
    with pytest.raises(UserError, match=r"what --init .* holds has changed"):
        train(replace(settings, resume=True))
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    moved = Settings(str(tmp_path / "y"), init=str(tmp_path / "kept"), data=settings.data, steps=8)
    assert train(replace(moved, resume=True)).first_step == 4
    with pytest.raises(UserError, match="--init"):  # also a finished one is not taken for another
        train(replace(moved, resume=True, init=str(init)))


def test_a_tokenizer_that_was_trained_here_is_kept(tmp_path, monkeypatch):
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 280, "count": 40}
    settings = train_sft.Settings(out=str(tmp_path / "x"), steps=4, save_every=2, **small)
    tokenizers = []

    def stop(model, *_):
        tokenizers.append(model.tokenizer)
        if len(tokenizers) in (1, 4):
            raise Killed
        return add_gradient(model, *_)

    add_gradient = train_sft.add_gradient
    monkeypatch.setattr(train_sft, "add_gradient", stop)
    for _ in range(2):  # before the first checkpoint there is no tokenizer to keep
        with pytest.raises(Killed):
            train_sft.main(replace(settings, resume=True))
    monkeypatch.setattr(Tokenizer, "train", None)
    train_sft.main(replace(settings, resume=True))
    first, last = tokenizers[0], tokenizers[-1]
    assert first.vocab == last.vocab and first.encode("the fox and") == last.encode("the fox and")


def test_a_checkpoint_of_another_run_is_refused(train, tmp_path):
    for seed, name in ((0, "x"), (1, "y")):
        with pytest.raises(Killed):
            train(Settings(str(tmp_path / name), seed=seed), kill_at(6))
    for name in ("metrics.jsonl", "resume.safetensors"):
        shutil.copy(tmp_path / "y" / name, tmp_path / "x" / name)
    with pytest.raises(UserError, match="--seed was 1, now it is 0"):
        train(Settings(str(tmp_path / "x"), resume=True))
    with pytest.raises(UserError, match=r"the script was train_x.py"):
        Run(Settings(str(tmp_path / "y"), seed=1, resume=True), "train_y.py")


def test_a_fresh_model_that_an_earlier_version_computed_otherwise_is_not_trained_further(
    train, tmp_path
):
    settings = Settings(str(tmp_path / "x"), resume=True)
    with pytest.raises(Killed):
        train(settings, kill_at(6))
    path = tmp_path / "x" / "resume.safetensors"
    tensors, metadata = read_tensors(path)
    state = json.loads(metadata["state"])
    state["config"]["activation_function"] = "gelu"
    write_tensors(path, tensors, state=to_json(state))
    with pytest.raises(UserError, match=r"resume\.safetensors holds a fresh model of another"):
        train(settings)
    path.unlink()
    assert train(settings).first_step == 0


@pytest.mark.parametrize("harm", ["cut", "deleted", "damaged", "without run.json"])
def test_what_is_lost_of_the_logs_comes_back_from_the_checkpoint(harm, train, tmp_path):
    settings = Settings(str(tmp_path / "cut"), resume=True)
    train(replace(settings, out=str(tmp_path / "whole")))
    with pytest.raises(Killed):
        train(settings, kill_at(6))
    for name in ("metrics.jsonl", "samples.jsonl"):
        path = tmp_path / "cut" / name
        content = path.read_bytes()
        if harm == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "deleted":
            path.unlink()
        elif harm == "damaged":
            path.write_bytes(b"\xff{" + content)
    if harm == "without run.json":
        (tmp_path / "cut" / "run.json").unlink()
    assert train(settings).first_step == 4
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}', '{"seconds": "x"}', "[" * 9999])
def test_a_damaged_run_json_is_one_sentence(content, train, tmp_path):
    settings = Settings(str(tmp_path / "x"), steps=2)
    train(settings)
    (tmp_path / "x" / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        train(replace(settings, resume=True))
    train(replace(settings, overwrite=True))


def test_a_folder_with_a_comma_could_not_be_named_later(train, tmp_path):
    for out in ("", f"{tmp_path}/a,b"):
        with pytest.raises(UserError, match="--out"):
            train(Settings(out))


def test_fingerprints_tell_contents_apart(tmp_path, tokenizer):
    a, b = tmp_path / "a", tmp_path / "b"
    model = tiny(tokenizer)
    for folder in (a, b):
        model.save_pretrained(folder)
        (folder / "run.json").write_text(str(folder))
    same = fingerprint(str(a))
    assert same == fingerprint(str(b)) != fingerprint(f"{a},{b}")
    model.wte.weight.data[7, 7] += 1e-3
    model.save_pretrained(b)
    assert fingerprint(str(b)) != same
    tiny(tokenizer, layer_norm_epsilon=1e-6).save_pretrained(b)
    assert fingerprint(str(b)) != same

    (tmp_path / "mine.py").write_text("def reward(prompts, responses): return responses")
    function = fingerprint(f"{tmp_path}/mine.py:reward")
    assert function == fingerprint(f"{tmp_path}/mine.py:other")
    (tmp_path / "mine.py").write_text("def reward(prompts, responses): return prompts")
    assert fingerprint(f"{tmp_path}/mine.py:reward") != function
    names = ["toyworld", "toyworld.lessons", "http://localhost/v1", "person", "alpaca", "no.jsonl"]
    assert len({fingerprint(name) for name in names}) == 5  # a package is one
    assert fingerprint("toy") == fingerprint("toyworld")

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.jsonl").write_text("{}")
    folder, pattern = f"{tmp_path}/data", f"{tmp_path}/data/*.jsonl"
    before = fingerprint(folder)
    assert before == fingerprint(pattern) == fingerprint(f"{folder}/1.jsonl")
    (tmp_path / "data" / "2.jsonl").write_text("{}")
    assert fingerprint(folder) == fingerprint(pattern) != before


def test_a_fingerprint_of_large_weights_is_made_in_no_time(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(2**30)  # a file of zeros that takes no space
    began = time.perf_counter()
    before = content_digest(path)
    assert time.perf_counter() - began < 0.5
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"another checksum")
    assert content_digest(path) != before


def test_a_clock_that_stands_still_or_goes_back(stages, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", itertools.count(1e9, -1).__next__)
    monkeypatch.setattr("time.monotonic", lambda: 5.0)
    small = {"out": str(tmp_path / "x"), "init": str(stages / "sft"), "steps": 2, "max_tokens": 4}
    small |= {"log_every": 1, "overwrite": True}
    train_sft.main(train_sft.Settings(out=str(tmp_path / "x"), steps=2, **SMALL))
    data = str(stages / "rankings.jsonl")
    train_rm.main(train_rm.Settings(data=data, normalize_samples=8, **small))
    train_dpo.main(train_dpo.Settings(data=data, **small))
    train_ppo.main(train_ppo.Settings(reward=str(stages / "rm"), prompts_per_step=4, **small))
    assert read_run(tmp_path / "x")["seconds"] == 0


def test_a_damaged_checkpoint_is_never_taken_for_a_good_one(train, tmp_path):
    settings = Settings(str(tmp_path / "x"))
    with pytest.raises(Killed):
        train(settings, kill_at(6))
    path = tmp_path / "x" / "resume.safetensors"
    good = path.read_bytes()
    logs = (tmp_path / "x" / "metrics.jsonl").read_bytes()
    damaged = [good[:100], good[:-9], good.replace(b'"step\\": 4', b'"step\\": 5')]
    for place in torch.randint(len(good), (10,)).tolist():
        damaged.append(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    for content in damaged:
        assert content != good
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"resume\.safetensors"):
            train(replace(settings, resume=True))
    assert (tmp_path / "x" / "metrics.jsonl").read_bytes() == logs
    path.write_bytes(good)
    assert train(replace(settings, resume=True)).first_step == 4


# ---- what is printed and logged


def test_the_console_is_a_table_and_has_no_eta_at_first(train, tmp_path, capsys):
    run = Run(Settings(str(tmp_path / "x"), log_every=1), "train_x.py")
    run.total = 5
    show = ("loss", "words_per_second", "late", "absent")
    for step, value in enumerate((1.5, -12345.678, 1e-7, float("nan"))):
        run.log(step, show, loss=value, words_per_second=torch.tensor([1.0, 2.0]), n=3)
    run.log(4, show, loss=1, words_per_second=17433.2, late=0.5)
    *early, second_header, last = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert early[0] == ["step", "loss", "words/s", "left"]
    assert early[1] == ["0/5", "1.5", "1.5", "-"] and early[2][1] == "-12,346"
    assert len(early) == 5 and all(":" in line[-1] for line in early[2:])
    assert second_header == ["step", "loss", "words/s", "late", "left"]
    assert last[:4] == ["4/5", "1", "17,433", "0.5"]
    rows = read_jsonl(tmp_path / "x" / "metrics.jsonl")
    assert (
        rows[0] == {"step": 0, "loss": 1.5, "words_per_second": 1.5, "n": 3}
        and rows[3]["loss"] is None
    )


def test_samples_are_shown_and_kept(tmp_path, capsys):
    run = Run(Settings(str(tmp_path / "x")), "train_x.py")
    messages = [{"role": "user", "content": "Where is the fox?"}]
    run.samples(3, [{"prompt": messages, "response": "日本", "score": 0.5}], show=1)
    header, shown = capsys.readouterr().out.splitlines()
    assert header.split() == ["score", "request", "answer"]
    assert shown.split(maxsplit=1)[0] == "0.50" and "fox" in shown and shown.endswith("日本")
    run.samples(3, [{"prompt": "x " * 900, "response": "\x1b[2J\r\n" + "y" * 900}], show=1)
    assert max(map(len, (shown := capsys.readouterr().out).splitlines())) <= 100
    assert "\x1b" not in shown and "\r" not in shown
    row = read_jsonl(tmp_path / "x" / "samples.jsonl")[0]
    assert row == {"step": 3, "prompt": messages, "response": "日本", "score": 0.5}


def test_memory_is_spoken_of_from_a_gib_on(tokenizer, tmp_path, capsys):
    run = Run(Settings(str(tmp_path / "x")), "train_x.py")
    model = run.place(GPT(Config(tokenizer.vocab_size, 128, 64, 4, 4), tokenizer), trained=True)
    frozen = run.say_memory()
    size = sum(parameter.numel() for parameter in model.parameters())
    assert 16 * size / 2**30 < frozen < 1 and not capsys.readouterr().out
    assert run.say_memory(cached_tokens=10**6) > 1 and "--token_budget" in capsys.readouterr().out
    assert 0 < memory.peak(run.device) < 64


def test_seeds_depend_on_the_whole_key_alone(tmp_path):
    keys = [(0, "sample", 0), (0, "sample", 1), (1, "sample", 0), (0, "batch", 0)]
    assert len({seed_of(*key) for key in keys}) == 4
    assert seed_of(0, "sample", 0) == 6834760543676935646  # as ever
    run = Run(Settings(str(tmp_path / "x")), "train_x.py")
    numbers = [torch.rand(3, generator=run.generator("a", 1)).tolist() for _ in range(2)]
    assert numbers[0] == numbers[1]


# ---- device


def test_devices_and_precisions_have_names(monkeypatch):
    cpu = torch.device("cpu")
    assert device.pick_device("cpu") == cpu == device.pick_device(cpu)
    assert device.pick_autocast("auto", cpu) is device.pick_autocast("float32", cpu) is None
    assert device.pick_autocast("bfloat16", cpu) == torch.bfloat16
    for native, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda native=native: native)
        assert device.pick_autocast("auto", cpu, width=device.WIDE) == expected
        assert device.pick_autocast("auto", cpu, width=device.WIDE - 1) is None
        assert device.pick_autocast("float32", cpu, width=4096) is None
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("gpu", "cuda:1", "mps", "meta", "cpu:3", "", "auto:1"):
        with pytest.raises(UserError, match=f"--device {name}"):
            device.pick_device(name)
    with pytest.raises(UserError, match="--dtype half"):
        device.pick_autocast("half", cpu)


@pytest.mark.parametrize("cls", [GPT, ScalarGPT])
def test_a_frozen_model_in_bf16_gives_the_same_numbers(cls, tokenizer, tmp_path):
    made = tiny(tokenizer, cls)
    made.save_pretrained(tmp_path)
    frozen = device.open_model(cls, tmp_path, "cpu", "bfloat16")
    trained = device.place(made, torch.device("cpu"), torch.bfloat16, trained=True)
    tokens = torch.randint(tokenizer.vocab_size, (2, 30))
    assert torch.equal(trained.hidden(tokens), frozen.hidden(tokens))
    matrix = "c_fc.weight"
    assert {p.dtype for n, p in frozen.named_parameters() if matrix in n} == {torch.bfloat16}
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trained.parameters())


# ---- health


def test_a_healthy_step_has_no_warnings_and_a_sick_one_says_which():
    healthy = {"step": 30, "kl": 3.0, "approx_kl": 0.01, "clip_fraction": 0.1, "entropy": 1.0}
    healthy |= {"explained_variance": 0.5, "finished": 1.0, "distinct": 0.9, "score_std": 1.0}
    healthy |= {"length_correlation": float("nan"), "first_ratio_off": 0.0}
    assert health.warnings(healthy) == health.warnings({}) == health.warnings({"kl": None}) == []
    for metric, value in (("kl", 30), ("kl", -2), ("entropy", 0.01), ("score_std", 0.0)):
        (sentence,) = health.warnings(healthy | {metric: value})
        assert f"{value:.3g}" in sentence
    young = healthy | {"step": 2, "explained_variance": -3.0}
    assert not health.warnings(young) and len(health.warnings(young | {"step": 20})) == 1


@pytest.mark.parametrize("flag", ["log_every", "save_every", "token_budget"])
def test_what_a_run_cannot_do_without_is_checked_before_anything_is_deleted(tmp_path, flag):
    (tmp_path / "model.safetensors").write_text("precious")
    settings = train_sft.Settings(out=str(tmp_path), overwrite=True, **{flag: 0})
    with pytest.raises(UserError, match=f"--{flag}"):
        Run(settings, "train_sft.py")
    assert (tmp_path / "model.safetensors").read_text() == "precious"
