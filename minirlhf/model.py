"""The GPT-2 architecture with a language-model head (`GPT`) or a scalar head (`ScalarGPT`).

Rows are right-padded. Attention is causal, so a real token never sees the padding behind it. There
is no dropout. A saved folder opens in transformers, and its GPT-2 folders open here.
"""

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from minirlhf import UserError, checkpoint, hub
from minirlhf.tokenizer import Tokenizer

LOGITS_AT_ONCE = 2**24  # elements of (tokens, vocabulary) made at a time: 64 MB in float32
Group = tuple[list[int], list[list[int]]]  # a prompt's ids, and those of each of its responses
Index = Tensor | tuple[Tensor, Tensor]  # (B, T) bool, or rows (N,) and columns (N,)


@dataclass
class Config:
    """The numbers of config.json, under Hugging Face's names."""

    vocab_size: int = 50257
    n_positions: int = 1024  # longest sequence
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    score_mean: float = 0.0  # scalar head: scores are (output - mean) / std
    score_std: float = 1.0
    n_inner: int | None = None  # width inside the MLP; None: 4 * n_embd
    tie_word_embeddings: bool = True  # the output weights are the token embedding


class Block(nn.Module):
    """Self-attention and an MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.n_embd
        inner = config.n_inner or 4 * D
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_attn = nn.Linear(D, 3 * D)
        self.c_proj = nn.Linear(D, D)
        self.ln_2 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_fc = nn.Linear(D, inner)
        self.mlp_proj = nn.Linear(inner, D)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cached: Tensor | None = None,
        at: Tensor | None = None,
        wanted: Index | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D), or (N, D) of what is wanted.

        Arguments as of Trunk.hidden; cached: this layer's cache.
        """
        B, T, D = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(B, T, 3, self.n_head, -1)  # (B, T, 3, H, hd)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, hd)
        if cached is not None:
            k, v = KVCache.write(cached, k, v, at)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        y = y.transpose(1, 2).reshape(B, T, D)
        if wanted is not None:
            x, y = x[wanted], y[wanted]  # (N, D)
        x = x + self.c_proj(y)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class KVCache:
    """Keys and values of every layer, (2, B, H, S, hd) each. Column t holds a row's position t."""

    def __init__(self, model: "Trunk", rows: int, length: int):
        config = model.config
        shape = (2, rows, config.n_head, length, config.n_embd // config.n_head)
        dtype = model.autocast_dtype or model.wte.weight.dtype
        self.layers = []
        for _ in range(config.n_layer):
            self.layers.append(torch.zeros(shape, dtype=dtype, device=model.device))

    @property
    def length(self) -> int:
        return self.layers[0].shape[3]

    @staticmethod
    def write(cached: Tensor, k: Tensor, v: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, H, T, hd); return those to attend to.

        at (B,): the position of each row's single token. Without it rows start at position 0.
        """
        B, _, T, _ = k.shape
        if at is None:
            cached[0, :, :, :T] = k
            cached[1, :, :, :T] = v
            return k, v
        rows = torch.arange(B, device=at.device)
        cached[0, rows, :, at] = k[:, :, 0]
        cached[1, rows, :, at] = v[:, :, 0]
        return cached[0, :B], cached[1, :B]  # (B, H, S, hd)

    def resize(self, rows: int, length: int) -> None:
        """Keep the first rows and make room for `length` positions."""
        for i, old in enumerate(self.layers):
            _, _, H, S, hd = old.shape
            self.layers[i] = old.new_zeros(2, rows, H, length, hd)
            self.layers[i][:, :, :, :S] = old[:, :rows]

    def repeat(self, times: int) -> None:
        """Every row `times` times, so that many samples continue one prompt."""
        self.layers = [layer.repeat_interleave(times, dim=1) for layer in self.layers]

    def move(self, target: Tensor, source: Tensor) -> None:
        """Overwrite rows `target` with rows `source`."""
        for layer in self.layers:
            layer[:, target] = layer[:, source]


class Trunk(nn.Module):
    """Token ids to hidden states: everything but the head."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.autocast_dtype: torch.dtype | None = None  # the same for sampling and training
        self.checkpointing = False  # recompute blocks in the backward pass, to save memory
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: normal(0, 0.02), projections into the residual stream over sqrt(2 L)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)  # LayerNorm gains
            elif "proj" in name:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def autocast(self):
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        at: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        wanted: Index | None = None,
    ) -> Tensor:
        """tokens (B, T) -> final hidden states (B, T, D), or (N, D) of the positions wanted.

        cache: where keys and values are written.
        at (B,): tokens is (B, 1), and row i's token stands at position at[i] behind its cache.
        positions (B, T), mask (B, 1, T, T) bool: replace 0..T-1 and plain causality.
        wanted: index of N positions. The last block's MLP skips all others, which is 14 % of a
            reward model's step with 4 layers.
        """
        if at is not None:
            positions = at[:, None]  # (B, 1)
            columns = torch.arange(cache.length, device=at.device)
            mask = (columns <= positions)[:, None, None]  # (B, 1, 1, S)
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
        with self.autocast():
            x = self.wte(tokens) + self.wpe(positions)
            for i, block in enumerate(self.h):
                cached = cache.layers[i] if cache else None
                last = block is self.h[-1]
                arguments = (x, mask, cached, at, wanted if last else None)
                if self.checkpointing and torch.is_grad_enabled():
                    x = recompute(block, *arguments, use_reentrant=False)
                elif cache is None:
                    x = block(*arguments)
                else:  # .forward is never compiled: shapes change as a response grows
                    x = block.forward(*arguments)
            return self.ln_f(x)

    def architecture(self) -> dict:
        """Fields of config.json by which transformers knows the head."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, folder: str | Path, chat_format: str = "auto", **overrides):
        """Read a Hugging Face GPT-2 folder, or a model that hub.py knows by name.

        overrides replace numbers of config.json. A missing scalar head starts at zero: a language
        model read as ScalarGPT is a fresh reward model. Raises UserError for what does not fit.
        """
        folder = hub.model_folder(folder)
        config = checkpoint.read_config(folder, Config, overrides)
        tokenizer = Tokenizer.from_pretrained(folder, chat_format)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, config.json a "
                f"vocab_size of {config.vocab_size}: take both from the model's own folder"
            )
        tensors = checkpoint.read_weights(folder)
        tensors.setdefault("score.weight", torch.zeros(1, config.n_embd))
        with torch.device("meta"):  # shapes only: nothing is allocated before all is checked
            model = cls(config, tokenizer)
        model.load_hf(tensors, folder)
        return model

    def load_hf(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Take weights under Hugging Face's names, without "transformer."."""
        shapes = {name: weight.shape for name, weight in self.state_dict().items()}
        weights = checkpoint.from_hf(tensors, shapes, where)
        if self.device.type == "meta":
            self.to_empty(device="cpu")
        self.load_state_dict(weights)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that from_pretrained and transformers read; the weights come last."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder, padding=isinstance(self, ScalarGPT))
        eos = self.tokenizer.eos_id
        gpt2 = {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "bos_token_id": eos,
            "eos_token_id": eos,
        }
        config = self.architecture() | gpt2 | asdict(self.config)
        checkpoint.write_folder(folder, config, self.state_dict())


class GPT(Trunk):
    """The language model: a policy, or the reference that it is held to."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def architecture(self) -> dict:
        return {"architectures": ["GPT2LMHeadModel"]}

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, T, V), float32."""
        return self.logits(self.hidden(tokens))

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (..., D) -> logits (..., V) over the temperature, float32 under autocast too."""
        head = self.wte if self.config.tie_word_embeddings else self.lm_head
        with torch.autocast(self.device.type, enabled=False):  # bf16 rounds a logit of 10 by 0.03
            logits = F.linear(at_least_float32(hidden), at_least_float32(head.weight))
        return logits if temperature == 1 else logits / temperature

    def log_softmax(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (..., D) -> log-probabilities (..., V), float32."""
        return torch.log_softmax(self.logits(hidden, temperature), dim=-1)

    def token_logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (N, D), targets (N,) -> log-probabilities of the targets (N,), float32.

        Large logits (N, V) are made in chunks, and again in the backward pass: less memory for
        one more product with the head.
        """

        def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
            log_probs = self.log_softmax(hidden, temperature)  # (n, V)
            return log_probs.gather(-1, targets[:, None]).squeeze(-1)  # (n,)

        rows = self.logits_rows()
        if len(targets) <= rows:
            return logprobs(hidden, targets)
        chunks = []
        for chunk in zip(hidden.split(rows), targets.split(rows)):
            chunks.append(recompute(logprobs, *chunk, use_reentrant=False))
        return torch.cat(chunks)

    def logits_rows(self) -> int:
        """How many rows of logits to make at a time."""
        return max(1, LOGITS_AT_ONCE // self.config.vocab_size)


class ScalarGPT(Trunk):
    """A number per position: a reward model (last token) or a value model (every token)."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.score = nn.Linear(config.n_embd, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # a fresh reward model's loss is ln 2

    def architecture(self) -> dict:
        return {
            "architectures": ["GPT2ForSequenceClassification"],
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "pad_token_id": self.tokenizer.pad_id,
        }

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> scores (B, T), float32."""
        return self.scores(self.hidden(tokens))

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> normalised scores (...), float32."""
        raw = self.score(at_least_float32(hidden)).squeeze(-1)
        return (raw - self.config.score_mean) / self.config.score_std

    def score_last(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (B, T), lengths (B,) -> the score at each row's last token (B,)."""
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.scores(self.hidden(tokens, wanted=(rows, lengths - 1)))

    def score_groups(self, groups: list[Group]) -> Tensor:
        """The score at the last token of every group's every response, in order (N,).

        A prompt is computed once for all of its responses.
        """
        tokens, positions, mask, ends = pack(groups, self.device)
        hidden = self.hidden(tokens, positions=positions, mask=mask, wanted=ends.unbind(1))
        return self.scores(hidden)


def pack(groups: list[Group], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put each prompt and all of its responses into one row; no response sees another.

    Returns tokens (G, T), positions (G, T) and mask (G, 1, T, T) for Trunk.hidden, and the row
    and column of each response's last token (N, 2).
    """
    lengths = [len(prompt) + sum(map(len, responses)) for prompt, responses in groups]
    shape = (len(groups), max(lengths))
    tokens = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    owner = torch.zeros(shape, dtype=torch.long)  # 0: the prompt, k: response k
    ends = []
    for row, (prompt, responses) in enumerate(groups):
        end = len(prompt)
        tokens[row, :end] = torch.tensor(prompt)
        positions[row, :end] = torch.arange(end)
        for k, response in enumerate(responses, start=1):
            begin, end = end, end + len(response)
            tokens[row, begin:end] = torch.tensor(response)
            positions[row, begin:end] = len(prompt) + torch.arange(len(response))
            owner[row, begin:end] = k
            ends.append((row, end - 1))
    tokens, positions, owner = tokens.to(device), positions.to(device), owner.to(device)
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool, device=device).tril()  # (T, T)
    same = owner[:, :, None] == owner[:, None, :]  # (G, T, T)
    mask = causal & (same | (owner == 0)[:, None, :])
    return tokens, positions, mask[:, None], torch.tensor(ends, device=device)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
