"""A transformer with a language-model head (`GPT`) or a scalar head (`ScalarGPT`).

Its blocks are GPT-2's, or Llama's: `LlamaBlock` is also Mistral's, Qwen2's and Qwen3's. Rows are
right-padded. Attention is causal, so a real token never sees the padding after it. There is no
dropout. A saved folder opens in transformers, and its folders of these models open here.
"""

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from minirlhf import UserError, architectures, checkpoint, hub
from minirlhf.packing import Sequence, pack
from minirlhf.tokenizer import Tokenizer

FLOAT32_ATTENTION = 512  # a CPU attends to rows of so many tokens in float32: it is faster
BFLOAT16_ROWS = 64  # a CPU's bfloat16 products have multiples of it: each size is compiled
LOGITS_AT_ONCE = 2**24  # elements of (tokens, vocabulary) made at a time: 64 MB in float32
Index = Tensor | tuple[Tensor, Tensor]  # (B, T) bool, or rows (N,) and columns (N,)
Rotary = tuple[Tensor, Tensor]  # cosines and sines of the positions' angles


@dataclass
class Config:
    """A model's sizes, under Hugging Face's names for GPT-2 where it has one, else for Llama.

    n_kv_head, head_dim and n_inner may be None: read kv_heads, head_width and inner instead.
    """

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
    model_type: str = "gpt2"  # or one with Llama's block: llama, mistral, qwen2, qwen3
    activation_function: str = "gelu_new"  # of GPT-2's block, the GELU by a tanh; gelu: exact
    # Llama's block
    n_kv_head: int | None = None  # heads of keys and values; None: n_head
    head_dim: int | None = None  # None: n_embd / n_head
    rope_theta: float = 10000.0  # the slowest pair turns once in about 2 pi theta positions
    rope_scaling: dict | None = None  # Llama 3's stretching of rotary positions
    attention_bias: bool = False  # biases of queries, keys, values and, but for qwen2, the output
    mlp_bias: bool = False

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        return self.n_inner or 4 * self.n_embd


class Block(nn.Module):
    """Self-attention and an MLP, each after a norm and added to the residual stream.

    GPT2Block and LlamaBlock make the layers, under the same names.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)  # queries, keys, values

    def forward(
        self,
        x: Tensor,
        shape: tuple[int, int],
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        cached: Tensor | None = None,
        at: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """x (M, D) -> (M, D), or (N, D) of those to keep.

        x: the tokens of B rows, one row after another; M is B T, for a CPU's bfloat16 rounded up
            (Trunk.padded_count), and what is beyond B T is never read
        shape: B and T
        rotary: cosines and sines (.., T, hd) by which queries and keys are turned; None: GPT-2
        mask (B, 1, T, S) bool: who sees whom; None: plain causality
        cached, at: this layer's part of the cache, and where a decoding step stands in it
        keep (N,): which of the M go on after the attention; None: all
        """
        B, T = shape
        qkv = self.c_attn(self.ln_1(x))[: B * T].view(B, T, sum(self.heads), -1)
        if attends_in_float32(qkv.device, T):
            qkv = at_least_float32(qkv)
        q, k, v = qkv.transpose(1, 2).split(self.heads, dim=1)  # (B, H, T, hd), two (B, KV, T, hd)
        if rotary is not None:
            q, k = self.rotate(q, k, rotary)
        if cached is not None:
            k, v = KVCache.write(cached, k, v, at)
        y = attend(q, k, v, mask).transpose(1, 2).reshape(B * T, -1)
        if keep is None:
            y = pad_to(len(x), y)
        else:
            x, y = x[keep], y[keep]  # (N, D)
        x = x + self.c_proj(y)
        return x + self.mlp(self.ln_2(x))


class GPT2Block(Block):
    """LayerNorm, a GELU, and biases everywhere."""

    def __init__(self, config: Config):
        super().__init__(config)
        D = config.n_embd
        self.ln_1 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_attn = nn.Linear(D, 3 * D)
        self.c_proj = nn.Linear(D, D)
        self.ln_2 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_fc = nn.Linear(D, config.inner)
        self.mlp_proj = nn.Linear(config.inner, D)
        self.approximate = "none" if config.activation_function == "gelu" else "tanh"

    def mlp(self, x: Tensor) -> Tensor:
        return self.mlp_proj(F.gelu(self.c_fc(x), approximate=self.approximate))


class LlamaBlock(Block):
    """RMSNorm, rotary positions, a gated MLP; biases where config.json has them, as Qwen2's.

    Qwen3 has norms in each head.

    Touvron et al. 2023, "LLaMA", section 2.2. c_attn stacks Hugging Face's q_proj, k_proj and
    v_proj; c_fc its gate_proj and up_proj.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        D, hd, eps = config.n_embd, config.head_width, config.layer_norm_epsilon
        output_bias = config.attention_bias and config.model_type != "qwen2"
        self.ln_1 = nn.RMSNorm(D, eps)
        self.c_attn = nn.Linear(D, sum(self.heads) * hd, bias=config.attention_bias)
        self.c_proj = nn.Linear(config.n_head * hd, D, bias=output_bias)
        self.ln_2 = nn.RMSNorm(D, eps)
        self.c_fc = nn.Linear(D, 2 * config.inner, bias=config.mlp_bias)
        self.mlp_proj = nn.Linear(config.inner, D, bias=config.mlp_bias)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.model_type == "qwen3":
            self.q_norm, self.k_norm = nn.RMSNorm(hd, eps), nn.RMSNorm(hd, eps)

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Queries (B, H, T, hd) and keys (B, KV, T, hd), normed and turned; float32 inside."""
        rotated_q = turn(self.q_norm(at_least_float32(q)), rotary)
        rotated_k = turn(self.k_norm(at_least_float32(k)), rotary)
        return rotated_q.type_as(q), rotated_k.type_as(k)

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.c_fc(x).chunk(2, dim=-1)
        return self.mlp_proj(F.silu(gate) * up)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries (B, H, T, hd), keys and values (B, KV, S, hd) -> (B, H, T, hd).

    H / KV heads of queries share one of keys and values (Ainslie et al. 2023, "GQA").
    mask (B, 1, T, S) bool; None: causal.
    """
    B, H, T, hd = q.shape
    sharing = H // k.shape[1]
    with torch.autocast(q.device.type, enabled=False):  # which would round float32
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=sharing > 1)
        if sharing > 1:  # as more queries of fewer heads: fused kernels have no groups behind masks
            q = q.reshape(B, -1, sharing * T, hd)
            mask = mask.repeat(1, 1, sharing, 1)
        if T == 1 and attends_in_float32(q.device, T):  # a fused kernel takes long for one query
            scores = (q / math.sqrt(hd) @ k.mT).masked_fill(~mask, -torch.inf)  # (B, KV, H/KV, S)
            y = scores.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.reshape(B, H, T, hd)


def attends_in_float32(device: torch.device, length: int) -> bool:
    """Whether attention computes in float32 under autocast: on a CPU, to rows that are not long.

    Not in decoding, with a length of 1, where the processor has AMX: its fused kernel is fast then.
    """
    if device.type != "cpu" or length > FLOAT32_ATTENTION:
        return False
    return length > 1 or not has_amx()


def has_amx() -> bool:
    """PyTorch has no public name for this question."""
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


class ProductOfRounded(torch.autograd.Function):
    """x (N, D), weight (V, D) -> x @ weight.T (N, V): float32, of numbers rounded to bfloat16.

    On a CPU, where autocast would round the product too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with products_of_rounded():
            return x @ weight.T

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        is_trained = ctx.needs_input_grad[1]  # not beside adapters
        with products_of_rounded():
            return gradient @ weight, gradient.T @ x if is_trained else None


@contextmanager
def products_of_rounded():
    """Inside, a CPU makes float32 products from bfloat16 numbers."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def pad_to(count: int, x: Tensor) -> Tensor:
    """x (n, D) -> (count, D), with zeros at the end."""
    return x if len(x) == count else F.pad(x, (0, 0, 0, count - len(x)))


def rotary_at(positions: Tensor, config: Config) -> Rotary:
    """positions (T,) or (B, T) -> (1, T, hd) or (B, 1, T, hd), float32: what `turn` takes.

    Position p turns the i-th pair of a head's numbers by p theta^(-2i/hd): Su et al. 2021,
    "RoFormer", equation 15.
    """
    even = torch.arange(0, config.head_width, 2, device=positions.device)
    speed = 1 / config.rope_theta ** (even / config.head_width)  # (hd/2,) radians per position
    if config.rope_scaling:
        speed = stretched(speed, config.rope_scaling)
    angles = (positions[..., None] * speed).unsqueeze(-3)  # (..., 1, T, hd/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def stretched(speed: Tensor, scaling: dict) -> Tensor:
    """Llama 3's rotary speeds for longer texts than it was pretrained on.

    Pairs that turn less than low_freq_factor times in the original context are slowed down by
    factor, those that turn more than high_freq_factor times are not, with a ramp in between.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi / speed)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * speed / scaling["factor"] + kept * speed


def turn(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the pairs (i, i + hd/2) of x (B, H, T, hd)."""
    cos, sin = rotary
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class KVCache:
    """Keys and values of every layer, (2, B, KV, S, hd) each. Column t holds a row's position t."""

    def __init__(self, model: "Trunk", rows: int, length: int):
        config = model.config
        shape = (2, rows, config.kv_heads, length, config.head_width)
        dtype = model.cache_dtype
        self.layers = []
        for _ in range(config.n_layer):
            self.layers.append(torch.zeros(shape, dtype=dtype, device=model.device))

    @property
    def length(self) -> int:
        return self.layers[0].shape[3]

    @staticmethod
    def write(cached: Tensor, k: Tensor, v: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, KV, T, hd); return those to attend to.

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
        return cached[0, :B], cached[1, :B]  # (B, KV, S, hd); the other rows have left the batch

    def resize(self, rows: int, length: int) -> None:
        """Keep the first rows and make room for `length` positions."""
        for i, old in enumerate(self.layers):
            _, _, KV, S, hd = old.shape
            self.layers[i] = old.new_zeros(2, rows, KV, length, hd)
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

    is_scalar: bool  # whether the head gives a score instead of logits

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.autocast_dtype: torch.dtype | None = None  # the same for sampling and training
        self.checkpointing = False  # recompute blocks in the backward pass, to save memory
        self.temperature: float | None = None  # that a policy was trained and is sampled at
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.model_type == "gpt2":
            self.wpe = nn.Embedding(config.n_positions, config.n_embd)
            block, norm = GPT2Block, nn.LayerNorm
        else:
            block, norm = LlamaBlock, nn.RMSNorm
        self.h = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.ln_f = norm(config.n_embd, config.layer_norm_epsilon)
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: normal(0, 0.02), projections into the residual stream over sqrt(2 L)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)  # the norms' gains
            elif "proj" in name:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of cached keys and values: that in which a decoding step attends."""
        if attends_in_float32(self.device, 1):
            return self.wte.weight.dtype
        return self.autocast_dtype or self.wte.weight.dtype

    def autocast(self):
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    @contextmanager
    def cast_once(self):
        """Inside, matrices are stored as autocast would cast them at every decoding step."""
        matrices = []
        for layer in self.h.modules():
            if isinstance(layer, nn.Linear):
                matrices.append(layer.weight)
        full = [weight.data for weight in matrices]
        try:
            for weight in matrices:
                weight.data = weight.data.to(self.autocast_dtype or weight.dtype)
            yield
        finally:
            for weight, data in zip(matrices, full):
                weight.data = data

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
        at (B,): tokens is (B, 1); row i's token continues its cache at position at[i].
        positions (B, T), mask (B, 1, T, T) bool: replace 0..T-1 and plain causality.
        wanted: index of N positions. The last block attends for all and goes on with these alone,
            which saves 14 % of a training step of a reward model with 4 layers.
        """
        if at is not None:
            positions = at[:, None]  # (B, 1)
            columns = torch.arange(cache.length, device=at.device)
            mask = (columns <= positions)[:, None, None]  # (B, 1, 1, S)
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
        shape = tokens.shape
        count = tokens.numel()  # of hidden states to return
        keep = None  # which tokens leave the last block
        if wanted is not None:
            flat = torch.arange(tokens.numel(), device=tokens.device).view(shape)[wanted]  # (N,)
            count = len(flat)
            # to a round size by repeats of token 0, which are cut off below
            keep = F.pad(flat, (0, self.padded_count(count) - count))
        with self.autocast():
            x = self.wte(tokens)
            rotary = None
            if self.config.model_type == "gpt2":
                x = x + self.wpe(positions)
            else:
                rotary = rotary_at(positions, self.config)
            x = pad_to(self.padded_count(tokens.numel()), x.flatten(0, 1))  # (M, D)
            for i, block in enumerate(self.h):
                cached = None if cache is None else cache.layers[i]
                last = block is self.h[-1]
                arguments = (x, shape, rotary, mask, cached, at, keep if last else None)
                if self.checkpointing and torch.is_grad_enabled():
                    x = recompute(block, *arguments, use_reentrant=False)
                elif cache is None:
                    x = block(*arguments)
                else:  # .forward is never compiled: shapes change as a response grows
                    x = block.forward(*arguments)
            x = self.ln_f(x)[:count]
        return x.view(*shape, -1) if wanted is None else x

    def padded_count(self, count: int) -> int:
        """How many tokens to compute where `count` are needed. Small counts differ little."""
        if self.device.type == "cpu" and self.autocast_dtype and count > BFLOAT16_ROWS:
            return -(-count // BFLOAT16_ROWS) * BFLOAT16_ROWS
        return count

    @classmethod
    def from_pretrained(cls, folder: str | Path, chat_format: str = "auto", **overrides):
        """Read a Hugging Face folder, or a model that hub.py knows by name.

        overrides replace fields of Config. A language model read as ScalarGPT is a fresh reward
        model, whose scores are zero. Raises UserError for what does not fit.
        """
        folder = hub.model_folder(folder)
        config, has_scalar_head = checkpoint.read_config(folder, Config, overrides)
        tokenizer = Tokenizer.from_pretrained(folder, chat_format)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, config.json a "
                f"vocab_size of {config.vocab_size}: take both from the model's own folder"
            )
        tensors = checkpoint.read_weights(folder)
        has_scalar_head = has_scalar_head or "score.weight" in tensors
        if has_scalar_head and not cls.is_scalar:
            raise UserError(
                f"{folder} holds a reward model: it has scores instead of a language model's "
                "output and cannot be a policy; give the folder of a language model"
            )
        if cls.is_scalar and not has_scalar_head:
            tensors["score.weight"] = torch.zeros(1, config.n_embd)
        with torch.device("meta"):  # shapes only: nothing is allocated before all is checked
            model = cls(config, tokenizer)
        model.load_hf(tensors, folder)
        model.temperature = checkpoint.read_temperature(folder)
        return model

    def load_hf(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Take weights under Hugging Face's names, without "transformer." or "model."."""
        shapes = {name: weight.shape for name, weight in self.state_dict().items()}
        dtype = self.wte.weight.dtype
        weights = checkpoint.from_hf(tensors, shapes, self.config, where, dtype)
        self.load_state_dict(weights, assign=True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that from_pretrained and transformers read; the weights come last."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder, padding=self.is_scalar)
        config = architectures.write(self.config, self.is_scalar, self.tokenizer)
        checkpoint.write_generation(folder, config, None if self.is_scalar else self.temperature)
        checkpoint.write_folder(folder, config, self.state_dict(), self.config)


class GPT(Trunk):
    """The language model: a policy, or the reference that it is held to."""

    is_scalar = False

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.register_buffer("no_token", ids_without_token(config, tokenizer), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, T, V), float32."""
        return self.logits(self.hidden(tokens))

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (..., D) -> logits (..., V) over the temperature, float32 under autocast too.

        Ids to which the tokenizer gives no token have -inf: no probability, and no gradient.
        """
        head = self.wte if self.config.tie_word_embeddings else self.lm_head
        hidden, weight = at_least_float32(hidden), at_least_float32(head.weight)
        with torch.autocast(self.device.type, enabled=False):  # bf16 rounds a logit of 10 by 0.03
            if self.device.type == "cpu" and self.autocast_dtype:
                rows = hidden.reshape(-1, hidden.shape[-1])  # (N, D)
                padded = pad_to(self.padded_count(len(rows)), rows)
                flat = ProductOfRounded.apply(padded, weight)[: len(rows)]  # (N, V)
                logits = flat.view(*hidden.shape[:-1], len(weight))
            else:
                logits = F.linear(hidden, weight)
        if self.no_token is not None:
            logits = logits.masked_fill(self.no_token, -torch.inf)
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
            size = self.padded_count(len(targets))  # so that no logits are cut off
            padding = (0, size - len(targets))
            log_probs = self.log_softmax(pad_to(size, hidden), temperature)  # (size, V)
            padded_targets = F.pad(targets, padding)  # (size,)
            return log_probs.gather(-1, padded_targets[:, None])[: len(targets), 0]  # (n,)

        rows = self.logits_rows()
        if len(targets) <= rows:
            return logprobs(hidden, targets)
        chunks = []
        for chunk in zip(hidden.split(rows), targets.split(rows)):
            chunks.append(recompute(logprobs, *chunk, use_reentrant=False))
        return torch.cat(chunks)

    def logits_rows(self) -> int:
        """How many rows of logits to make at a time: a number that needs no padding."""
        rows = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        padded = self.padded_count(rows)
        return rows if padded == rows else max(BFLOAT16_ROWS, padded - BFLOAT16_ROWS)


class ScalarGPT(Trunk):
    """A number per position: a reward model (last token) or a value model (every token)."""

    is_scalar = True

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.score = nn.Linear(config.n_embd, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # a fresh reward model's loss is ln 2

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> scores (B, T), float32."""
        return self.scores(self.hidden(tokens))

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> normalised scores (...), float32."""
        raw = self.score(at_least_float32(hidden)).squeeze(-1)
        return (raw - self.config.score_mean) / self.config.score_std

    def score_sequences(self, sequences: list[Sequence]) -> Tensor:
        """The score at the last token of each response (B,). Neighbours share their prompt."""
        packed = pack(sequences, self.device)
        return self.scores(packed.hidden(self, packed.last))


def ids_without_token(config: Config, tokenizer: Tokenizer | None) -> Tensor | None:
    """(V,) bool: ids of a padded vocabulary that the tokenizer does not have; None: none."""
    if tokenizer is None:
        return None
    # real even where the model is made on "meta"
    missing = torch.ones(config.vocab_size, dtype=torch.bool, device="cpu")
    missing[list(tokenizer.vocab.values())] = False
    return missing if missing.any() else None


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
