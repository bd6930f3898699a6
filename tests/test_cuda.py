"""What only a GPU does: on a CPU against stand-ins for minirlhf/cuda.py, on a GPU for real."""

import pytest
import torch
from conftest import tiny

import train_dpo
import train_ppo
import train_rm
import train_sft
from minirlhf import cuda, rollout
from minirlhf.files import read_jsonl
from minirlhf.rollout import sample

STAGES = {
    "sft": (train_sft, {"init": "sft", "data": "toyworld", "count": 100}),
    "sft compiled": (train_sft, {"init": "sft", "data": "toyworld", "count": 100, "compile": True}),
    "rm": (train_rm, {"init": "sft", "data": "rankings.jsonl", "normalize_samples": 8}),
    "dpo": (train_dpo, {"init": "sft", "data": "rankings.jsonl", "checkpointing": True}),
    "ppo": (train_ppo, {"init": "sft", "reward": "rm", "prompts_per_step": 8}),
    "grpo": (
        train_ppo,
        {
            "init": "sft",
            "reward": "rm",
            "advantage": "grpo",
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "lora_rank": 4,
        },
    ),
}


def draw(policy, prompts) -> list:
    generator = torch.Generator(policy.device).manual_seed(0)
    return sample(policy, prompts, 40, generator, samples_per_prompt=3).tokens.tolist()


def fail(step):
    raise RuntimeError("operation not permitted\nmore about it")


@pytest.fixture
def like_gpu(monkeypatch):
    """The CPU is treated as a GPU is: finished rows stay for a while, steps are captured."""
    monkeypatch.setattr(rollout, "CAPTURES", ("cpu",))
    monkeypatch.setattr(cuda, "STEPS_UNTIL_COUNT", 4)
    rollout.say_once.cache_clear()


def test_replayed_steps_sample_the_same_tokens(policy, prompts, monkeypatch, like_gpu, capsys):
    """A step that was "recorded" is run again. A capture that fails is said once."""
    rows = []

    def capture(step):
        output = step().clone()
        rows.append(len(output))
        return lambda: output.copy_(step()), output

    monkeypatch.setattr(cuda, "capture", capture)
    replayed = draw(policy, prompts)
    assert len(rows) > 1 and rows == sorted(rows, reverse=True)  # finished ones have left

    monkeypatch.setattr(cuda, "capture", fail)
    assert draw(policy, prompts) == replayed
    assert draw(policy, prompts) == replayed
    said = capsys.readouterr().out
    assert said.count("without CUDA graphs") == 1 and "more about it" not in said


def test_rows_that_stay_for_a_while_change_no_greedy_answer(policy, monkeypatch, request):
    prompts = [[5, 6, 7], [9] * 20, [40, 41], [8] * 11, [300, 2, 5, 1]]
    responses, _ = rollout.generate(policy, prompts, 12, torch.Generator(), temperature=0)
    monkeypatch.setattr(policy.tokenizer, "stop_ids", [responses[1][3]])  # rows end anywhere
    alone = [rollout.generate(policy, [x], 30, torch.Generator(), temperature=0) for x in prompts]
    request.getfixturevalue("like_gpu")
    monkeypatch.setattr(cuda, "capture", fail)
    together = rollout.generate(policy, prompts, 30, torch.Generator(), temperature=0)
    assert together == tuple([part[0] for part in parts] for parts in zip(*alone))


# ---- on a GPU


@pytest.mark.cuda
def test_a_captured_step_samples_the_same_tokens(policy, prompts, monkeypatch):
    policy.cuda()
    captured = draw(policy, prompts)
    monkeypatch.setattr(cuda, "capture", fail)
    assert draw(policy, prompts) == captured


@pytest.mark.cuda
def test_a_capture_that_fails_leaves_the_gpu_usable(policy, prompts, monkeypatch):
    policy.cuda()
    captured = draw(policy, prompts)
    step = rollout.Decoder._step

    def waits(self, tokens, at):
        int(at[0])  # no capture can hold a wait for the GPU
        return step(self, tokens, at)

    monkeypatch.setattr(rollout.Decoder, "_step", waits)
    assert draw(policy, prompts) == captured


@pytest.mark.cuda
def test_a_gpu_computes_what_a_cpu_does(tokenizer):
    tokens = torch.randint(tokenizer.vocab_size, (4, 40))
    cpu, gpu = tiny(tokenizer), tiny(tokenizer).cuda()
    assert torch.allclose(gpu(tokens.cuda()).cpu(), cpu(tokens), atol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_on_a_gpu(name, dtype, stages, tmp_path):
    """RL checks by itself that its first ratio is 1."""
    script, options = STAGES[name]
    for flag in ("init", "reward", "data"):
        if flag in options and (stages / options[flag]).exists():
            options = options | {flag: str(stages / options[flag])}
    settings = script.Settings(
        out=str(tmp_path / "run"), steps=3, device="cuda", dtype=dtype, **options
    )
    script.main(settings)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
