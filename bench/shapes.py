"""The table's rows: what each computes, and the weights and texts that both sides share."""

import math
import random
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import torch

from minirlhf.bpe import SYMBOLS
from minirlhf.model import GPT, Config, ScalarGPT
from minirlhf.tokenizer import Tokenizer
from minirlhf.tokenizer_files import EOS, Spec

PRESETS = {
    "tiny": Config(2048, 256, n_embd=128, n_layer=4, n_head=2, activation_function="gelu"),
    "small": Config(4096, 256, n_embd=256, n_layer=4, n_head=4),
    "gpt2": Config(),
    "smollm2": Config(
        model_type="llama",  # SmolLM2-135M's numbers
        vocab_size=49152,
        n_positions=512,
        n_embd=576,
        n_layer=30,
        n_head=9,
        n_kv_head=3,
        n_inner=1536,
        rope_theta=100000.0,
    ),
}
RAGGED_BATCHES = 10
SPACE = "Ġ"  # GPT-2's name for it

# Forward passes of a step that no implementation can avoid: through language models, and through
# scalar models. A backward pass counts as two. PPO samples, asks the reference and makes four
# epochs; its reward model scores, and its value model makes four epochs.
PASSES = {
    "sample": (1, 0),
    "score": (1, 0),
    "sft": (3, 0),
    "reward": (0, 3),
    "dpo": (3, 0),
    "grpo": (5, 0),
    "rloo": (5, 0),
    "ppo": (14, 13),
}


@dataclass(frozen=True)
class Row:
    """A row of the table: what one step computes. A response's EOS counts among its tokens."""

    name: str
    kind: str  # the function in ours.py and peers.py
    unit: str  # "tokens" are the responses'
    prompts: int
    prompt_tokens: int
    response_tokens: int  # if sampled, the limit
    samples: int = 1  # responses to each prompt
    eos_rate: float = 0.0  # chance that a sampled token is EOS
    ragged: bool = False  # lengths vary about the two above, and from batch to batch

    def lengths(self, batch: int = 0) -> list[tuple[int, int]]:
        """Tokens of each prompt and, on average if they are sampled, of each of its responses."""
        response = self.response_tokens
        if self.eos_rate:
            response = round((1 - (1 - self.eos_rate) ** response) / self.eos_rate)
        if not self.ragged:
            return [(self.prompt_tokens, response)] * self.prompts
        dice = random.Random(batch)
        lengths = []
        for _ in range(self.prompts):
            prompt = self.prompt_tokens * dice.lognormvariate(0, 0.8)
            response = self.response_tokens * dice.lognormvariate(0, 0.9)
            lengths.append((min(120, 3 + int(prompt)), min(130, 3 + int(response))))
        return lengths

    def tokens(self) -> int:
        """All that a step reads, a prompt once for its responses."""
        return sum(prompt + self.samples * response for prompt, response in self.lengths())

    def units(self) -> int:
        """How much a step does, in the row's unit."""
        if self.unit == "pairs":
            return self.prompts * math.comb(self.samples, 2)
        if self.unit == "episodes":
            return self.prompts * self.samples
        return self.samples * sum(response for _, response in self.lengths())

    def flops(self, config: Config) -> int:
        """The least that a step takes: linear layers, causal attention, the head."""
        language_passes, scalar_passes = PASSES[self.kind]
        total = 0
        for prompt, response in self.lengths():
            shared = block_flops(config, prompt)  # once for all responses
            one_response = block_flops(config, prompt + response) - shared
            blocks = shared + self.samples * one_response
            head = 2 * self.samples * response * config.vocab_size * config.n_embd
            total += language_passes * (blocks + head) + scalar_passes * blocks
        return total


def block_flops(config: Config, tokens: int) -> int:
    """Of all blocks, for one row."""
    width, inner = config.n_embd, config.inner
    attended = config.n_head * config.head_width
    weights = width * (2 * attended + 2 * config.kv_heads * config.head_width)
    weights += width * inner * (2 if config.model_type == "gpt2" else 3)
    return config.n_layer * (2 * tokens * weights + 2 * tokens**2 * attended)


def rows(config: Config) -> list[Row]:
    """The table's rows. GPT-2's context gets longer inputs, SmolLM2 a quarter of the prompts."""
    full, prompt, response = (255, 16, 32) if config.n_positions < 1024 else (1023, 128, 128)
    table = [
        Row("sample fixed", "sample", "tokens", 64, 32, 64),
        Row("sample varied", "sample", "tokens", 64, 32, 64, eos_rate=1.6 / 64),
        Row("sample 4 a prompt", "sample", "tokens", 16, 128, 32, samples=4),
        Row("score", "score", "tokens", 64, 32, 32),
        Row("sft full", "sft", "tokens", 16, 1, full),
        Row("sft ragged", "sft", "tokens", 64, 20, 36, ragged=True),
        Row("reward pairs", "reward", "pairs", 16, 64, 64, samples=2),
        Row("reward rankings of 6", "reward", "pairs", 2, 64, 64, samples=6),
        Row("dpo", "dpo", "pairs", 16, 64, 64, samples=2),
    ]
    for name, eos_rate in (("fixed", 0.0), ("varied", 1.6 / response)):
        table += [
            Row(f"grpo {name}", "grpo", "episodes", 16, prompt, response, 4, eos_rate),
            Row(f"rloo {name}", "rloo", "episodes", 16, prompt, response, 4, eos_rate),
            Row(f"ppo {name}", "ppo", "episodes", 64, prompt, response, 1, eos_rate),
        ]
    if config.model_type == "gpt2":
        return table
    return [replace(row, prompts=max(1, row.prompts // 4)) for row in table if not row.eos_rate]


@dataclass(frozen=True)
class Task:
    """A row on a model and a device. The models are in folder/lm and folder/rm."""

    row: Row
    config: Config
    device: str
    dtype: str  # float32 or bfloat16, on both sides
    folder: Path

    def inputs(self, batch: int = 0) -> list[tuple[str, list[str]]]:
        """Prompts with their responses, of random words that are a token each."""
        dice = random.Random(batch)
        words = make_words(self.config.vocab_size)

        def text(length: int) -> str:
            return "".join(dice.choices(words, k=length)).replace(SPACE, " ")

        inputs = []
        for prompt_length, response_length in self.row.lengths(batch):
            prompt = text(prompt_length)
            responses = [text(response_length - 1) for _ in range(self.row.samples)]
            inputs.append((prompt, responses))
        return inputs

    def prompts(self) -> list[dict]:
        return [{"prompt": prompt} for prompt, _ in self.inputs()]

    def demonstrations(self) -> list[dict]:
        """A batch of them; where they are ragged, many: a batch's sizes are new at every step."""
        records = []
        for batch in range(RAGGED_BATCHES if self.row.ragged else 1):
            for prompt, (response,) in self.inputs(batch):
                records.append({"prompt": prompt, "completion": response})
        return records


def make_words(vocab_size: int) -> list[str]:
    """A space and letters ("Ġa", "Ġb", ..., "Ġaa", ...), as many as fit beside bytes and EOS."""
    count = vocab_size - len(SYMBOLS) - 1
    words = []
    length = 1
    while len(words) < count:
        words += [SPACE + "".join(letters) for letters in product(ascii_lowercase, repeat=length)]
        length += 1
    return words[:count]


def make_models(folder: Path, config: Config, eos_rate: float) -> None:
    """Write fresh models to folder/lm and folder/rm. They sample EOS at about that rate."""
    words = make_words(config.vocab_size)
    vocab = {token: i for i, token in enumerate([*SYMBOLS, *words, EOS])}
    merges = [(word[:-1], word[-1]) for word in words]
    tokenizer = Tokenizer(Spec(vocab, merges, special_tokens={EOS}))
    torch.manual_seed(0)
    for name, cls in (("lm", GPT), ("rm", ScalarGPT)):
        model = cls(config, tokenizer)
        with torch.no_grad():
            if config.model_type == "gpt2":  # Llama's norm has no bias, and it rarely draws EOS
                eos = model.wte.weight[tokenizer.eos_id]  # (D,)
                logit = math.log(config.vocab_size * max(eos_rate, 1e-20))
                model.ln_f.bias.copy_(eos / eos.square().sum() * logit)
            if name == "rm":
                model.score.weight.normal_(std=0.02)
        model.save_pretrained(folder / name)


def count_a(completions: list[str], **columns) -> list[float]:
    """The reward of GRPO and RLOO, on both sides. Any will do."""
    return [float(text.count("a")) for text in completions]
