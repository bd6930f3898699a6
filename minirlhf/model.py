"""The GPT-2 architecture, exactly, with a language-model head (`GPT`) or a scalar head (`ScalarGPT`).

Pre-LayerNorm blocks, learned positions, biases everywhere, the tanh form of GELU, output weights tied to the token
embedding. Radford et al. 2019; weights are named and stored as Hugging Face's GPT2LMHeadModel stores them, so a folder
written here opens in transformers and any GPT-2 folder opens here. There is no dropout: RL and reward paths must not
have any, and a small SFT run does without.

Rows are right-padded. Attention is causal, so a real token never sees the padding behind it and no padding mask exists.
"""
import json
import math
import zipfile
import zlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minirlhf import UserError, atomically, hub, write_atomically
from minirlhf.json_text import to_json
from minirlhf.tokenizer import Tokenizer

REPRESENTABLE = {          # fields of config.json that change the function: the values under which it is ours
    "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)}
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
    n_inner: int | None = None  # width between an MLP's two layers; None: 4 * n_embd
    tie_word_embeddings: bool = True    # the output weights are the token embedding


def read_config(path: Path, overrides: dict) -> Config:
    """config.json, as a stranger may have written it. UserError names what this architecture cannot represent."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw = dict(raw) | overrides
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({str(error)[:99]}): copy the folder anew") from None
    for name, known in REPRESENTABLE.items():
        if (value := raw.get(name, "" if name == "model_type" else known[0])) not in known:
            raise UserError(f"{path}: {name} is {value!r}, this GPT-2 has {', '.join(map(repr, known))} only: take another model")
    for name in ("score_mean", "score_std"):
        if raw.get(name, 0.0) is None:          # null is how a number that is not finite is written
            del raw[name]
    config = Config(**{f.name: raw.get(f.name, f.default) for f in fields(Config)})
    sizes = [config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head, config.n_inner or 1]
    floats = [config.layer_norm_epsilon, config.score_mean, config.score_std]
    if (not all(type(n) is int and 0 < n <= most for n, most in zip(sizes, (10**7, 10**7, 10**5, 1000, 10**5, 10**6)))
            or config.n_embd % config.n_head or type(config.tie_word_embeddings) is not bool
            or not all(type(x) in (int, float) and -1e9 < x < 1e9 for x in floats) or config.score_std <= 0):
        raise UserError(f"{path} has sizes that no model has: {str(asdict(config))[:400]}")
    return config


def checksum(tensors: dict[str, Tensor], text: str = "") -> str:
    """CRC-32 of a text and contiguous tensors on the CPU, in the order of their names: a flipped bit is seen, though not malice."""
    crc = zlib.crc32(text.encode())
    for _, x in sorted(tensors.items()):
        crc = zlib.crc32(x.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """model.safetensors, whole or in parts, or else a pytorch_model.bin, of which nothing is ever executed."""
    path, index, legacy = (folder / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"))
    tensors: dict[str, Tensor] = {}
    try:
        if path.exists() or not (index.exists() or legacy.exists()):
            parts = [path]
        elif index.exists():
            path = index
            parts = [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
            if outside := [part for part in parts if part.parent != folder or part.name == ".."]:
                raise UserError(f"{index} names {outside[0]}, which is no file of this folder: do not trust it")
        else:
            path, parts = legacy, []
            if zipfile.is_zipfile(legacy):       # its parts lie there as they are: one that unpacks to more is a bomb
                with zipfile.ZipFile(legacy) as archive:
                    if sum(part.file_size for part in archive.infolist()) > legacy.stat().st_size:
                        raise UserError(f"{legacy} is compressed, as no model is: do not trust it")
            tensors = dict(torch.load(legacy, map_location="cpu", weights_only=True))
        for path in parts:
            with safe_open(path, "pt") as file:
                tensors |= (found := {name: file.get_tensor(name) for name in file.keys()})           # noqa: SIM118
                crc = (file.metadata() or {}).get("crc32")
                if crc and crc != checksum(found):
                    raise UserError(f"{path} is damaged: its checksum is wrong; copy it anew")
    except UserError:
        raise
    except Exception as error:                   # torch.load raises whatever a stranger's bytes lead it into
        raise UserError(f"{path} cannot be read ({(str(error) or repr(error)).splitlines()[0][:200]}): copy it anew") from None
    if wrong := [k for k, v in tensors.items() if not (isinstance(k, str) and isinstance(v, Tensor))]:
        raise UserError(f"{path} holds more than tensors ({wrong[0]!r}): take a file of weights alone")
    return {name.removeprefix("transformer."): x for name, x in tensors.items()}


def check_shapes(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], where: Path) -> None:
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"{where} has no tensor {name}: it is not the GPT-2 that config.json describes")
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{where}: {name} has shape {tuple(tensors[name].shape)}, config.json says {shape}")


class KVCache:
    """Keys and values of every layer: L tensors (2, B, H, S, hd). Each row is written at its own position."""

    def __init__(self, config: Config, rows: int, length: int, like: Tensor):
        shape = (2, rows, config.n_head, length, config.n_embd // config.n_head)
        self.layers = [like.new_zeros(shape) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        return self.layers[0].shape[3]

    @property
    def places(self) -> Tensor:
        """(2, B, H): where position 0 of each row and head lies in a layer seen as (2 B H S, hd)."""
        _, B, H, S, _ = self.layers[0].shape
        return torch.arange(0, 2 * B * H * S, S, device=self.layers[0].device).view(2, B, H)

    def resize(self, rows: int, length: int) -> None:
        """Keeps the first `rows` rows, makes room for `length` positions. A cache that is read whole is read fastest."""
        for i, kv in enumerate(self.layers):
            self.layers[i] = new = kv.new_empty(2, rows, kv.shape[2], length, kv.shape[4])
            new[:, :, :, : kv.shape[3]], new[:, :, :, kv.shape[3] :] = kv[:, :rows], 0       # 0: unseen, but no NaN

    def repeat(self, times: int) -> None:
        """Every row `times` times: K samples continue one prefill."""
        for i, kv in enumerate(self.layers):
            self.layers[i] = kv.repeat_interleave(times, dim=1) if times > 1 else kv

    def move(self, target: Tensor, source: Tensor) -> None:
        """Rows `source` overwrite rows `target`: finished rows make room for live ones."""
        for kv in self.layers:
            kv[:, target] = kv[:, source]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        D = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_attn = nn.Linear(D, 3 * D)
        self.c_proj = nn.Linear(D, D)
        self.ln_2 = nn.LayerNorm(D, config.layer_norm_epsilon)
        self.c_fc = nn.Linear(D, config.n_inner or 4 * D)
        self.mlp_proj = nn.Linear(config.n_inner or 4 * D, D)

    def forward(self, x: Tensor, kv=None, at=None, seen=None, wanted=None) -> Tensor:   # x: (B, T, D)
        B, T, D = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(B, T, 3, self.n_head, -1)        # (B, T, 3, H, hd)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                  # (B, H, T, hd)
        if at is None:                               # whole sequences from position 0
            if kv is not None:
                kv[0, :, :, :T], kv[1, :, :, :T] = k, v
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        else:                                        # one new token per row; at: its (2 B H) places in kv; seen: 0 or -inf
            new = qkv[:, 0, 1:].transpose(0, 1).reshape(-1, D // self.n_head)                 # (2 B H, hd)
            kv.view(-1, D // self.n_head).index_copy_(0, at, new.to(kv.dtype))
            k, v = kv[:, :B].to(q.dtype)                                      # (B, H, S, hd)
            y = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + seen).softmax(-1).to(q.dtype) @ v    # on a CPU half of sdpa's time
        y = y.transpose(1, 2).reshape(B, T, D)
        if wanted is not None:                       # the last block: what nobody reads is not computed
            x, y = x[wanted], y[wanted]                                       # (N, D)
        x = x + self.c_proj(y)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Trunk(nn.Module):
    """Token ids to hidden states: everything but the head."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.autocast_dtype: torch.dtype | None = None     # bf16 on a GPU; one setting for sampling and for training
        self.checkpointing = False         # recompute each block in the backward pass: memory of one, a third more work
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

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, at: Tensor | None = None, positions: Tensor | None = None,
               seen: Tensor | None = None, wanted: Tensor | tuple[Tensor, Tensor] | None = None) -> Tensor:
        """tokens (B, T) -> final hidden states (B, T, D), or (N, D) of the N places that `wanted` indexes.

        cache: keys and values are written to it. at (B,): tokens is (B, 1) and row i's token stands at position at[i],
        behind what the cache holds of that row; without it, rows start at position 0. positions (B, T) and seen
        (B, 1, T, T) bool replace that order and plain causality, for rows that hold several continuations of one prompt.
        wanted, (B, T) bool or (rows, columns): the last block and the head skip prompts and padding that nobody reads.
        """
        if at is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions    # (T,) or (B, T)
        else:
            positions = at[:, None]                                                                     # (B, 1)
            unseen = torch.arange(cache.length, device=at.device) > positions                           # (B, S)
            seen = torch.zeros_like(unseen, dtype=torch.float32).masked_fill_(unseen, -torch.inf)[:, None, None]
            at = (cache.places[:, : len(at)] + at[:, None]).flatten()                                   # (2 B H)
        with self.autocast():
            x = self.wte(tokens) + self.wpe(positions)
            for i, block in enumerate(self.h):
                kv, only = None if cache is None else cache.layers[i], wanted if i + 1 == len(self.h) else None
                if self.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(block, x, None, None, seen, only, use_reentrant=False)
                else:                                     # .forward: --compile is for whole sequences
                    x = (block if at is None else block.forward)(x, kv, at, seen, only)
            return self.ln_f(x)

    def architecture(self) -> dict:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides):
        """Reads a Hugging Face GPT-2 folder: config.json, model.safetensors, vocab.json, merges.txt.

        overrides replace numbers of config.json (score_mean, score_std). A missing head is initialised: a language
        model read as ScalarGPT is a fresh reward model. Raises UserError naming what is missing or does not fit.
        """
        folder = hub.model_folder(folder)
        names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
        for path in (folder, folder / "config.json", folder / names[0]):
            if not path.exists() and not (path.name == names[0] and any((folder / name).exists() for name in names)):
                raise UserError(f"{path} does not exist: a model folder holds config.json, model.safetensors, "
                                f"vocab.json and merges.txt (each train_*.py writes one); or say {', '.join(hub.MODELS)}")
        config = read_config(folder / "config.json", overrides)
        tokenizer = Tokenizer.from_pretrained(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(f"{folder}: vocab.json has {tokenizer.vocab_size} tokens, the model's vocab_size is "
                            f"{config.vocab_size}: take vocab.json and merges.txt from the model's own folder")
        tensors, D = read_tensors(folder), config.n_embd                     # what is not there is not built either
        check_shapes(tensors, {"wte.weight": (config.vocab_size, D), "wpe.weight": (config.n_positions, D),
                               f"h.{config.n_layer - 1}.mlp.c_fc.weight": (D, config.n_inner or 4 * D)}, folder)
        model = cls(config, tokenizer)
        model.load_hf(tensors, folder)
        return model

    def load_hf(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Takes weights under Hugging Face's names, with or without "transformer."; all are checked before one is taken."""
        tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
        mine, state = self.state_dict(), {}
        for name, target in mine.items():
            if name == "score.weight" and name not in tensors:
                continue                                              # a language model becomes a fresh reward model
            check_shapes(tensors, {hf_name(name).removeprefix("transformer."): tuple((target.T if is_transposed(name) else
                                                                                      target).shape)}, where)
            theirs = tensors.pop(hf_name(name).removeprefix("transformer."))
            state[name] = theirs.T if is_transposed(name) else theirs
            if not theirs.is_floating_point() or not theirs.to(torch.promote_types(theirs.dtype, torch.float32)).isfinite().all():
                raise UserError(f"{where}: {hf_name(name)} is {theirs.dtype} or has values that are not finite: copy it anew")
        head = tensors.pop("lm_head.weight", None)
        if head is not None and isinstance(self, GPT) and not torch.equal(head, state["wte.weight"]):
            raise UserError(f"{where}: lm_head.weight is not the token embedding: say tie_word_embeddings false in config.json")
        if strange := [n for n in tensors if not n.endswith((".attn.bias", ".attn.masked_bias", "score.weight"))]:
            raise UserError(f"{where} has a tensor {strange[0]}, which config.json's GPT-2 does not have: take another model")
        for name, theirs in state.items():
            mine[name].copy_(theirs)

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
            "resid_pdrop": 0.0, "bos_token_id": eos, "eos_token_id": eos} | asdict(self.config)
        write_atomically(folder / "config.json", to_json(config, indent=1).encode())
        self.tokenizer.save_pretrained(folder)
        with atomically(folder / "model.safetensors") as temporary:
            save_file(tensors := self.hf_tensors(), temporary, metadata={"format": "pt", "crc32": checksum(tensors)})
            with temporary.open("r+b") as f:            # the library writes metadata in any order: equal weights, equal bytes
                size = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(size))
                header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
                f.seek(8)
                f.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))


class GPT(Trunk):
    """The language model: a policy, or the reference it is held to."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def architecture(self) -> dict:
        return {"architectures": ["GPT2LMHeadModel"]}

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (..., D) -> logits (..., V), over the temperature. Sampling, scoring, training: all
        start here. The product is float32's under autocast too: bf16 rounds a logit of 10 by up to 0.03.
        """
        head = self.wte if self.config.tie_word_embeddings else self.lm_head
        with torch.autocast(self.device.type, enabled=False):
            logits = F.linear(at_least_float32(hidden), at_least_float32(head.weight))
        return logits if temperature == 1 else logits / temperature

    def log_softmax(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (..., D) -> log-probabilities (..., V), float32."""
        return torch.log_softmax(self.logits(hidden, temperature), dim=-1)

    def token_logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """hidden (N, D), targets (N,) -> log-probabilities of the targets (N,), float32.

        The (N, V) logits never exist whole: past LOGITS_AT_ONCE they are made chunk by chunk, and again in the backward
        pass, which costs one more product with the embedding and saves the memory.
        """
        def logprobs(h, t):
            return TargetLogProb.apply(self.logits(h, temperature), t)[0]

        rows = self.logits_rows()
        if len(targets) <= rows:
            return logprobs(hidden, targets)
        return torch.cat([checkpoint(logprobs, h, t, use_reentrant=False) if torch.is_grad_enabled() else logprobs(h, t)
                          for h, t in zip(hidden.split(rows), targets.split(rows))])

    def logits_rows(self) -> int:
        """How many rows of logits to make at once: as many as memory bears, or, on a CPU without gradients, its cache."""
        in_cache = self.device.type == "cpu" and not torch.is_grad_enabled()
        return 64 if in_cache else max(1, LOGITS_AT_ONCE // self.config.vocab_size)


class TargetLogProb(torch.autograd.Function):
    """log_softmax and gather in one, (N, V) and (N,) -> (N,), and all log-probabilities (N, V), to look at before the backward
    pass: the gradient takes their place. Of the largest tensors there are, one is touched instead of three."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits, dim=-1)
        ctx.save_for_backward(log_probs, targets)
        ctx.mark_non_differentiable(log_probs)
        return log_probs.gather(-1, targets[:, None]).squeeze(-1), log_probs

    @staticmethod
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, None]:
        log_probs, targets = ctx.saved_tensors
        slope = log_probs.exp_().mul_(-grad[:, None])                    # d log p(t) / d logits = 1{t} - p
        return slope.scatter_add_(1, targets[:, None], grad[:, None]), None


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
        """(prompt ids, [K responses' ids]) per prompt -> the score at each response's last token, all responses in order."""
        tokens, positions, seen, places = pack(groups, self.device)
        wanted = [row for row, _, _ in places], [end - 1 for _, _, end in places]
        return self.scores(self.hidden(tokens, positions=positions, seen=seen, wanted=wanted))

    def score_last(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (B, T), lengths (B,) -> the score at each row's last token (B,)."""
        return self.scores(self.hidden(tokens, wanted=(torch.arange(len(tokens), device=tokens.device), lengths - 1)))


def pack(groups: list[tuple[list[int], list[list[int]]]], device: torch.device) -> tuple[Tensor, Tensor, Tensor, list]:
    """(prompt ids, [K responses' ids]) per prompt -> tokens (G, T), the positions (G, T) and seen (G, 1, T, T) of `hidden`,
    and each response's (row, begin, end), all in order.

    A row is the prompt with all its responses behind it: the prompt is computed once, and no response sees another.
    """
    T = max(len(prompt) + sum(map(len, responses)) for prompt, responses in groups)
    tokens, positions, owner = torch.zeros(3, len(groups), T, dtype=torch.long)     # owner: 0 prompt, k response k
    places = []
    for i, (prompt, responses) in enumerate(groups):
        P = end = len(prompt)
        tokens[i, :P], positions[i, :P] = torch.tensor(prompt, dtype=torch.long), torch.arange(P)
        for k, response in enumerate(responses, 1):
            begin, end = end, end + len(response)
            tokens[i, begin:end], owner[i, begin:end] = torch.tensor(response, dtype=torch.long), k
            positions[i, begin:end] = torch.arange(P, P + len(response))
            places.append((i, begin, end))
    owner = owner.to(device)
    before = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    seen = before & ((owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0))     # (G, T, T)
    return tokens.to(device), positions.to(device), seen[:, None], places


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hf_name(name: str) -> str:
    """Our parameter's name -> its name in Hugging Face's GPT-2."""
    if name in ("score.weight", "lm_head.weight"):
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
