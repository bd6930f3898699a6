"""The other libraries' side: transformers samples and TRL trains, from our weights and texts.

For each kind of row that they have, a function that returns the seconds of its steps.
"""

import io
import os
import warnings
from contextlib import redirect_stderr, redirect_stdout
from itertools import combinations, pairwise

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
import trl
from datasets import Dataset
from trl.experimental import ppo as trl_ppo

from bench.measure import STEPS, now, seconds
from bench.shapes import Task, count_a

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.simplefilter("ignore")

# --- models and data


def language_model(task: Task) -> transformers.PreTrainedModel:
    cls = transformers.AutoModelForCausalLM
    return cls.from_pretrained(task.folder / "lm", dtype=torch.float32)


def scalar_model(task: Task) -> transformers.PreTrainedModel:
    cls = transformers.AutoModelForSequenceClassification
    return cls.from_pretrained(task.folder / "rm", dtype=torch.float32)


def load_tokenizer(task: Task) -> transformers.PreTrainedTokenizerBase:
    """The reward model's, which names a padding token. Else it is the language model's."""
    return transformers.AutoTokenizer.from_pretrained(task.folder / "rm")


def pairs(task: Task) -> list[dict]:
    """Every pair of a prompt's responses, the earlier one chosen. TRL adds EOS."""
    records = []
    for prompt, responses in task.inputs():
        for chosen, rejected in combinations(responses, 2):
            records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return records


# --- training


class Clock(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(now())


def train(trainer_class: type, args, model, records: list[dict], task: Task, **others):
    """Seconds of each step of a trainer but the first, which warms up."""
    clock = Clock()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer = trainer_class(
            args=args,
            model=model,
            train_dataset=Dataset.from_list(records * (STEPS + 1)),
            processing_class=load_tokenizer(task),
            callbacks=[clock],
            **others,
        )
        trainer.train()
    return [end - start for start, end in pairwise(clock.ends)]


def options(task: Task, batch_size: int) -> dict:
    """Settings that all of TRL's trainers share."""
    return {
        "output_dir": str(task.folder / "trainer"),
        "per_device_train_batch_size": batch_size,
        "max_steps": STEPS + 1,
        "learning_rate": 0.0,
        "bf16": task.dtype == "bfloat16",
        "use_cpu": task.device == "cpu",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
    }


# --- the rows


def sample(task: Task) -> list[float]:
    model = language_model(task).to(task.device, getattr(torch, task.dtype))
    texts = [prompt for prompt, _ in task.inputs()]
    tokens = load_tokenizer(task)(texts, return_tensors="pt").input_ids.to(task.device)  # (P, T)

    def step():
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            top_k=0,
            pad_token_id=model.config.eos_token_id,
            max_new_tokens=task.row.response_tokens,
            num_return_sequences=task.row.samples,
        )

    return seconds(step)


def sft(task: Task) -> list[float]:
    records = task.demonstrations()
    args = trl.SFTConfig(**options(task, task.row.prompts), max_length=task.config.n_positions)
    return train(trl.SFTTrainer, args, language_model(task), records, task)


def reward(task: Task) -> list[float]:
    records = pairs(task)
    args = trl.RewardConfig(**options(task, len(records)))
    return train(trl.RewardTrainer, args, scalar_model(task), records, task)


def dpo(task: Task) -> list[float]:
    records = pairs(task)
    args = trl.DPOConfig(**options(task, len(records)), precompute_ref_log_probs=True)
    reference = language_model(task)
    return train(trl.DPOTrainer, args, language_model(task), records, task, ref_model=reference)


def grpo(task: Task) -> list[float]:
    return group_method(task, trl.GRPOTrainer, trl.GRPOConfig)


def rloo(task: Task) -> list[float]:
    return group_method(task, trl.RLOOTrainer, trl.RLOOConfig)


def group_method(task: Task, trainer_class: type, config_class: type) -> list[float]:
    args = config_class(
        **options(task, task.row.prompts * task.row.samples),
        num_generations=task.row.samples,
        max_completion_length=task.row.response_tokens,
        temperature=1.0,
        top_k=0,
        beta=0.05,
    )
    model = language_model(task)
    return train(trainer_class, args, model, task.prompts(), task, reward_funcs=count_a)


def ppo(task: Task) -> list[float]:
    args = trl_ppo.PPOConfig(
        **options(task, task.row.prompts),
        total_episodes=task.row.prompts * (STEPS + 1),
        num_sample_generations=0,
        num_mini_batches=1,
        num_ppo_epochs=4,
        local_rollout_forward_batch_size=task.row.prompts,
        response_length=task.row.response_tokens,
        stop_token="eos",
        temperature=1.0,
    )
    tokenizer = load_tokenizer(task)
    records = [tokenizer(prompt) for prompt, _ in task.inputs()]
    models = {
        "ref_model": language_model(task),
        "reward_model": scalar_model(task),
        "value_model": scalar_model(task),
    }
    return train(trl_ppo.PPOTrainer, args, language_model(task), records, task, **models)
