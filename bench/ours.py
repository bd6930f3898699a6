"""Our side: for each kind of row a function that returns the seconds of its steps.

The scripts run whole; their log has the times.
"""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import ModuleType

import torch

import train_dpo
import train_ppo
import train_rm
import train_sft
from bench import shapes
from bench.measure import STEPS, seconds
from bench.shapes import Task
from minirlhf import rollout
from minirlhf.data import Prompt
from minirlhf.device import open_model
from minirlhf.files import read_jsonl, write_jsonl
from minirlhf.model import GPT
from minirlhf.rollout import Rollout


def train(task: Task, script: ModuleType, records: list[dict], **settings) -> list[float]:
    """Run a script -> seconds of each step. The first warms up, the last also validates."""
    data = task.folder / "data.jsonl"
    write_jsonl(data, records)
    out = task.folder / "run"
    row = task.row
    longest = row.prompt_tokens + row.response_tokens
    settings = script.Settings(
        init=str(task.folder / "lm"),
        data=str(data),
        out=str(out),
        overwrite=True,
        steps=STEPS + 2,
        lr=0.0,  # a policy that learns would change its responses' lengths
        template="raw",
        token_budget=max(4096, row.prompts * row.samples * longest),
        device=task.device,
        dtype=task.dtype,
        **settings,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        script.main(settings)
    times = []
    for metrics in read_jsonl(out / "metrics.jsonl")[1:-1]:
        parts = [value for name, value in metrics.items() if name.startswith("seconds")]
        times.append(sum(parts) or row.tokens() / metrics["tokens_per_second"])
    return times


def sample(task: Task) -> list[float]:
    model = open_model(GPT, task.folder / "lm", task.device, task.dtype)
    prompts = [model.tokenizer.encode(prompt) for prompt, _ in task.inputs()]
    generator = torch.Generator(model.device)
    limit, samples = task.row.response_tokens, task.row.samples

    def step():
        rollout.generate(model, prompts, limit, generator, samples_per_prompt=samples)

    return seconds(step)


def score(task: Task) -> list[float]:
    model = open_model(GPT, task.folder / "lm", task.device, task.dtype)
    prompts, responses = [], []
    for prompt, (response,) in task.inputs():
        prompts.append(Prompt.of(prompt, "raw"))
        responses.append(response)
    batch = Rollout.of(model.tokenizer, prompts, responses, model.device)
    return seconds(lambda: rollout.in_micro_batches(rollout.logprobs, model, batch))


def sft(task: Task) -> list[float]:
    settings = {"batch_size": task.row.prompts, "validation": 0.0}
    return train(task, train_sft, task.demonstrations(), **settings)


def rankings(task: Task) -> list[dict]:
    ranks = list(range(1, task.row.samples + 1))
    records = []
    for prompt, responses in task.inputs():
        records.append({"prompt": prompt, "responses": responses, "ranks": ranks})
    return records


def reward(task: Task) -> list[float]:
    settings = {"batch_size": task.row.prompts, "validation": 0.0, "normalize_samples": 0}
    return train(task, train_rm, rankings(task), **settings)


def dpo(task: Task) -> list[float]:
    settings = {"batch_size": task.row.prompts, "validation": 0.0, "temperature": 1.0}
    return train(task, train_dpo, rankings(task), **settings)


def grpo(task: Task) -> list[float]:
    return reinforcement(task, advantage="grpo", reward=f"{shapes.__file__}:count_a")


def rloo(task: Task) -> list[float]:
    return reinforcement(task, advantage="rloo", reward=f"{shapes.__file__}:count_a")


def ppo(task: Task) -> list[float]:
    return reinforcement(task, advantage="gae", reward=str(task.folder / "rm"), epochs=4)


def reinforcement(task: Task, **settings) -> list[float]:
    return train(
        task,
        train_ppo,
        task.prompts(),
        prompts_per_step=task.row.prompts,
        samples_per_prompt=task.row.samples,
        max_tokens=task.row.response_tokens,
        minibatches=1,
        temperature=1.0,
        stop_update_kl=1e9,
        **settings,
    )
