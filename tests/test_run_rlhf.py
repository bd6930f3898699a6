"""run_rlhf.py: which stages run, which are done, and what is no longer the same loop."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import label
import sample
import train_rm
import train_sft
from minirlhf import UserError, report
from minirlhf.files import read_json, read_jsonl, write_json, write_jsonl
from run_rlhf import Loop, Settings, main, split_pairs

ROOT = Path(__file__).parents[1]


@dataclass
class StageSettings:
    data: str
    out: str
    steps: int = 3
    device: str = "auto"


@pytest.fixture
def work(tmp_path):
    """work(folder, steps): a loop of two stages, of which the second reads what the first wrote;
    returns the names of those that ran."""

    def call(folder: Path, steps: int = 3, **settings) -> list[str]:
        ran = []

        def write(stage):
            ran.append(Path(stage.out).name)
            Path(stage.out).write_text(Path(stage.data).read_text() + f"{stage.steps}\n")

        script = SimpleNamespace(__name__="script", main=write)
        device = settings.get("device", "auto")
        loop = Loop(Settings(out=str(folder), **settings))
        loop.stage_count = 2
        data = str(tmp_path / "data.jsonl")
        for name in ("first.jsonl", "second.jsonl"):
            out = str(folder / name)
            loop.stage(name, script, StageSettings(data, out, steps, device))
            data = out
        return ran

    (tmp_path / "data.jsonl").write_text("{}\n")
    return call


def test_what_is_done_is_not_done_again_in_a_copied_folder_either(work, tmp_path, capsys):
    assert work(tmp_path / "x") == ["first.jsonl", "second.jsonl"]
    assert "\n== 2/2 second.jsonl\n$ python script.py" in capsys.readouterr().out
    assert work(tmp_path / "x", device="cpu", rounds=3) == []
    assert "\n== 2/2 second.jsonl: done before\n" in capsys.readouterr().out
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    assert work(tmp_path / "y") == []
    (tmp_path / "y" / "first.jsonl").write_text("{}\n")
    assert work(tmp_path / "y") == ["second.jsonl"]
    (tmp_path / "data.jsonl").write_text("{} \n")
    assert work(tmp_path / "x") == ["first.jsonl", "second.jsonl"]
    assert work(tmp_path / "x", steps=4) == ["first.jsonl", "second.jsonl"]


def test_another_loop_is_refused_with_what_is_new(work, tmp_path):
    work(tmp_path / "x")
    part = tmp_path / "x" / "loop.json.1.partial"
    part.write_text("of a process that was killed")
    with pytest.raises(UserError, match=r"--kl_coef was -1\.0, now it is 0\.5"):
        work(tmp_path / "x", kl_coef=0.5)
    assert part.exists()
    state = read_json(tmp_path / "x" / "loop.json")
    del state["settings"]["kl_coef"]  # as if an earlier version had not had this setting
    write_json(tmp_path / "x" / "loop.json", state)
    with pytest.raises(UserError, match=r"--kl_coef was -1\.0, now it is 0\.5"):
        work(tmp_path / "x", kl_coef=0.5)
    assert work(tmp_path / "x") == [] and not part.exists()
    with pytest.raises(UserError, match="comma"):
        work(tmp_path / "x,y")


DAMAGED = (
    "",
    '{"stages": [',
    '{"stages": 3}',
    '{"stages": {"sft": 3}}',
    '{"stages": {"sft": {"seconds": "x"}}}',
    '{"stages": {"sft": {"inputs": 0}}}',
    '{"settings": []}',
    "[" * 9999,
)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_loop_json_is_one_sentence(content, work, tmp_path):
    work(tmp_path / "x")
    (tmp_path / "x" / "loop.json").write_text(content)
    with pytest.raises(UserError, match=r"loop\.json is damaged"):
        work(tmp_path / "x")
    with pytest.raises(UserError, match=r"loop\.json is damaged"):
        report.write(tmp_path / "x")


@pytest.mark.parametrize(
    "name, content",
    [
        ("evaluation.json", '{"results": ['),
        ("evaluation.json", '{"results": {}}'),
        ("evaluation.json", '{"results": [3]}'),
        ("evaluation.json", '{"results": [{"policy": "x", "win_rate": 1}]}'),
        ("sft/metrics.jsonl", '{"step": 0}\nNone\n{"step": 2}\n'),
        ("round1/rm/run.json", "null"),
    ],
)
def test_a_damaged_file_in_a_report_is_one_sentence(name, content, tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "round1" / "rm").mkdir(parents=True)
    (tmp_path / "round1" / "rm" / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    report.write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        report.write(tmp_path)


def test_a_loop_that_is_interrupted_says_so_in_its_report(tmp_path, monkeypatch):
    def interrupt(settings):
        report.write(tmp_path, running=True, go_on="x")
        raise KeyboardInterrupt

    monkeypatch.setattr(train_sft, "main", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(Settings(out=str(tmp_path), quick=True))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "was interrupted" in page and "refresh" not in page
    assert f"python run_rlhf.py --out {tmp_path} --quick" in page


def test_two_loops_do_not_share_a_folder(work, tmp_path):
    work(tmp_path / "x")
    command = [sys.executable, "run_rlhf.py", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "is being written by process" in done.stderr


def test_a_negative_kl_coefficient_is_an_error_and_not_the_presets(tmp_path):
    with pytest.raises(UserError, match=r"--kl_coef -0\.5: must be 0 or more"):
        main(Settings(out=str(tmp_path / "x"), kl_coef=-0.5))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"init": "some/model"}, "--init is for --preset real; this is toy"),
        ({"preset": "real", "rankings": 5}, "--rankings is for --preset toy; this is real"),
        ({"preset": "real", "annotator": "ai"}, "--annotator is for --preset toy; this is real"),
    ],
)
def test_flags_that_a_preset_does_not_use_are_refused(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        main(Settings(out=str(tmp_path / "x"), **settings))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"samples": 1}, "--samples 1: must be 2 or more"),
        ({"noise": "low"}, "--noise low: write numbers"),
        ({"bias": "beauty=1"}, "--bias beauty: the features are length"),
    ],
)
def test_what_no_annotator_can_do_is_an_error_before_anything_is_trained(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        main(Settings(out=str(tmp_path / "x"), **settings))
    assert not (tmp_path / "x").exists()


def test_a_quick_loop_draws_as_many_prompts_as_it_is_told(tmp_path, monkeypatch):
    counts = []

    def note(settings):
        counts.append(settings.count)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_sft, "main", lambda settings: None)
    monkeypatch.setattr(sample, "main", note)
    for name, flags in (("x", {}), ("y", {"rankings": 7})):
        with pytest.raises(KeyboardInterrupt):
            main(Settings(out=str(tmp_path / name), quick=True, **flags))
    assert counts == [60, 7]


def test_a_person_who_finishes_for_now_ends_the_loop_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys
):
    def answer(count: int):
        def in_the_browser(sitting, *_):
            for _ in range(count):
                sitting.answer(sitting.question()["question"], [1, 2])

        monkeypatch.setattr(label, "serve_page", in_the_browser)
        with pytest.raises(KeyboardInterrupt):
            main(Settings(out=str(tmp_path), annotator="person"))

    def stop(settings):
        trained.append(settings.data)
        raise KeyboardInterrupt

    def write_candidates(settings):
        Path(settings.candidates_out).parent.mkdir()
        write_jsonl(Path(settings.candidates_out), rows)

    trained = []
    rows = [{"id": i, "prompt": f"{i}?", "responses": ["yes", "no"]} for i in range(3)]
    monkeypatch.setattr(train_sft, "main", lambda settings: None)
    monkeypatch.setattr(sample, "main", write_candidates)
    monkeypatch.setattr(train_rm, "main", stop)
    answer(2)
    assert not trained and "questions left: 1;" in capsys.readouterr().out
    assert "interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")
    answer(1)
    assert "done before" in capsys.readouterr().out and len(trained) == 1
    assert len(read_jsonl(tmp_path / "round1" / "rankings.jsonl")) == 3


def write_pairs(path: Path, count: int) -> None:
    """Pairs with one system text and different requests."""
    rows = []
    for number in range(count):
        system = {"role": "system", "content": "Be brief."}
        request = {"role": "user", "content": f"What is {number}?"}
        rows.append({"prompt": [system, request], "chosen": "A number.", "rejected": "No."})
    write_jsonl(path, rows)


def test_pairs_with_one_system_text_are_split_by_their_requests(tmp_path):
    write_pairs(tmp_path / "data.jsonl", 20)
    settings = Settings(preset="real", data=str(tmp_path / "data.jsonl"), out=str(tmp_path))
    split_pairs(settings, tokenizer=None)
    parts = [read_jsonl(tmp_path / f"{name}.jsonl") for name in ("pairs", "judge", "questions")]
    assert all(parts) and sum(map(len, parts)) == 20


def test_data_of_the_users_own_are_never_replaced(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 20)
    before = path.read_bytes()
    settings = Settings(preset="real", data=str(path), out=str(tmp_path), init="no-model")
    for _ in range(2):
        with pytest.raises(UserError, match="is read as --data and would be replaced"):
            main(settings)
        write_json(tmp_path / "loop.json", {"stages": {}})  # not even where a loop was begun
    (tmp_path / "loop.json").unlink()
    write_pairs(tmp_path / "data.jsonl", 20)
    with pytest.raises(UserError, match="exists and would be replaced"):
        main(replace(settings, data=str(tmp_path / "data.jsonl")))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["evaluation.json", "report.html", "report.json"])
def test_results_that_no_loop_has_written_are_never_replaced(tmp_path, name):
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(UserError, match="exists and would be replaced"):
        main(Settings(quick=True, out=str(tmp_path)))
    assert path.read_text() == "mine" and not (tmp_path / "loop.json").exists()


def test_too_few_requests_to_split_are_an_error_before_anything_is_trained(tmp_path):
    write_pairs(tmp_path / "data.jsonl", 2)
    settings = Settings(preset="real", data=str(tmp_path / "data.jsonl"), out=str(tmp_path))
    with pytest.raises(UserError, match="fewer than 3 different first requests"):
        split_pairs(settings, tokenizer=None)
    assert not (tmp_path / "pairs.jsonl").exists()
