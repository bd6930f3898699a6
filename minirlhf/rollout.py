"""Sampling responses with a KV cache, and the per-token log-probs of responses that everything else is made of.

A `Rollout` holds right-padded rows, prompt first, response after it. Per-token tensors are (B, R): column j belongs to
the response's j-th token, `mask` is True where there is one. The token at position t is predicted by the hidden state at
position t - 1, and it is there that its log-prob and its value are read.
"""
import functools
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minirlhf import UserError
from minirlhf.data import micro_batches, pad
from minirlhf.model import GPT, KVCache, ScalarGPT, TargetLogProb, Trunk, pack

CACHE_BLOCK = 32          # positions by which a sampling cache grows
ASK_EVERY = {"cuda": 8}   # tokens after which generate asks how many rows are left; to ask is to wait for the GPU. Others: 1
SHRINK_AT = {"cuda": 0.75}    # share of live rows at which it drops the rest, which on a GPU costs a new capture. Others: below 1
TOKENS_AT_ONCE = 8192     # of a micro-batch without gradients; and rows x context of a sampling cache, times 4


@dataclass
class Rollout:
    """Prompts with one response each; B rows."""
    prompts: list[str]
    responses: list[str]
    tokens: Tensor             # (B, T) int64, right-padded
    prompt_lengths: Tensor     # (B,) int64
    lengths: Tensor            # (B,) int64, prompt and response together
    finished: Tensor           # (B,) bool: the response ended with EOS, not at the length limit

    @property
    def mask(self) -> Tensor:
        """(B, R) bool: the response's real tokens, EOS among them."""
        response_lengths = self.lengths - self.prompt_lengths
        R = max(1, int(response_lengths.max()))
        return torch.arange(R, device=self.tokens.device) < response_lengths[:, None]

    def select(self, rows: list[int]) -> "Rollout":
        """Some of the rows, trimmed to the longest of them."""
        lengths = self.lengths[rows]
        return replace(self, prompts=[self.prompts[i] for i in rows], responses=[self.responses[i] for i in rows],
                       tokens=self.tokens[rows, : int(lengths.max())], prompt_lengths=self.prompt_lengths[rows],
                       lengths=lengths, finished=self.finished[rows])

    def bundles(self, width: int) -> list[list[int]]:
        """Rows that a model of that width computes as one: responses to the same prompt, as many as pay for it.

        A row of T tokens costs T (6 width + T), linear layers and attention. So the prompt's P tokens, computed once, are
        best shared by responses of sqrt(P (6 width + P)) tokens in all.
        """
        same, lengths, out = defaultdict(list), self.lengths.tolist(), []
        for i, (ids, P) in enumerate(zip(self.tokens.tolist(), self.prompt_lengths.tolist())):
            same[tuple(ids[:P])].append(i)
        for prompt, rows in same.items():
            P = len(prompt)
            most = max(1, int(math.sqrt(P * (6 * width + P)) / max(1, max(lengths[i] for i in rows) - P)))
            out += [rows[i : i + most] for i in range(0, len(rows), most)]
        return out

    def parts(self, width: int, token_budget: int = TOKENS_AT_ONCE) -> list[list[int]]:
        """Rows in micro-batches of bundles of similar length."""
        responses, bundles = (self.lengths - self.prompt_lengths).tolist(), self.bundles(width)
        lengths = [int(self.prompt_lengths[rows[0]]) + sum(responses[i] for i in rows) for rows in bundles]
        return [[i for b in part for i in bundles[b]] for part in micro_batches(lengths, token_budget)]


# ---------------------------------------------------------------------------------------------------- sampling

def choose(logits: Tensor, generator: torch.Generator, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """logits or log-probs (n, V) -> one token a row (n,): the first whose cumulated probability exceeds a uniform number."""
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)      # mass of the tokens ahead of each
        logits = logits.masked_fill((before >= top_p).scatter(-1, index, before >= top_p), -torch.inf)
    mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)                 # float32 would lose the rarest tokens
    uniform = torch.rand(len(mass), 1, dtype=mass.dtype, device=mass.device, generator=generator)
    return torch.searchsorted(mass, uniform * mass[:, -1:], right=True)[:, 0].clamp(max=mass.shape[1] - 1)


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """The one on which graphs are captured: memory is kept by stream, so a new one each time would hoard it."""
    return torch.cuda.Stream()


class Decoder:
    """One more token for each row of a cache. A step's kernels are many and small: on a GPU they are captured as a CUDA graph
    and replayed by a single launch, until the rows are fewer or the cache is a longer one."""

    def __init__(self, model: GPT, cache: KVCache):
        self.model, self.cache, self.captured = model, cache, None

    def __call__(self, new: Tensor, at: Tensor) -> Tensor:
        """new (n,) tokens, at (n,) where they stand -> hidden states (n, D), which the next call overwrites."""
        if at.device.type != "cuda":
            return self.model.hidden(new[:, None], self.cache, at)[:, 0]
        if self.captured != (len(at), self.cache.length):
            self.captured, self.new, self.at = (len(at), self.cache.length), new.clone(), at.clone()
            self.graph = torch.cuda.CUDAGraph()
            now, beside = torch.cuda.current_stream(), side_stream()
            beside.wait_stream(now)
            with torch.cuda.stream(beside):
                self.model.hidden(self.new[:, None], self.cache, self.at)         # libraries set themselves up outside the capture
                self.graph.capture_begin()
                self.last = self.model.hidden(self.new[:, None], self.cache, self.at)[:, 0]
                self.graph.capture_end()
            now.wait_stream(beside)
        self.new.copy_(new)
        self.at.copy_(at)
        self.graph.replay()
        return self.last


@torch.no_grad()
def generate(model: GPT, prompts: list[list[int]], max_tokens: int, generator: torch.Generator, *, temperature=1.0,
             samples_per_prompt=1, top_k=0, top_p=1.0) -> tuple[list[list[int]], list[bool]]:
    """Token ids of ragged prompts -> (responses with their EOS, finished), samples of one prompt side by side.

    One prefill per prompt, however many samples. A row that has emitted EOS is overwritten by a live one, so the batch
    shrinks and finished rows cost nothing more (on a GPU: little). temperature 0 is greedy.
    """
    config, eos, device = model.config, model.tokenizer.eos_id, model.device
    K, B = samples_per_prompt, len(prompts) * samples_per_prompt
    tokens, lengths = (x.to(device) for x in pad(prompts))                 # (P, Tp), (P,)
    room = min(max_tokens, config.n_positions - int(lengths.min()))
    used = tokens.shape[1]                                                 # positions of the cache that hold something
    like = model.wte.weight[:0].to(model.autocast_dtype or model.wte.weight.dtype)
    cache = KVCache(config, len(prompts), min(used + CACHE_BLOCK, config.n_positions), like)
    last = model.hidden(tokens, cache, wanted=(torch.arange(len(prompts), device=device), lengths - 1))     # (P, D)
    last = last.repeat_interleave(K, dim=0)                                                         # (B, D)
    cache.repeat(K)
    at = lengths.repeat_interleave(K)                                      # (n,) where the next token will stand
    row = torch.arange(B, device=device)                                   # (n,) which row of the answer each is
    alive = torch.ones_like(row, dtype=torch.bool)                         # (n,)
    decode, every, enough = Decoder(model, cache), ASK_EVERY.get(device.type, 1), SHRINK_AT.get(device.type, 1.0)
    out = torch.full((B, max(room, 0)), -1, device=device)                 # -1: nothing yet
    for step in range(room):
        logits = model.logits(last, temperature or 1.0)                    # (n, V)
        new = choose(logits, generator, top_k, top_p) if temperature else logits.argmax(-1)         # (n,)
        out[row, step] = torch.where(alive, new, -1)
        alive &= (new != eos) & (at + 1 < config.n_positions)
        n = int(alive.sum()) if step % every == 0 else len(alive)
        if n == 0 or step + 1 == room:
            break
        if n < len(alive) and n <= enough * len(alive):                    # live rows from the end fill the holes
            holes, movers = (~alive[:n]).nonzero()[:, 0], n + alive[n:].nonzero()[:, 0]
            cache.move(holes, movers)
            for x in (at, row, new, alive):
                x[holes] = x[movers]
            at, row, new, alive = at[:n], row[:n], new[:n], alive[:n]
        if used == cache.length < config.n_positions:
            cache.resize(len(at), min(used + CACHE_BLOCK, config.n_positions))
        last = decode(new, at)                                             # (n, D)
        at, used = (at + 1).clamp_(max=config.n_positions - 1), min(used + 1, config.n_positions)
    responses = [ids[: ids.index(-1)] if -1 in ids else ids for ids in out.tolist()]
    return responses, [ids[-1:] == [eos] for ids in responses]


def sample(model: GPT, prompts: list[str], max_tokens: int, generator: torch.Generator, **options) -> Rollout:
    """Prompts' texts -> a Rollout of len(prompts) x samples_per_prompt rows. Options as of `generate`.

    Raises UserError for a prompt that leaves no room in the model's context.
    """
    tokenizer, K = model.tokenizer, options.get("samples_per_prompt", 1)
    ids = [tokenizer.encode_prompt(p) or [tokenizer.eos_id] for p in prompts]      # GPT-2 begins a text with EOS
    for prompt, x in zip(prompts, ids):
        if len(x) >= model.config.n_positions:
            raise UserError(f"a prompt of {len(x)} tokens does not fit the model's context of {model.config.n_positions} "
                            f"(it begins {prompt[:60]!r}): shorten it or take a model with a longer context")
    rows, finished = [], []
    at_once = max(1, 4 * TOKENS_AT_ONCE // (K * (max(map(len, ids)) + max_tokens)))
    for i in range(0, len(ids), at_once):
        r, f = generate(model, ids[i : i + at_once], max_tokens, generator, **options)
        rows, finished = rows + r, finished + f
    ids = [x for x in ids for _ in range(K)]
    prompts = [p for p in prompts for _ in range(K)]
    tokens, lengths = pad([a + b for a, b in zip(ids, rows)])
    return Rollout(prompts, [tokenizer.decode_response(p, r) for p, r in zip(prompts, rows)], tokens.to(model.device),
                   torch.tensor([len(x) for x in ids], device=model.device), lengths.to(model.device),
                   torch.tensor(finished, device=model.device))


# ---------------------------------------------------------------------------------------------------- scoring

def response_hidden(model: Trunk, batch: Rollout) -> Tensor:
    """Hidden states from which the response's tokens are predicted, one after another: (N, D), N = mask.sum()."""
    mask, bundles = batch.mask, batch.bundles(model.config.n_embd)                   # (B, R)
    if len(bundles) == len(mask):
        at = batch.prompt_lengths[:, None] - 1 + torch.arange(mask.shape[1], device=mask.device)
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
        return model.hidden(batch.tokens, wanted=(rows[mask], at[mask]))
    ids, starts, ends = batch.tokens.tolist(), batch.prompt_lengths.tolist(), batch.lengths.tolist()
    tokens, positions, seen, places = pack([(ids[rows[0]][: starts[rows[0]]], [ids[i][starts[i] : ends[i]] for i in rows])
                                            for rows in bundles], model.device)
    place = dict(zip(chain(*bundles), places))                                       # row of the batch -> its response's
    at = [(row, column) for i, start in enumerate(starts) for row, begin, end in [place[i]]
          for column in (start - 1, *range(begin, end - 1))[: end - begin]]          # (N,)
    wanted = torch.tensor(at, dtype=torch.long, device=model.device).view(-1, 2).unbind(1)
    return model.hidden(tokens, positions=positions, seen=seen, wanted=wanted)


def response_tokens(batch: Rollout) -> Tensor:
    """The response's tokens in the order of response_hidden: (N,)."""
    at = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return batch.tokens[(at >= batch.prompt_lengths[:, None]) & (at < batch.lengths[:, None])]


def per_token(flat: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the real tokens -> (B, R), zero in the padding."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def logprobs(policy: GPT, batch: Rollout, temperature: float = 1.0) -> Tensor:
    """THE log-probs of responses (B, R), float32, nats: every stage that needs one calls this."""
    flat = policy.token_logprobs(response_hidden(policy, batch), response_tokens(batch), temperature)
    return per_token(flat, batch.mask)


def values(model: ScalarGPT, batch: Rollout) -> Tensor:
    """Value of the state before each response token (B, R), float32."""
    return per_token(model.scores(response_hidden(model, batch)), batch.mask)


def in_parts(function, model: Trunk, batch: Rollout, *args, grad: bool = False) -> Tensor:
    """function(model, batch, *args) -> (B, R), logprobs or values, in micro-batches of similar length."""
    out = torch.zeros(batch.mask.shape, device=batch.tokens.device)
    with torch.set_grad_enabled(grad):
        for rows in batch.parts(model.config.n_embd):
            part = function(model, batch.select(rows), *args)
            out[rows, : part.shape[1]] = part
    return out


def compare(policy: GPT, reference: GPT, batch: Rollout, temperature: float = 1.0, grad: bool = False) -> Tensor:
    """From one forward of each model, in micro-batches, four (B, R): the policy's and the reference's log-probs as of
    `logprobs`, and of the full distributions KL(policy, reference) and the policy's entropy, nats. grad: of the first."""
    def four(mine: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:               # (n, D), (n, D), (n,) -> (4, n)
        chosen, log_probs = TargetLogProb.apply(policy.logits(mine, temperature), targets)        # (n,), (n, V)
        found = []
        with torch.no_grad():
            for p, hidden, t in zip(*(x.split(reference.logits_rows()) for x in (log_probs, theirs, targets))):
                # losses.exact_kl and losses.entropy from one exp, and without their care for impossible tokens, of which finite
                # logits have none: with it the two take eight times as long on a CPU
                q, probs = reference.log_softmax(hidden, temperature), p.exp()
                kl, entropy = (probs * (p - q)).sum(-1), -(probs * p).sum(-1)
                found.append(torch.stack([q.gather(-1, t[:, None])[:, 0], kl, entropy]))
        return torch.cat([chosen[None], torch.cat(found, 1)])

    out = torch.zeros(4, *batch.mask.shape, device=batch.tokens.device)
    for rows in batch.parts(policy.config.n_embd):
        part = batch.select(rows)
        with torch.no_grad():
            theirs = response_hidden(reference, part)
        with torch.set_grad_enabled(grad):
            mine, targets, n = response_hidden(policy, part), response_tokens(part), policy.logits_rows()
            once = not grad or len(targets) <= n                                      # or else the logits are made again
            found = [four(*x) if once else checkpoint(four, *x, use_reentrant=False)
                     for x in zip(mine.split(n), theirs.split(n), targets.split(n)) if len(targets)]
            if found:
                mask = part.mask.expand(4, *part.mask.shape)
                out[:, rows, : mask.shape[2]] = per_token(torch.cat(found, 1), mask)
    return out
