"""The GPT-2 architecture, exactly, with a language-model head (`GPT`) or a scalar head (`ScalarGPT`).

Pre-LayerNorm blocks, learned positions, biases everywhere, the tanh form of GELU, output weights tied to the token
embedding. Radford et al. 2019; weights are named and stored as Hugging Face's GPT2LMHeadModel stores them, so a folder
written here opens in transformers and any GPT-2 folder opens here. There is no dropout: RL and reward paths must not
have any, and a small SFT run does without.

Rows are right-padded. Attention is causal, so a real token never sees the padding behind it and no padding mask exists.
"""
import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minirlhf import UserError
from minirlhf.tokenizer import Tokenizer

LOGITS_AT_ONCE = 2**24    # elements of (tokens x vocabulary) that exist at any moment: 64 MB in float32


@dataclass
class Config:
    """The numbers of config.json, under Hugging Face's names."""
    vocab_size: int = 50257
    n_positions: int = 1024     # longest sequence
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    score_mean: float = 0.0     # scalar head only: what comes out is (score - mean) / std
    score_std: float = 1.0


class KVCache:
    """Keys and values of every layer, preallocated: (L, B, H, S, hd). Each row is written at its own position."""

    def __init__(self, config: Config, rows: int, length: int, like: Tensor):
        shape = (config.n_layer, rows, config.n_head, length, config.n_embd // config.n_head)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)

    def repeat(self, times: int, length: int) -> "KVCache":
        """Every row `times` times, with room for `length` positions: K samples continue one prefill."""
        new = KVCache.__new__(KVCache)
        for name in ("k", "v"):
            old = getattr(self, name)
            L, B, H, S, hd = old.shape
            big = old.new_zeros(L, B * times, H, length, hd)
            big[:, :, :, :S] = old.repeat_interleave(times, dim=1)
            setattr(new, name, big)
        return new

    def move(self, target: Tensor, source: Tensor, length: int) -> None:
        """Rows `source` overwrite rows `target` (first `length` positions): finished rows make room for live ones."""
        for x in (self.k, self.v):
            x[:, target, :, :length] = x[:, source, :, :length]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        D = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_attn = nn.Linear(D, 3 * D)
        self.c_proj = nn.Linear(D, D)
        self.ln_2 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_fc = nn.Linear(D, 4 * D)
        self.mlp_proj = nn.Linear(4 * D, D)

    def forward(self, x: Tensor, cache=None, at=None, seen=None) -> Tensor:   # x: (B, T, D)
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2)              # (B, H, T, hd)
                   for y in self.c_attn(self.ln_1(x)).split(D, dim=2))
        if at is None:                               # whole sequences from position 0
            if cache is not None:
                cache[0][:B, :, :T], cache[1][:B, :, :T] = k, v
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        else:                                        # one new token per row, at its own position
            rows, S = torch.arange(B, device=x.device), seen.shape[-1]
            cache[0][rows, :, at], cache[1][rows, :, at] = k[:, :, 0].to(cache[0].dtype), v[:, :, 0].to(cache[1].dtype)
            y = F.scaled_dot_product_attention(q, cache[0][:B, :, :S].to(q.dtype), cache[1][:B, :, :S].to(q.dtype),
                                               attn_mask=seen)
        x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Trunk(nn.Module):
    """Token ids to hidden states: everything but the head."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.autocast_dtype: torch.dtype | None = None     # bf16 on a GPU; one setting for sampling and for training
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: normal(0, 0.02), biases 0, projections into the residual stream scaled by 1/sqrt(2 L)."""
        for name, p in self.named_parameters():
            if p.dim() < 2:
                nn.init.constant_(p, 1.0 if name.endswith("weight") else 0.0)     # LayerNorm gains; all biases
            else:
                scale = 1 / math.sqrt(2 * self.config.n_layer) if "proj" in name else 1.0
                nn.init.normal_(p, std=0.02 * scale)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def autocast(self):
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, at: Tensor | None = None,
               positions: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """tokens (B, T) -> final hidden states (B, T, D).

        cache: keys and values are written to it. at (B,): tokens is (B, 1) and row i's token stands at position at[i],
        behind what the cache holds of that row; without it, rows start at position 0. positions (B, T) and seen
        (B, 1, T, T) bool replace that order and plain causality, for rows that hold several continuations of one prompt.
        """
        T = tokens.shape[1]
        if at is None:
            positions = torch.arange(T, device=tokens.device) if positions is None else positions       # (T,) or (B, T)
        else:
            span = int(at.max()) + 1
            positions = at[:, None]                                                    # (B, 1)
            seen = (torch.arange(span, device=at.device) <= positions)[:, None, None]  # (B, 1, 1, S)
        with self.autocast():
            x = self.wte(tokens) + self.wpe(positions)
            for i, block in enumerate(self.h):
                x = block(x, None if cache is None else (cache.k[i], cache.v[i]), at, seen)
            return self.ln_f(x)

    def architecture(self) -> dict:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides):
        """Reads a Hugging Face GPT-2 folder: config.json, model.safetensors, vocab.json, merges.txt.

        overrides replace numbers of config.json (score_mean, score_std). A missing head is initialised: a language
        model read as ScalarGPT is a fresh reward model. Raises UserError naming what is missing or does not fit.
        """
        folder = Path(folder)
        weights = folder / "model.safetensors"
        for path in (folder, folder / "config.json", weights):
            if not path.exists():
                raise UserError(f"{path} does not exist: a model folder holds config.json, model.safetensors, "
                                "vocab.json and merges.txt (each train_*.py writes one)")
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{folder / 'config.json'} is not valid JSON ({error}): copy the folder anew") from None
        if raw.get("model_type") != "gpt2" or raw.get("activation_function", "gelu_new") != "gelu_new":
            raise UserError(f"{folder / 'config.json'} has model_type {raw.get('model_type')!r} and activation_function "
                            f"{raw.get('activation_function')!r}; only gpt2 with gelu_new is read")
        known = {f.name for f in fields(Config)}
        config = Config(**{k: v for k, v in raw.items() if k in known} | overrides)
        tokenizer = Tokenizer.from_pretrained(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(f"{folder}: vocab.json has {tokenizer.vocab_size} tokens, the model's vocab_size is "
                            f"{config.vocab_size}: take vocab.json and merges.txt from the model's own folder")
        try:
            tensors = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights} cannot be read ({error}): copy it anew") from None
        model = cls(config, tokenizer)
        model.load_hf(tensors, weights)
        return model

    def load_hf(self, tensors: dict[str, Tensor], where: Path) -> None:
        mine = dict(self.state_dict())
        for name, target in mine.items():
            theirs = tensors.get(hf_name(name))
            if theirs is None and name == "score.weight":
                continue                                              # a language model becomes a fresh reward model
            if theirs is None:
                raise UserError(f"{where} has no tensor {hf_name(name)}: it is not a GPT-2 of {self.config.n_layer} layers")
            theirs = theirs.T if is_transposed(name) else theirs
            if theirs.shape != target.shape:
                raise UserError(f"{where}: {hf_name(name)} has shape {tuple(theirs.shape)}, config.json says "
                                f"{tuple(target.shape)}")
            target.copy_(theirs)

    def hf_tensors(self) -> dict[str, Tensor]:
        return {hf_name(k): (v.T if is_transposed(k) else v).detach().cpu().contiguous()
                for k, v in self.state_dict().items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the folder that from_pretrained and transformers read; model.safetensors last and atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        eos = self.tokenizer.eos_id
        config = self.architecture() | {
            "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0,
            "resid_pdrop": 0.0, "bos_token_id": eos, "eos_token_id": eos, "tie_word_embeddings": True} | asdict(self.config)
        write_atomically(folder / "config.json", json.dumps(config, indent=1).encode())
        self.tokenizer.save_pretrained(folder)
        temporary = folder / "model.safetensors.partial"
        save_file(self.hf_tensors(), temporary, metadata={"format": "pt"})
        temporary.replace(folder / "model.safetensors")


class GPT(Trunk):
    """The language model: a policy, or the reference it is held to."""

    def architecture(self) -> dict:
        return {"architectures": ["GPT2LMHeadModel"]}

    def log_softmax(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (..., D) -> log-probabilities (..., V), float32 before the softmax. Sampling, scoring, training: all here."""
        with self.autocast():
            logits = F.linear(hidden, self.wte.weight)
        return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)

    def token_logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (N, D), targets (N,) -> log-probabilities of the targets (N,), float32.

        The (N, V) logits never exist whole: past LOGITS_AT_ONCE they are made chunk by chunk, and again in the backward
        pass, which costs one more product with the embedding and saves the memory.
        """
        def logprobs(h, t):
            return self.log_softmax(h, temperature).gather(-1, t[:, None]).squeeze(-1)

        rows = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        if len(targets) <= rows:
            return logprobs(hidden, targets)
        return torch.cat([checkpoint(logprobs, h, t, use_reentrant=False)
                          for h, t in zip(hidden.split(rows), targets.split(rows))])


class ScalarGPT(Trunk):
    """A GPT with one number per position: reward model (read at the last token) or value model (read at every token)."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.score = nn.Linear(config.n_embd, 1, bias=False)
        nn.init.zeros_(self.score.weight)          # a fresh reward model prefers nothing: its loss is ln 2 exactly

    def architecture(self) -> dict:
        return {"architectures": ["GPT2ForSequenceClassification"], "num_labels": 1, "id2label": {"0": "reward"},
                "label2id": {"reward": 0}}

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> scores (...), float32, on the normalised scale."""
        return (self.score(at_least_float32(hidden)).squeeze(-1) - self.config.score_mean) / self.config.score_std

    def score_groups(self, groups: list[tuple[list[int], list[list[int]]]]) -> Tensor:
        """(prompt ids, [K responses' ids]) per prompt -> the score at each response's last token, all responses in order.

        A row is the prompt with all its responses behind it: the prompt is computed once, and no response sees another.
        """
        T = max(len(prompt) + sum(map(len, responses)) for prompt, responses in groups)
        tokens, positions, owner = torch.zeros(3, len(groups), T, dtype=torch.long)     # owner: 0 prompt, k response k
        rows, ends = [], []
        for i, (prompt, responses) in enumerate(groups):
            P = end = len(prompt)
            tokens[i, :P], positions[i, :P] = torch.tensor(prompt), torch.arange(P)
            for k, response in enumerate(responses, 1):
                begin, end = end, end + len(response)
                tokens[i, begin:end], owner[i, begin:end] = torch.tensor(response), k
                positions[i, begin:end] = torch.arange(P, P + len(response))
                rows.append(i)
                ends.append(end - 1)
        before = torch.ones(T, T, dtype=torch.bool).tril()
        seen = before & ((owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0))     # (B, T, T)
        hidden = self.hidden(tokens.to(self.device), positions=positions.to(self.device), seen=seen[:, None].to(self.device))
        return self.scores(hidden[rows, ends])

    def score_last(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (B, T), lengths (B,) -> the score at each row's last token (B,)."""
        last = self.hidden(tokens)[torch.arange(len(tokens), device=tokens.device), lengths - 1]    # (B, D)
        return self.scores(last)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hf_name(name: str) -> str:
    """Our parameter's name -> its name in Hugging Face's GPT-2."""
    if name == "score.weight":
        return name
    for mine, theirs in ((".c_attn.", ".attn.c_attn."), (".c_proj.", ".attn.c_proj."), (".c_fc.", ".mlp.c_fc."),
                         (".mlp_proj.", ".mlp.c_proj.")):
        if mine in name:
            name = name.replace(mine, theirs)
            break
    return "transformer." + name


def is_transposed(name: str) -> bool:
    """GPT-2's linear layers were stored (in, out); torch's are (out, in)."""
    return name.endswith("weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc", "mlp_proj"))


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never half of either."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    temporary.replace(path)
