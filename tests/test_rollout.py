"""Sampling and scoring agree with each other and with the definition of both."""

import pytest
import torch
from conftest import tiny

from minirlhf import UserError, model, rollout
from minirlhf.data import Prompt
from minirlhf.model import ScalarGPT
from minirlhf.rollout import Rollout, choose, generate, sample


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def bounds(batch):
    """(start, end) of each response in its row."""
    return list(zip(batch.prompt_lengths.tolist(), batch.lengths.tolist()))


# ---- sampling


def test_greedy_continuations_do_not_depend_on_the_batch(policy, monkeypatch):
    prompts = [[5, 6, 7], [9] * 20, [40, 41], [8] * 11, [300, 2, 5, 1]]
    responses, _ = generate(policy, prompts, 12, gen(), temperature=0)
    monkeypatch.setattr(policy.tokenizer, "stop_ids", [responses[1][3]])  # rows end anywhere
    together, finished = generate(policy, prompts, 30, gen(), temperature=0, samples_per_prompt=3)
    assert len({len(response) for response in together}) > 1
    for i, prompt in enumerate(prompts):
        alone, alone_finished = generate(policy, [prompt], 30, gen(), temperature=0)
        for k in range(3):
            assert together[3 * i + k] == alone[0]
            assert finished[3 * i + k] == alone_finished[0]


def test_greedy_decoding_is_the_argmax_of_the_full_forward(policy):
    row = [5, 6, 7]
    responses, _ = generate(policy, [row], 10, gen(), temperature=0)
    for token in responses[0]:
        assert token == int(policy(torch.tensor([row]))[0, -1].argmax())
        row = [*row, token]


def test_rows_that_never_end_fill_the_context(policy, monkeypatch):
    monkeypatch.setattr(policy.tokenizer, "stop_ids", [policy.config.vocab_size])  # none ends
    responses, finished = generate(policy, [[5] * 20, [6, 7]], 64, gen())
    assert [len(response) for response in responses] == [44, 62]
    assert not any(finished)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_sample_the_models_own_distribution(policy, temperature):
    """First tokens of many samples against the exact softmax, by chi square."""
    n = 20000
    options = {"temperature": temperature, "samples_per_prompt": n}
    responses, _ = generate(policy, [[5, 6, 7]], 1, gen(1), **options)
    first = torch.tensor([response[0] for response in responses])
    count = torch.bincount(first, minlength=policy.config.vocab_size).double()
    with torch.no_grad():
        hidden = policy.hidden(torch.tensor([[5, 6, 7]]))[0, -1]
        expected = policy.log_softmax(hidden, temperature).exp().double() * n
    common = expected >= 5
    chi_square = ((count - expected)[common].square() / expected[common]).sum().item()
    degrees = common.sum().item()
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5
    rare = expected[~common].sum().item()
    assert count[~common].sum().item() == pytest.approx(rare, abs=5 * rare**0.5 + 5)


def test_top_k_and_top_p():
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    assert set(choose(log_probs, gen(), top_k=2).tolist()) == {0, 1}
    assert set(choose(log_probs, gen(), top_p=0.7).tolist()) == {0, 1}
    assert set(choose(log_probs, gen(), top_p=0.85).tolist()) == {0, 1, 2}
    assert set(choose(log_probs, gen(), top_p=0.01).tolist()) == {0}
    shuffled = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().repeat(4000, 1)
    assert set(choose(shuffled, gen(), top_p=0.7).tolist()) == {1, 3}


@pytest.mark.parametrize("options", [{"temperature": 1e-40}, {"top_p": 1e-50}, {"top_k": 1}])
def test_the_least_random_settings_take_the_likeliest_token(policy, prompts, options):
    ids = [policy.tokenizer.encode_prompt(prompt.turns) for prompt in prompts]
    greedy, _ = generate(policy, ids, 8, torch.Generator(), temperature=0)
    drawn, _ = generate(policy, ids, 8, torch.Generator().manual_seed(0), **options)
    assert drawn == greedy


class NoFloat64(torch.Tensor):
    """A tensor of a device that lacks float64, as mps does, until it is moved to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("no float64 on this device")
        return result


def test_sampling_needs_no_float64_of_the_device(monkeypatch):
    logits = torch.tensor([[0.0, -1.0, -2.0, -15.0]]).expand(100_000, 4).as_subclass(NoFloat64)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(TypeError, match="float64"):
        choose(logits, generator)
    monkeypatch.setattr(rollout, "NO_FLOAT64", ("cpu",))
    tokens = choose(logits, generator)
    expected = logits[0].softmax(-1) * len(logits)
    counts = torch.bincount(torch.Tensor(tokens).long(), minlength=4)
    assert (((counts - expected) ** 2 / expected)[:3]).sum() < 13.8  # chi-square, p = 0.001
    assert choose(logits, generator, top_k=2, top_p=0.99).max() == 1


def test_any_stop_id_ends_a_response_and_stays_in_it(policy, monkeypatch):
    free, _ = generate(policy, [[5, 6, 7]], 20, gen(), temperature=0)
    stop = free[0][5]
    monkeypatch.setattr(policy.tokenizer, "stop_ids", (policy.tokenizer.eos_id, stop))
    responses, finished = generate(policy, [[5, 6, 7]], 20, gen(), temperature=0)
    assert responses == [free[0][: free[0].index(stop) + 1]]
    assert finished == [True]


def test_ids_without_a_token_are_never_sampled(tokenizer, monkeypatch):
    kept = {token: i for token, i in tokenizer.vocab.items() if i < 100 or i == tokenizer.eos_id}
    monkeypatch.setattr(tokenizer, "vocab", kept)
    padded = tiny(tokenizer)
    responses, _ = generate(padded, [[5, 6]], 10, gen(), samples_per_prompt=50)
    assert {i for response in responses for i in response} <= set(kept.values())


def test_finished_means_eos_and_eos_is_inside_the_response(policy, prompts):
    batch = sample(policy, prompts, 40, gen(3), samples_per_prompt=20)
    eos = policy.tokenizer.eos_id
    assert 0 < batch.finished.float().mean() < 1
    for i, (start, end) in enumerate(bounds(batch)):
        response = batch.tokens[i, start:end].tolist()
        assert (response[-1] == eos) == bool(batch.finished[i])
        assert eos not in response[:-1]
        assert "<|endoftext|>" not in batch.responses[i]


def test_prompts_that_are_sampled_in_turn_keep_their_own_answers(policy, monkeypatch):
    texts = ["a b c", "what is the sea?", "x", "the sea is " * 4, "y y y y"]
    prompts = [Prompt.of(text) for text in texts]  # neither longest nor shortest first
    options = {"samples_per_prompt": 3, "temperature": 0}
    at_once = sample(policy, prompts, 5, gen(), **options)
    monkeypatch.setattr(rollout, "CACHED_AT_ONCE", 100)
    in_turn = sample(policy, prompts, 5, gen(), **options)
    assert in_turn.prompts == [prompt for prompt in prompts for _ in range(3)]
    assert in_turn.responses == at_once.responses and len(set(at_once.responses)) > 1
    assert torch.equal(in_turn.tokens, at_once.tokens)
    assert torch.equal(in_turn.finished, at_once.finished)


def test_the_context_is_a_limit(policy):
    batch = sample(policy, [Prompt.of("x " * 28, "raw")], 1000, gen(), samples_per_prompt=8)
    assert int(batch.lengths.max()) <= policy.config.n_positions
    with pytest.raises(UserError, match="context of 64"):
        sample(policy, [Prompt.of("x " * 200)], 10, gen())


def test_sampled_ids_are_those_of_the_texts(policy, prompts):
    sampled = sample(policy, prompts, 8, gen())
    finished = sampled.finished.tolist()
    again = Rollout.of(
        policy.tokenizer, prompts, sampled.responses, policy.device, finished=finished
    )
    for i, (start, _) in enumerate(bounds(sampled)):
        assert torch.equal(again.tokens[i, :start], sampled.tokens[i, :start])
    assert torch.equal(again.finished, sampled.finished)
    for i, (_, end) in enumerate(bounds(again)):
        ends_with_eos = int(again.tokens[i, end - 1]) == policy.tokenizer.eos_id
        assert ends_with_eos == finished[i]


# ---- scoring


def naive_logprobs(policy, row, start, end, temperature):
    """One row, unpadded, full forward, written out."""
    logits = policy(torch.tensor([row[:end]]))[0].double() / temperature
    log_probs = logits.log_softmax(-1)
    return torch.stack([log_probs[t - 1, row[t]] for t in range(start, end)])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_equal_the_naive_ones(policy, prompts, temperature):
    batch = sample(policy, prompts, 20, gen(), temperature=temperature, samples_per_prompt=2)
    logprobs = rollout.logprobs(policy, batch, temperature)
    for i, (start, end) in enumerate(bounds(batch)):
        expected = naive_logprobs(policy, batch.tokens[i].tolist(), start, end, temperature)
        assert torch.allclose(logprobs[i, : end - start].double(), expected, atol=1e-4)
        assert (logprobs[i, end - start :] == 0).all()
        assert batch.mask[i].sum() == end - start


def test_values_are_read_before_each_token(tokenizer, policy, prompts):
    value = tiny(tokenizer, ScalarGPT)
    batch = sample(policy, prompts, 9, gen())
    values = rollout.values(value, batch)
    for i, (start, end) in enumerate(bounds(batch)):
        alone = value(batch.tokens[i : i + 1, :end])[0, start - 1 : end - 1]
        assert torch.allclose(values[i, : end - start], alone, atol=1e-4)


def test_micro_batches_change_nothing_but_rounding(tokenizer, policy, prompts):
    value = tiny(tokenizer, ScalarGPT)
    batch = sample(policy, prompts, 20, gen(), samples_per_prompt=2)
    for net, function in ((policy, rollout.logprobs), (value, rollout.values)):
        whole = function(net, batch)
        for budget in (1, 100, 10**6):
            parts = rollout.in_micro_batches(function, net, batch, token_budget=budget)
            assert torch.allclose(whole, parts, atol=1e-4)
            assert not parts.requires_grad


def test_responses_of_no_token_survive(policy, prompts):
    texts = ["", "It is 5.", "", "x", "y"]
    finished = [False, True, False, False, True]
    batch = Rollout.of(policy.tokenizer, prompts, texts, policy.device, finished=finished)
    logprobs = rollout.logprobs(policy, batch)
    assert batch.mask.sum(1).tolist()[0::2] == [0, 0, 3]
    assert (logprobs[0] == 0).all()
    empty = batch.select([0, 2])
    assert rollout.logprobs(policy, empty).shape == (2, 1)
    assert rollout.exact_kl(policy, policy, empty).shape == (2, 1)


def test_selecting_rows_changes_nothing_about_them(policy, prompts):
    batch = sample(policy, prompts, 15, gen())
    part = batch.select([3, 1])
    logprobs = rollout.logprobs(policy, part)
    whole = rollout.logprobs(policy, batch)[[3, 1], : logprobs.shape[1]]
    assert torch.allclose(logprobs, whole, atol=1e-4)
    assert part.responses == [batch.responses[3], batch.responses[1]]
    assert part.prompts == [prompts[3], prompts[1]]


def test_garbage_in_padding_changes_no_gradient(policy, prompts):
    batch = sample(policy, prompts, 12, gen())
    parameters = list(policy.parameters())
    weights = torch.randn(batch.mask.shape)
    loss = (rollout.logprobs(policy, batch) * weights).sum()
    gradients = torch.autograd.grad(loss, parameters)
    padding = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    batch.tokens[padding] = 7
    again = (rollout.logprobs(policy, batch) * weights).sum()
    for a, b in zip(torch.autograd.grad(again, parameters), gradients):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("logits_at_once", [2**24, 7 * 320])
def test_exact_kl_is_that_of_the_full_distributions(
    tokenizer, policy, prompts, logits_at_once, monkeypatch
):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", logits_at_once)
    reference = tiny(tokenizer, seed=1)
    batch = sample(policy, prompts, 12, gen())
    kl = rollout.exact_kl(policy, reference, batch, 0.7)
    assert (kl[~batch.mask] == 0).all()
    for i, (start, end) in enumerate(bounds(batch)):
        states = slice(start - 1, end - 1)
        row = batch.tokens[i : i + 1, :end]
        log_p = (policy(row)[0, states].double() / 0.7).log_softmax(-1)
        log_q = (reference(row)[0, states].double() / 0.7).log_softmax(-1)
        expected = (log_p.exp() * (log_p - log_q)).sum(-1)
        assert torch.allclose(kl[i, : end - start].double(), expected, atol=1e-3)


def test_exact_kl_of_models_whose_vocabularies_are_padded_differently(tokenizer, policy, prompts):
    padded = tiny(tokenizer, seed=1, vocab_size=tokenizer.vocab_size + 24)
    with torch.no_grad():
        padded.wte.weight[: tokenizer.vocab_size] = policy.wte.weight
        padded.wpe.weight.copy_(policy.wpe.weight)
        padded.h.load_state_dict(policy.h.state_dict())
    batch = sample(policy, prompts, 12, gen())
    for pair in ((policy, padded), (padded, policy)):
        assert rollout.exact_kl(*pair, batch).abs().max() < 1e-4


def test_exact_kl_is_the_mean_log_ratio(tokenizer, policy):
    reference = tiny(tokenizer, seed=1)
    prompt = [Prompt.of("The fox", "raw")]
    batch = sample(policy, prompt, 6, gen(), samples_per_prompt=2000)
    exact = rollout.exact_kl(policy, reference, batch).sum(1)  # (B,)
    policy_logprobs = rollout.in_micro_batches(rollout.logprobs, policy, batch)
    reference_logprobs = rollout.in_micro_batches(rollout.logprobs, reference, batch)
    k1 = (policy_logprobs - reference_logprobs).sum(1)  # (B,)
    assert exact.min() >= 0
    assert exact.mean() > 1
    error = (k1.std() / 2000**0.5).item()
    assert k1.mean().item() == pytest.approx(exact.mean().item(), abs=4 * error)
