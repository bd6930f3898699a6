"""The benchmark's rows compute what they say, at a tiny size, on our side."""

import json
from dataclasses import replace

import pytest
import torch

from bench import gpu_check, growth, ours, run, shapes
from bench.shapes import Row, Task, make_models
from minirlhf import UserError
from minirlhf.model import GPT, Config

CONFIG = Config(vocab_size=400, n_positions=64, n_embd=16, n_layer=1, n_head=2)
LLAMA = replace(CONFIG, model_type="llama", n_kv_head=1)
ROWS = [
    Row("sample", "sample", "tokens", 2, 6, 4, samples=2, eos_rate=0.4),
    Row("score", "score", "tokens", 3, 5, 4),
    Row("sft", "sft", "tokens", 2, 1, 63),
    Row("reward", "reward", "pairs", 2, 5, 4, samples=3),
    Row("dpo", "dpo", "pairs", 2, 5, 4, samples=2),
    Row("grpo", "grpo", "episodes", 2, 5, 4, samples=2),
    Row("rloo", "rloo", "episodes", 2, 5, 4, samples=2),
    Row("ppo", "ppo", "episodes", 3, 5, 4, eos_rate=0.4),
]


@pytest.fixture
def small_table(monkeypatch):
    monkeypatch.setitem(shapes.PRESETS, "tiny", CONFIG)
    monkeypatch.setattr(run, "rows", lambda config: ROWS)
    monkeypatch.setattr(run, "ceilings", lambda *which: {"flops": 1e12, "copy": 1e10})


def test_texts_have_as_many_tokens_as_asked(tmp_path):
    row = Row("sft", "sft", "tokens", 8, 20, 36, ragged=True)
    make_models(tmp_path, CONFIG, eos_rate=0.0)
    tokenizer = GPT.from_pretrained(tmp_path / "lm").tokenizer
    assert tokenizer.vocab_size == CONFIG.vocab_size
    inputs = Task(row, CONFIG, "cpu", "float32", tmp_path).inputs()
    for (prompt, responses), lengths in zip(inputs, row.lengths(), strict=True):
        assert len(tokenizer.encode(prompt)) == lengths[0]
        assert [len(tokenizer.encode(text)) + 1 for text in responses] == [lengths[1]]


@pytest.mark.parametrize("config", [CONFIG, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_runs(row, config, tmp_path):
    make_models(tmp_path, config, row.eos_rate)
    seconds = getattr(ours, row.kind)(Task(row, config, "cpu", "float32", tmp_path))
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert row.units() > 0
    assert row.flops(config) > 0


def test_ragged_batches_have_other_sizes_at_every_step(tmp_path):
    row = Row("sft", "sft", "tokens", 8, 20, 36, ragged=True)
    records = Task(row, CONFIG, "cpu", "float32", tmp_path).demonstrations()
    assert len(records) == 8 * shapes.RAGGED_BATCHES
    lengths = [len(record["completion"].split()) for record in records]
    assert lengths[:8] != lengths[8:16]


def test_the_least_work_of_a_block_is_that_of_its_matrices():
    for config in shapes.PRESETS.values():
        with torch.device("meta"):
            model = GPT(config)
        matrices = sum(p.numel() for p in model.h.parameters() if p.dim() == 2)
        attention = 2 * 10**2 * config.n_head * config.head_width * config.n_layer
        assert shapes.block_flops(config, 10) == 2 * 10 * matrices + attention


def test_the_table_is_printed_and_written(small_table, tmp_path, capsys):
    out = tmp_path / "results" / "bench.json"
    run.main(run.Settings(preset="tiny", only="score", turns=1, peers=False, out=str(out)))
    assert "score" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["rows"]] == ["score"]
    assert report["rows"][0]["ours"] > 0
    assert 0 < report["rows"][0]["of_ceiling"] < 1


def test_the_check_of_a_gpu_runs_where_there_is_none(small_table, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "RESPONSE", 4)
    monkeypatch.setattr(gpu_check, "TIMED", "score,dpo")
    settings = {"preset": "tiny", "device": "cpu", "dtype": "float32", "out": str(tmp_path)}
    gpu_check.main(gpu_check.Settings(tests=False, loop=False, **settings))
    table = capsys.readouterr().out.rpartition("|---|")[2]
    assert "bandwidth" in table and "estimated" in table and "pairs/s" in table


def test_growth_is_measured_and_drawn(monkeypatch, tmp_path):
    for name, value in {"LENGTHS": (12,), "BATCHES": (1, 2), "WIDTHS": (32,), "AT_ONCE": 4}.items():
        monkeypatch.setattr(growth, name, value)
    monkeypatch.setattr(growth, "measure", lambda function, *arguments: function(*arguments))
    growth.main(growth.Settings(out=str(tmp_path)))
    results = json.loads((tmp_path / "growth.json").read_text())
    assert [rows for rows, _ in results["training by batch"]] == [1, 2]
    assert results["sampling by length"][0][1] > 0 and results["memory"][0][1] > 0
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_row_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"--only grop: no row's name begins so; .*grpo fixed"):
        run.chosen_rows(shapes.PRESETS["tiny"], "sft,grop")
    names = [row.name for row in run.chosen_rows(shapes.PRESETS["tiny"], "sft,dpo")]
    assert names == ["sft full", "sft ragged", "dpo"]
