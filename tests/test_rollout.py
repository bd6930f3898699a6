"""Sampling and scoring agree with each other and with the definition of both."""
import pytest
import torch
from conftest import tiny

from minirlhf import UserError, losses, model, rollout
from minirlhf.model import ScalarGPT
from minirlhf.rollout import choose, generate, sample


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_logprobs(policy, row, start, end, temperature):
    """One row, unpadded, full forward, written out."""
    logits = (policy.hidden(torch.tensor([row[:end]])) @ policy.wte.weight.T)[0].double() / temperature
    return [torch.log_softmax(logits[t - 1], -1)[row[t]].item() for t in range(start, end)]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_equal_the_naive_ones(policy, prompts, temperature):
    batch = sample(policy, prompts, 20, gen(), temperature=temperature, samples_per_prompt=2)
    got = rollout.logprobs(policy, batch, temperature)
    in_parts = rollout.in_parts(rollout.logprobs, policy, batch, temperature)
    assert (got - in_parts).abs().max() < 1e-4
    for i in range(len(batch.tokens)):
        start, end = int(batch.prompt_lengths[i]), int(batch.lengths[i])
        wanted = naive_logprobs(policy, batch.tokens[i].tolist(), start, end, temperature)
        assert torch.allclose(got[i, : end - start].double(), torch.tensor(wanted, dtype=torch.double), atol=1e-4)
        assert (got[i, end - start :] == 0).all() and (batch.mask[i].sum() == end - start)


@pytest.mark.parametrize("late", [False, True])
def test_one_prefill_for_many_samples_and_shrinking_batches_change_no_distribution(policy, late, monkeypatch):
    """Greedy continuation is the same alone, in a batch whose rows finish one by one, and with K samples. late: finished rows
    ride along for a while, as on a GPU."""
    if late:
        monkeypatch.setitem(rollout.ASK_EVERY, "cpu", 4)
        monkeypatch.setitem(rollout.SHRINK_AT, "cpu", 0.75)
    prompts = [[5, 6, 7], [9] * 20, [40, 41], [8] * 11, [300, 2, 5, 1]]
    eos_like = generate(policy, prompts, 12, gen(), temperature=0)[0]
    policy.tokenizer.eos_id, before = eos_like[1][3], policy.tokenizer.eos_id          # make rows end at various places
    try:
        together, finished = generate(policy, prompts, 30, gen(), temperature=0, samples_per_prompt=3)
        alone = [generate(policy, [p], 30, gen(), temperature=0) for p in prompts]
    finally:
        policy.tokenizer.eos_id = before
    assert len({len(r) for r in together}) > 1, "some rows must finish early for this test to mean anything"
    for i in range(len(prompts)):
        for k in range(3):
            assert together[3 * i + k] == alone[i][0][0] and finished[3 * i + k] == alone[i][1][0]


def test_a_full_cache_stays_where_it_is(policy, monkeypatch):
    """A captured step writes to the memory that it was captured with."""
    lengths, resize = [], model.KVCache.resize
    monkeypatch.setattr(model.KVCache, "resize", lambda self, rows, length: (lengths.append(length), resize(self, rows, length)))
    policy.tokenizer.eos_id, before = policy.config.vocab_size, policy.tokenizer.eos_id                # nobody ends
    try:
        responses, finished = generate(policy, [[5] * 20, [6, 7]], 64, gen())
    finally:
        policy.tokenizer.eos_id = before
    assert [len(r) for r in responses] == [44, 62] and not any(finished) and lengths == [64]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_samples_the_same_tokens(policy, prompts, monkeypatch):
    policy.cuda()
    ids = [policy.tokenizer.encode_prompt(p) for p in prompts]

    def draw():
        return generate(policy, ids, 40, torch.Generator("cuda").manual_seed(0), samples_per_prompt=3)

    captured = draw()
    monkeypatch.setattr(rollout.Decoder, "__call__", lambda self, new, at: self.model.hidden(new[:, None], self.cache, at)[:, 0])
    assert draw() == captured


def test_greedy_decoding_equals_argmax_of_the_full_forward(policy):
    row = [5, 6, 7]
    got = generate(policy, [row], 10, gen(), temperature=0)[0][0]
    for token in got:
        assert token == int((policy.hidden(torch.tensor([row]))[0, -1] @ policy.wte.weight.T).argmax())
        row = [*row, token]


def test_rollouts_sample_the_models_own_distribution(policy):
    """Frequencies of first tokens over many samples against the exact softmax, by chi square."""
    for temperature in (1.0, 0.7):
        responses, _ = generate(policy, [[5, 6, 7]], 1, gen(1), temperature=temperature, samples_per_prompt=20000)
        count = torch.bincount(torch.tensor([r[0] for r in responses]), minlength=policy.config.vocab_size).double()
        with torch.no_grad():
            expected = policy.log_softmax(policy.hidden(torch.tensor([[5, 6, 7]]))[0, -1], temperature).exp().double() * 20000
        big = expected >= 5
        chi2 = ((count - expected)[big].square() / expected[big]).sum().item()
        assert chi2 < big.sum().item() + 5 * (2 * big.sum().item()) ** 0.5
        rare = expected[~big].sum().item()
        assert count[~big].sum().item() == pytest.approx(rare, abs=5 * rare**0.5 + 5)


def test_top_k_and_top_p():
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    assert set(choose(log_probs, gen(), top_k=2).tolist()) == {0, 1}
    assert set(choose(log_probs, gen(), top_p=0.7).tolist()) == {0, 1}
    assert set(choose(log_probs, gen(), top_p=0.85).tolist()) == {0, 1, 2}
    assert set(choose(log_probs, gen(), top_p=0.01).tolist()) == {0}
    shuffled = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().repeat(4000, 1)
    assert set(choose(shuffled, gen(), top_p=0.7).tolist()) == {1, 3}


def test_finished_means_eos_and_eos_is_inside_the_response(policy, prompts):
    batch = sample(policy, prompts, 40, gen(3), samples_per_prompt=20)
    assert 0 < batch.finished.float().mean() < 1
    for i in range(len(batch.tokens)):
        response = batch.tokens[i, batch.prompt_lengths[i] : batch.lengths[i]].tolist()
        eos = policy.tokenizer.eos_id
        assert (response[-1] == eos) == bool(batch.finished[i]) and eos not in response[:-1]
        assert "<|endoftext|>" not in batch.responses[i]


def test_the_context_is_a_limit(policy):
    room = policy.config.n_positions
    batch = sample(policy, ["x " * 28], 1000, gen(), samples_per_prompt=8)
    assert int(batch.lengths.max()) <= room
    with pytest.raises(UserError, match="does not fit the model's context of 64"):
        sample(policy, ["x " * 200], 10, gen())


def test_values_are_read_before_each_token(tokenizer, policy, prompts):
    value = tiny(tokenizer, ScalarGPT)
    batch = sample(policy, prompts, 9, gen())
    got = rollout.values(value, batch)
    for i in range(len(prompts)):
        start, end = int(batch.prompt_lengths[i]), int(batch.lengths[i])
        alone = value.scores(value.hidden(batch.tokens[i : i + 1, :end]))[0, start - 1 : end - 1]
        assert torch.allclose(got[i, : end - start], alone, atol=1e-4)


def test_exact_kl_and_the_mean_of_k1_agree(tokenizer, policy):
    reference = tiny(tokenizer, seed=1)
    batch = sample(policy, ["The fox"], 6, gen(), samples_per_prompt=4000)
    old, ref, kl, entropy = rollout.compare(policy, reference, batch)
    with torch.no_grad():
        assert (old - rollout.logprobs(policy, batch)).abs().max() < 1e-4
        assert (ref - rollout.logprobs(reference, batch)).abs().max() < 1e-4
    k1, _, _ = losses.kl_estimates(old, ref)
    k1, exact = k1.sum(1), kl.sum(1)
    assert exact.min() >= 0 and exact.mean() > 1
    assert k1.mean().item() == pytest.approx(exact.mean().item(), abs=4 * (k1.std() / 4000**0.5).item())
    assert entropy[batch.mask].min() >= 0 and (kl[~batch.mask] == 0).all()


def test_responses_that_share_a_prompt_are_computed_as_if_alone(tokenizer, policy, prompts):
    """Log-probs, values and gradients; responses of no token and of one among them, more of one prompt than one row takes."""
    value = tiny(tokenizer, ScalarGPT)
    torch.nn.init.normal_(value.score.weight)
    batch = sample(policy, prompts, 12, gen(), samples_per_prompt=6)
    short = torch.arange(len(batch.lengths)) % 6 < 2                                  # cut to 0 and 1 tokens
    batch.lengths = torch.where(short, batch.prompt_lengths + torch.arange(len(short)) % 6, batch.lengths)
    bundles = batch.bundles(policy.config.n_embd)
    assert sorted(i for rows in bundles for i in rows) == [*range(len(short))] and 1 < max(map(len, bundles)) < len(bundles)
    for net, function in ((policy, rollout.logprobs), (value, rollout.values)):
        together = function(net, batch)
        for i, (start, end) in enumerate(zip(batch.prompt_lengths.tolist(), batch.lengths.tolist())):
            alone = function(net, batch.select([i]))[0]
            assert torch.allclose(together[i, : end - start], alone[: end - start], atol=1e-4)
        weights = torch.randn(together.shape)
        mine = torch.autograd.grad((together * weights).sum(), [*net.parameters()])
        parts = [(function(net, batch.select([i]))[0] * weights[i, : int(batch.select([i]).mask.shape[1])]).sum()
                 for i in range(len(short))]
        for got, wanted in zip(mine, torch.autograd.grad(sum(parts), [*net.parameters()])):
            assert torch.allclose(got, wanted, atol=1e-3)
    for budget in (1, 40, 10**6):
        assert sorted(i for rows in batch.parts(policy.config.n_embd, budget) for i in rows) == [*range(len(short))]


@pytest.mark.parametrize("at_once", [2**24, 7 * 320])
def test_the_gradient_of_the_compared_logprobs_is_theirs(tokenizer, policy, prompts, at_once, monkeypatch):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", at_once)
    reference = tiny(tokenizer, seed=1)
    batch = sample(policy, prompts, 12, gen(), samples_per_prompt=2)
    found = rollout.compare(policy, reference, batch, 0.7, grad=True)
    assert torch.allclose(found, rollout.compare(policy, reference, batch, 0.7), atol=1e-5)
    p, q = (x.log_softmax(rollout.response_hidden(x, batch), 0.7) for x in (policy, reference))         # (N, V)
    assert torch.allclose(found[2][batch.mask], losses.exact_kl(p, q), atol=1e-4)
    assert torch.allclose(found[3][batch.mask], losses.entropy(p), atol=1e-4)
    weights = torch.randn(batch.mask.shape)
    for got, wanted in zip(*(torch.autograd.grad((x * weights).sum(), [*policy.parameters()])
                             for x in (found[0], rollout.logprobs(policy, batch, 0.7)))):
        assert torch.allclose(got, wanted, atol=1e-3)


def test_selecting_rows_changes_nothing_about_them(policy, prompts):
    batch = sample(policy, prompts, 15, gen())
    whole = rollout.logprobs(policy, batch)
    part = batch.select([3, 1])
    got = rollout.logprobs(policy, part)
    assert torch.allclose(got, whole[[3, 1], : got.shape[1]], atol=1e-4)
    assert part.responses == [batch.responses[3], batch.responses[1]]
