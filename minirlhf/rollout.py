"""Sampling responses with a KV cache, and the log-probs and values of their tokens.

A `Rollout` holds right-padded rows: a prompt and its response. Per-token tensors are (B, R): column
j belongs to the response's j-th token, and `mask` is True where there is one. The token at position
t is predicted from position t - 1, where its log-prob and its value are read.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minirlhf import UserError, cuda, losses, truncate
from minirlhf.batches import fit, micro_batches, pad
from minirlhf.console import waiting
from minirlhf.data import Prompt
from minirlhf.model import GPT, KVCache, ScalarGPT, Trunk
from minirlhf.packing import Sequence, pack, packed_micro_batches
from minirlhf.tokenizer import Tokenizer

CACHE_BLOCK = 32  # positions by which the cache grows
CACHED_AT_ONCE = 32768  # rows * positions of the cache; more prompts are sampled in turn
TOKENS_AT_ONCE = 8192  # tokens of a micro-batch that needs no gradients
CAPTURES = ("cuda",)  # kinds of devices on which a decoding step is captured as a graph
NO_FLOAT64 = ("mps",)  # kinds of devices
NEARLY_0 = 1e-6  # a temperature at which float32 logits over it are coarse or infinite
TEMPERATURE = 0.7  # of a model whose folder names none: what the training scripts sample at


@dataclass
class Rollout:
    """B prompts with one response each."""

    prompts: list[Prompt]
    responses: list[str]
    tokens: Tensor  # (B, T) int64, right-padded
    prompt_lengths: Tensor  # (B,) int64
    lengths: Tensor  # (B,) int64, prompt and response together
    finished: Tensor  # (B,) bool: the response ended with EOS, not at the length limit

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        prompts: list[Prompt],
        responses: list[str],
        device: torch.device,
        finished: list[bool] | None = None,
    ) -> "Rollout":
        """From texts. finished: whether EOS follows each response; None: all."""
        if finished is None:
            finished = [True] * len(prompts)
        prompt_ids = [tokenizer.encode_prompt(prompt.turns) for prompt in prompts]
        response_ids = []
        for prompt, response, ends in zip(prompts, responses, finished):
            response_ids.append(tokenizer.encode_response(prompt.turns, response, ends))
        return cls._of_ids(prompts, responses, prompt_ids, response_ids, finished, device)

    @classmethod
    def _of_ids(cls, prompts, responses, prompt_ids, response_ids, finished, device) -> "Rollout":
        rows = [prompt + response for prompt, response in zip(prompt_ids, response_ids)]
        tokens, lengths = pad(rows)
        return cls(
            prompts,
            responses,
            tokens.to(device),
            torch.tensor([len(ids) for ids in prompt_ids], device=device),
            lengths.to(device),
            torch.tensor(finished, device=device),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def mask(self) -> Tensor:
        """(B, R) bool: the response's real tokens, EOS among them."""
        response_lengths = self.lengths - self.prompt_lengths  # (B,)
        R = max(1, int(response_lengths.max()))
        return torch.arange(R, device=self.tokens.device) < response_lengths[:, None]

    @property
    def is_response(self) -> Tensor:
        """(B, T) bool: the same tokens where they stand in `tokens`."""
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)  # (T,)
        behind_prompt = positions >= self.prompt_lengths[:, None]
        return behind_prompt & (positions < self.lengths[:, None])

    def sequences(self) -> list[Sequence]:
        """Each row's prompt and response as ids."""
        sequences = []
        rows = zip(self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist())
        for ids, prompt_length, length in rows:
            sequences.append((ids[:prompt_length], ids[prompt_length:length]))
        return sequences

    def micro_batches(self, token_budget: int) -> list[list[int]]:
        """Rows for each forward pass; neighbours with one prompt share it (packing.py)."""
        return packed_micro_batches(self.sequences(), token_budget)

    def with_penalty(self, scores: Tensor, unfinished_score: float) -> Tensor:
        """Scores (B,): a response without EOS gets the penalty; no score (NaN) stays none."""
        keeps_score = self.finished | scores.isnan()  # (B,)
        return torch.where(keeps_score, scores, unfinished_score)

    def select(self, rows: list[int]) -> "Rollout":
        """Some of the rows, trimmed to the longest of them."""
        lengths = self.lengths[rows]
        return replace(
            self,
            prompts=[self.prompts[i] for i in rows],
            responses=[self.responses[i] for i in rows],
            tokens=self.tokens[rows, : int(lengths.max())],
            prompt_lengths=self.prompt_lengths[rows],
            lengths=lengths,
            finished=self.finished[rows],
        )


# ---- sampling


def next_tokens(
    model: GPT,
    hidden: Tensor,
    generator: torch.Generator,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """hidden (n, D) -> tokens (n,): drawn, or at temperature 0 the likeliest."""
    if temperature < NEARLY_0:
        return model.logits(hidden).argmax(-1)
    return choose(model.logits(hidden, temperature), generator, top_k, top_p)


def choose(
    logits: Tensor, generator: torch.Generator, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw a token for each row: logits (n, V) -> (n,)."""
    device = logits.device
    if device.type in NO_FLOAT64:  # the CPU has it
        coarse, fine = torch.rand(2, len(logits), 1, device=device, generator=generator).cpu()
        uniform = coarse.double() + fine.double() / 2**24  # (n, 1)
        logits = logits.cpu()
    else:
        options = {"dtype": torch.float64, "device": device, "generator": generator}
        uniform = torch.rand(len(logits), 1, **options)  # (n, 1)
    if top_k > 0:
        k = min(top_k, logits.shape[-1])
        smallest = logits.topk(k, dim=-1).values[:, -1:]  # (n, 1)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        excluded = probs.cumsum(-1) - probs >= top_p  # the likelier tokens already reach top_p
        excluded[:, 0] = False  # the likeliest stays, however small top_p is
        logits = logits.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)
    cumulated = logits.softmax(-1).cumsum(-1, dtype=torch.float64)  # float32 loses rare tokens
    tokens = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)  # (n, 1)
    return tokens[:, 0].clamp(max=logits.shape[1] - 1).to(device)


class Decoder:
    """Runs the model on one more token of each row of a cache.

    On a GPU the step's many small kernels are captured as a CUDA graph and replayed together. A
    new graph is captured when the number of rows or the cache's length changes. Where that fails,
    the steps run one kernel after another.
    """

    def __init__(self, model: GPT, cache: KVCache):
        self.model = model
        self.cache = cache
        self.captures = model.device.type in CAPTURES
        self.shape = None  # (rows, cache length) of the captured graph

    def __call__(self, tokens: Tensor, at: Tensor) -> Tensor:
        """tokens (n,) at positions (n,) -> hidden states (n, D), which the next call overwrites."""
        if self.captures and self.shape != (len(at), self.cache.length):
            self._capture(tokens, at)
        if not self.captures:
            return self._step(tokens, at)
        self.tokens.copy_(tokens)
        self.at.copy_(at)
        self.replay()
        return self.hidden

    def _step(self, tokens: Tensor, at: Tensor) -> Tensor:
        return self.model.hidden(tokens[:, None], self.cache, at)[:, 0]

    def _capture(self, tokens: Tensor, at: Tensor) -> None:
        self.shape = (len(at), self.cache.length)
        self.tokens = tokens.clone()
        self.at = at.clone()
        try:
            self.replay, self.hidden = cuda.capture(lambda: self._step(self.tokens, self.at))
        except RuntimeError as error:
            self.captures = False
            say_once(f"sampling goes on without CUDA graphs, slower: {str(error).splitlines()[0]}")


@functools.cache
def say_once(text: str) -> None:
    print(text)


@torch.no_grad()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_tokens: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    samples_per_prompt: int = 1,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[list[list[int]], list[bool]]:
    """Prompts' ids -> (responses' ids with their EOS, finished), a prompt's samples side by side.

    Each prompt is computed once. Rows that have emitted EOS, or another of the tokenizer's
    stop_ids, leave the batch. Temperature 0 takes the likeliest token.
    """
    device = model.device
    stops = torch.tensor(model.tokenizer.stop_ids, device=device)
    context = model.config.n_positions

    # 1. the prompts; their last positions predict the first tokens
    tokens, lengths = (x.to(device) for x in pad(prompts))  # (P, Tp), (P,)
    used = tokens.shape[1]  # columns of the cache that hold something
    cache = KVCache(model, len(prompts), min(used + CACHE_BLOCK, context))
    last = torch.arange(len(prompts), device=device), lengths - 1
    hidden = model.hidden(tokens, cache, wanted=last)  # (P, D)
    hidden = hidden.repeat_interleave(samples_per_prompt, dim=0)  # (n, D)
    cache.repeat(samples_per_prompt)

    # 2. token by token; n rows are in the batch, and live ones go on
    decode = Decoder(model, cache)
    # Rows that have ended leave the batch: on a CPU at every token; on a GPU every few tokens, once
    # many have ended, since counting waits for it and another number of rows needs another graph
    steps_until_count, live_share_to_shrink = 1, 1.0
    if device.type in CAPTURES:
        steps_until_count = cuda.STEPS_UNTIL_COUNT
        live_share_to_shrink = cuda.LIVE_SHARE_TO_SHRINK
    at = lengths.repeat_interleave(samples_per_prompt)  # (n,) position of the next token
    row = torch.arange(len(at), device=device)  # (n,) where in `out` its response goes
    live = torch.ones_like(row, dtype=torch.bool)  # (n,)
    room = max(0, min(max_tokens, context - int(lengths.min())))
    out = torch.full((len(at), room), -1, device=device)  # -1: nothing
    for step in range(room):
        new = next_tokens(model, hidden, generator, temperature, top_k, top_p)  # (n,)
        out[row, step] = torch.where(live, new, -1)
        stopped = (new[:, None] == stops).any(-1)  # (n,)
        live &= ~stopped & (at + 1 < context)
        if step + 1 == room:
            break
        if step % steps_until_count == 0:
            n = int(live.sum())
            if n == 0:
                break
            if n < len(live) and n <= live_share_to_shrink * len(live):
                holes = (~live[:n]).nonzero()[:, 0]  # filled with live rows from the end
                movers = n + live[n:].nonzero()[:, 0]
                cache.move(holes, movers)
                for x in (at, row, new, live):
                    x[holes] = x[movers]
                at, row, new, live = at[:n], row[:n], new[:n], live[:n]
        if used == cache.length < context:
            cache.resize(len(at), min(used + CACHE_BLOCK, context))
        hidden = decode(new, at)  # (n, D)
        at = (at + 1).clamp(max=context - 1)
        used = min(used + 1, context)

    # 3. as lists
    responses = [ids[: ids.index(-1)] if -1 in ids else ids for ids in out.tolist()]
    stop_ids = model.tokenizer.stop_ids
    return responses, [bool(ids) and ids[-1] in stop_ids for ids in responses]


def sample(
    model: GPT, prompts: list[Prompt], max_tokens: int, generator: torch.Generator, **options
) -> Rollout:
    """A Rollout of len(prompts) * samples_per_prompt rows. Options as in `generate`.

    Raises UserError for a prompt that leaves no room in the model's context.
    """
    tokenizer = model.tokenizer
    context = model.config.n_positions
    prompt_ids = [tokenizer.encode_prompt(prompt.turns) for prompt in prompts]
    for prompt, ids in zip(prompts, prompt_ids):
        if len(ids) >= context:
            raise UserError(
                f"a prompt of {len(ids)} tokens does not fit the model's context of {context} "
                f"({str(prompt.source)[:60]!r}): shorten it or choose a model with a longer context"
            )
    K = options.get("samples_per_prompt", 1)
    lengths = [len(ids) + max_tokens for ids in prompt_ids]
    response_ids = [[]] * (K * len(prompts))
    finished = [False] * (K * len(prompts))
    with model.cast_once(), waiting("sampling", K * len(prompts), "responses") as bar:
        # prompts of like length together: a row of the cache is as long as the longest
        for part in micro_batches(lengths, CACHED_AT_ONCE // K, alike=0):
            to_answer = [prompt_ids[i] for i in part]
            ids, ended = generate(model, to_answer, max_tokens, generator, **options)
            for place, i in enumerate(part):
                response_ids[i * K : (i + 1) * K] = ids[place * K : (place + 1) * K]
                finished[i * K : (i + 1) * K] = ended[place * K : (place + 1) * K]
            bar.update(len(ids))
    prompts = [prompt for prompt in prompts for _ in range(K)]
    prompt_ids = [ids for ids in prompt_ids for _ in range(K)]
    responses = []
    for prompt, ids in zip(prompts, response_ids):
        responses.append(tokenizer.decode_response(prompt.turns, ids))
    return Rollout._of_ids(prompts, responses, prompt_ids, response_ids, finished, model.device)


def prompts_that_fit(
    model: GPT, prompts: list[Prompt], max_tokens: int, cut: bool = False
) -> list[Prompt]:
    """Prompts that leave room for a response of max_tokens; how many do not is printed.

    cut: shorten those that do not. A reward function still gets the whole prompt, a reward model
    the cut one.
    """

    def length(prompt: Prompt) -> int:
        return len(model.tokenizer.encode_prompt(prompt.turns))

    context = model.config.n_positions
    room = context - max_tokens
    if cut:
        whole = prompts
        prompts = []
        for prompt in whole:
            turns = truncate.shorten_prompt(model.tokenizer, prompt.turns, room)
            prompts.append(replace(prompt, turns=turns))
        count = sum(before.turns != after.turns for before, after in zip(whole, prompts))
        truncate.say_cut(count, len(prompts), "prompts", room)
    limit_is = f"the context of {context} less --max_tokens {max_tokens}"
    return fit(prompts, room, "prompts", length, limit_is=limit_is)


# ---- scoring


def response_hidden(model: Trunk, batch: Rollout) -> Tensor:
    """Hidden states that predict the responses' tokens, row by row: (N, D), N = mask.sum()."""
    packed = pack(batch.sequences(), batch.tokens.device)
    return packed.hidden(model, packed.predicting)


def per_token(flat: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the real tokens -> (B, R), zero in the padding."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def sequence_logprobs(policy: GPT, sequences: list[Sequence], temperature: float = 1.0) -> Tensor:
    """Log-probs of the responses' tokens, one response after another (N,), float32, nats.

    RL and DPO, policy and reference: all log-probs of responses are computed here.
    """
    packed = pack(sequences, policy.device)
    hidden = packed.hidden(policy, packed.predicting)  # (N, D)
    targets = [i for _, response in sequences for i in response]
    return policy.token_logprobs(hidden, torch.tensor(targets, device=policy.device), temperature)


def logprobs(policy: GPT, batch: Rollout, temperature: float = 1.0) -> Tensor:
    """The same for a rollout, with a column for each token of a response: (B, R)."""
    return per_token(sequence_logprobs(policy, batch.sequences(), temperature), batch.mask)


def values(model: ScalarGPT, batch: Rollout) -> Tensor:
    """The value of the state before each response token (B, R), float32."""
    return per_token(model.scores(response_hidden(model, batch)), batch.mask)


@torch.no_grad()
def in_micro_batches(
    function: Callable[..., Tensor],
    model: Trunk,
    batch: Rollout,
    *args,
    token_budget: int = TOKENS_AT_ONCE,
) -> Tensor:
    """function(model, batch, *args) -> (B, R), such as logprobs or values, without gradients."""
    out = torch.zeros(batch.mask.shape, device=batch.tokens.device)
    for rows in batch.micro_batches(token_budget):
        part = function(model, batch.select(rows), *args)  # (b, r)
        out[rows, : part.shape[1]] = part
    return out


def exact_kl(policy: GPT, reference: GPT, batch: Rollout, temperature: float = 1.0) -> Tensor:
    """KL(policy, reference) of the full distributions before each response token (B, R), nats.

    Without gradients: for evaluation and tests.
    """

    def kl(policy: GPT, batch: Rollout) -> Tensor:
        rows = policy.logits_rows()
        policy_hidden = response_hidden(policy, batch).split(rows)
        reference_hidden = response_hidden(reference, batch).split(rows)
        chunks = []
        for p_hidden, q_hidden in zip(policy_hidden, reference_hidden):
            log_p = policy.log_softmax(p_hidden, temperature)  # (n, V)
            log_q = reference.log_softmax(q_hidden, temperature)  # (n, V)
            V = min(log_p.shape[-1], log_q.shape[-1])  # the rest pads: no token is there
            chunks.append(losses.exact_kl(log_p[:, :V], log_q[:, :V]))  # (n,)
        return per_token(torch.cat(chunks), batch.mask)

    return in_micro_batches(kl, policy, batch)


@torch.no_grad()
def stream(
    model: GPT,
    prompt: list[int],
    max_tokens: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """A response's ids as they are sampled: those of `generate` for this prompt alone."""
    end = min(len(prompt) + max_tokens, model.config.n_positions)
    cache = KVCache(model, 1, end)
    tokens = torch.tensor([prompt], device=model.device)
    hidden = model.hidden(tokens, cache)[:, -1]  # (1, D)
    for position in range(len(prompt), end):
        new = next_tokens(model, hidden, generator, temperature, top_k, top_p)  # (1,)
        yield int(new)
        if int(new) in model.tokenizer.stop_ids:
            return
        at = torch.tensor([position], device=model.device)
        hidden = model.hidden(new[:, None], cache, at)[:, 0]
