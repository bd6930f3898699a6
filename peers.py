"""The other libraries' side of bench.py: transformers samples, TRL trains, from the weights and rows that ours has; and the
clock and the measure of memory that both are put to.

A vocabulary of numbers stands in for text, so that lengths come out as asked in both: token i is the word "i", the last is EOS.
"""
import ctypes
import io
import json
import math
import os
import platform
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path

import torch

from minirlhf.tokenizer import Tokenizer

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Words(Tokenizer):
    """Ours, without files of its own: config.json says it all."""
    def __init__(self, size: int):
        self.vocab, self.eos_id, self.vocab_size = {str(i): i for i in range(size)}, size - 1, size

    @classmethod
    def from_pretrained(cls, folder):
        return cls(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["vocab_size"])

    def save_pretrained(self, folder):
        pass

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def theirs(size: int):
    """The same words for transformers."""
    import tokenizers
    import transformers
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(size)}, unk_token="0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(size - 1), pad_token=str(size - 1),
                                                padding_side="left")


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function, repeats: int = 3) -> list[float]:
    """Of each call but the first."""
    return [b - a for a, b in pairwise([(function(), now())[1] for _ in range(repeats + 1)])]


def with_memory(function):
    """(result, MiB by which it raised the peak): of the GPU, or of the process where Linux tells."""
    def status(key: str) -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().split("\n") if line.startswith(key))

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return function(), (torch.cuda.max_memory_allocated() - before) / 2**20
    if platform.system() != "Linux":
        return function(), math.nan
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")                      # the peak starts anew
    before = status("VmRSS")
    return function(), (status("VmHWM") - before) / 2**10


def load() -> bool:
    """Whether they are installed; imports them, so that no row's memory counts that."""
    try:
        import trl
        from trl.experimental import ppo
    except ImportError:
        return False
    trainers = [getattr(trl, f"{kind}Trainer") for kind in ("SFT", "Reward", "DPO", "GRPO", "RLOO")]
    return all([*trainers, ppo.PPOTrainer])


def generate(folder: str, prompts: list[list[int]], device: torch.device, dtype: torch.dtype, **options) -> list[float]:
    """transformers' generate: seconds of its calls but the first."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    net = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).to(device)
    x = torch.tensor(prompts, device=device)
    return seconds(lambda: net.generate(x, attention_mask=torch.ones_like(x), do_sample=True, top_k=0,
                                        pad_token_id=net.config.eos_token_id, **options))


def train(kind: str, lm: str, reward, rows: list[dict], steps: int, batch: int, **options) -> tuple[list[float], list[dict]]:
    """A TRL trainer -> seconds of its steps but the first, and its log. kind: SFT, Reward, DPO, GRPO, RLOO, PPO; reward: a
    reward model's folder, or, of GRPO and RLOO, a function."""
    import transformers
    import trl
    from datasets import Dataset
    from trl.experimental import ppo

    stamps, log = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            stamps.append(now())

        def on_log(self, args, state, control, logs=None, **kwargs):
            log.append(logs)

    def net(folder=lm, cls=transformers.AutoModelForCausalLM):
        return cls.from_pretrained(folder, dtype=torch.float32)

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gpu, scalar = torch.cuda.is_available(), transformers.AutoModelForSequenceClassification
    tokenizer = theirs(net().config.vocab_size)
    eos = tokenizer.eos_token
    data = Dataset.from_list([{k: v if k == "prompt" else f"{v} {eos}" for k, v in row.items()} for row in rows])
    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), \
            warnings.catch_warnings(action="ignore"):
        options |= {"output_dir": out, "per_device_train_batch_size": batch, "report_to": "none", "save_strategy": "no",
                    "bf16": gpu, "use_cpu": not gpu, "gradient_checkpointing": False, "optim": "adamw_torch_fused",
                    "disable_tqdm": True, "lr_scheduler_type": "constant", "logging_steps": 1}
        if kind == "PPO":
            data = data.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=["prompt"])
            args = ppo.PPOConfig(**options, total_episodes=batch * steps, num_sample_generations=0, num_mini_batches=1,
                                 local_rollout_forward_batch_size=batch, stop_token_id=tokenizer.eos_token_id)
            trainer = ppo.PPOTrainer(args, tokenizer, net(), net(), net(reward, scalar), data, net(reward, scalar),
                                     callbacks=[Clock()])
        else:
            more = {"GRPO": {"reward_funcs": reward}, "RLOO": {"reward_funcs": reward}, "DPO": {"ref_model": net()}}.get(kind, {})
            trainer = getattr(trl, kind + "Trainer")(
                model=net(reward, scalar) if kind == "Reward" else net(), train_dataset=data, processing_class=tokenizer,
                args=getattr(trl, kind + "Config")(**options, max_steps=steps), callbacks=[Clock()], **more)
        trainer.train()
    return [b - a for a, b in pairwise(stamps)], log
