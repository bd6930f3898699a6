"""The model is GPT-2, whatever the padding, the batch or the cache."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, tiny

from minirlhf import architectures, model, packing
from minirlhf.model import GPT, Config, KVCache, ScalarGPT


def test_logits_loss_and_gradients_equal_transformers():
    path = SHARED / "oracles" / "gpt2_3l_48d_v512.npz"
    if not path.exists():
        pytest.skip("the oracle file is not here")
    oracle = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    weights = {}
    for name, tensor in oracle.items():
        if name.startswith("w."):
            weights[name.removeprefix("w.").removeprefix("transformer.")] = tensor
    gpt = GPT(Config(512, 64, 48, 3, 4)).double()
    gpt.load_hf(weights, path)
    ids = oracle["input_ids"]
    assert (gpt(ids) - oracle["logits"]).abs().max() < 1e-10
    hidden = gpt.hidden(ids)[:, :-1].reshape(-1, 48)
    loss = -gpt.token_logprobs(hidden, ids[:, 1:].reshape(-1)).mean()
    assert loss.item() == pytest.approx(oracle["loss"].item(), abs=1e-6)  # a float32 sum
    loss.backward()
    for name, parameter in gpt.named_parameters():
        ((hf_name, _),) = architectures.hf_tensors(name, len(parameter), gpt.config)
        expected = oracle["g." + hf_name]
        if architectures.is_transposed(name, gpt.config):
            expected = expected.T
        assert (parameter.grad - expected).abs().max() < 1e-7, name


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    gpt = GPT(Config(400, 64, 64, 8, 4))
    std = {name: p.std().item() for name, p in gpt.named_parameters() if p.dim() > 1}
    assert std["wte.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["h.3.c_attn.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["h.3.c_proj.weight"] == pytest.approx(0.02 / 4, rel=0.05)  # 1 / sqrt(2 * 8 layers)
    assert std["h.3.mlp_proj.weight"] == pytest.approx(0.02 / 4, rel=0.05)
    for name, parameter in gpt.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
    tokens = torch.randint(400, (4, 33))
    loss = F.cross_entropy(gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(400), abs=0.1)


@pytest.mark.parametrize("cls", [GPT, ScalarGPT])
def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(tokenizer, cls):
    net = tiny(tokenizer, cls)
    rows = [torch.randint(tokenizer.vocab_size, (n,)) for n in (3, 17, 1, 9)]
    padded = torch.randint(tokenizer.vocab_size, (4, 25))  # garbage in the padding
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    together = net(padded)
    for i, row in enumerate(rows):
        alone = net(row[None])[0]
        assert torch.allclose(together[i, : len(row)], alone, atol=2e-4)


def test_responses_that_share_a_row_score_as_if_alone(tokenizer):
    net = tiny(tokenizer, ScalarGPT)
    ids = [torch.randint(tokenizer.vocab_size, (n,)).tolist() for n in (7, 1, 12, 3, 1, 9, 5)]
    shared = [(ids[0], ids[1]), (ids[0], ids[2]), (ids[0], ids[3])]
    pairs = [*shared, (ids[4], ids[5]), (ids[6], ids[2]), (ids[6], ids[2])]
    alone = [net(torch.tensor([prompt + response]))[0, -1].item() for prompt, response in pairs]
    assert net.score_sequences(pairs).tolist() == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("limit", [0, 20, 512])
def test_neighbours_with_one_prompt_share_it_while_a_row_has_room(limit, tokenizer, monkeypatch):
    monkeypatch.setattr(packing, "PACKED_TOKENS", limit)
    net = tiny(tokenizer, ScalarGPT)
    pairs = [([7, 8, 9], [10, 11]), ([7, 8, 9], [12] * 9), ([7, 8, 9], [13] * 8), ([5], [6])]
    packed = packing.pack(pairs, net.device)
    assert len(packed.tokens) == {0: 4, 20: 3, 512: 2}[limit]
    hidden = packed.hidden(net, packed.predicting)
    alone = []
    for prompt, response in pairs:
        states = net.hidden(torch.tensor([prompt + response]))[0]
        alone.append(states[len(prompt) - 1 : -1])
    assert torch.allclose(hidden, torch.cat(alone), atol=1e-4)


def test_weights_are_cast_once_and_come_back_whole(policy):
    policy.autocast_dtype = torch.bfloat16
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), policy.cast_once():
        assert policy.h[0].c_fc.weight.dtype == torch.bfloat16
        raise KeyboardInterrupt
    assert policy.state_dict().keys() == before.keys()
    for name, weight in policy.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("has_amx", [False, True])
def test_cached_decoding_equals_the_full_forward(policy, monkeypatch, has_amx, dtype):
    monkeypatch.setattr(model, "has_amx", lambda: has_amx)
    policy.autocast_dtype = dtype
    is_rounded = bool(has_amx and dtype)
    lengths = torch.tensor([3, 17, 1, 9])
    rows = torch.arange(4)
    tokens = torch.randint(policy.config.vocab_size, (4, 40))
    with torch.no_grad():
        full = policy.hidden(tokens)
        cache = KVCache(policy, 4, 20)
        assert cache.layers[0].dtype == (torch.bfloat16 if is_rounded else torch.float32)
        policy.hidden(tokens[:, :17], cache)  # ragged prompts; columns behind them are rubbish
        cache.resize(4, 40)
        for i in range(20):
            at = lengths + i
            step = policy.hidden(tokens[rows, at][:, None], cache, at)[:, 0]
            assert torch.allclose(step, full[rows, at], atol=0.05 if dtype else 1e-4)


def test_logits_in_chunks_change_nothing(policy, monkeypatch):
    policy.double()
    hidden = torch.randn(50, 32, dtype=torch.double, requires_grad=True)
    targets = torch.randint(policy.config.vocab_size, (50,))
    inputs = [hidden, policy.wte.weight]
    whole = policy.token_logprobs(hidden, targets, 0.7)
    gradients = torch.autograd.grad(whole.square().sum(), inputs)
    logits = hidden @ policy.wte.weight.T / 0.7
    assert torch.allclose(whole, -F.cross_entropy(logits, targets, reduction="none"))
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", policy.config.vocab_size * 7)
    chunked = policy.token_logprobs(hidden, targets, 0.7)
    assert torch.allclose(chunked, whole)
    for chunked_gradient, gradient in zip(
        torch.autograd.grad(chunked.square().sum(), inputs), gradients
    ):
        assert torch.allclose(chunked_gradient, gradient)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_positions_that_are_not_wanted_are_left_out_and_nothing_else_changes(policy, checkpointing):
    tokens = torch.randint(policy.config.vocab_size, (3, 9))
    wanted = torch.rand(3, 9) < 0.4
    wanted[0, 0] = True
    parameters = list(policy.parameters())
    expected = policy.hidden(tokens)[wanted]
    policy.checkpointing = checkpointing
    for index in (wanted, wanted.nonzero().unbind(1)):
        hidden = policy.hidden(tokens, wanted=index)
        assert torch.allclose(hidden, expected, atol=1e-5)
    gradients = torch.autograd.grad(hidden.square().sum(), parameters)
    for a, b in zip(gradients, torch.autograd.grad(expected.square().sum(), parameters)):
        assert torch.allclose(a, b, atol=1e-3)


def test_bfloat16_products_on_a_cpu_have_round_sizes_and_the_same_results(policy, monkeypatch):
    policy.autocast_dtype = torch.bfloat16
    tokens = torch.randint(policy.config.vocab_size, (7, 13))  # 91 tokens
    wanted = torch.zeros(7, 13, dtype=torch.bool)
    wanted.view(-1)[10:80] = True  # 70 of them
    sizes = set()
    for layer in policy.h.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, _: sizes.add(len(inputs[0])))

    results = []
    for size in (64, 1):
        monkeypatch.setattr(model, "BFLOAT16_ROWS", size)
        sizes.clear()
        whole, part = policy.hidden(tokens), policy.hidden(tokens, wanted=wanted)
        assert sizes == ({128} if size == 64 else {91, 70})
        gradients = torch.autograd.grad(part.square().sum(), list(policy.parameters()))
        results.append((whole, part, *gradients))
    assert whole.shape == (7, 13, 32) and part.shape == (70, 32)
    for rounded, plain in zip(*results):
        assert (rounded - plain).norm() <= 0.01 * plain.norm()


def test_recomputing_blocks_changes_nothing(policy):
    tokens = torch.randint(policy.config.vocab_size, (2, 9))
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(policy(tokens).square().mean(), parameters)
    policy.checkpointing = True
    again = torch.autograd.grad(policy(tokens).square().mean(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again))


@pytest.mark.parametrize("count", [5, 91])  # 91 is computed as 128
def test_logits_under_autocast_are_rounded_before_the_product_alone(policy, count):
    hidden = torch.randn(count, 32, requires_grad=True)
    targets = torch.randint(policy.config.vocab_size, (count,))
    weight = policy.wte.weight
    with torch.no_grad():
        weight.mul_(50)  # likelihoods far from uniform

    def results():
        loss = policy.token_logprobs(hidden, targets).square().sum()
        return policy.logits(hidden), torch.autograd.grad(loss, [hidden, weight])

    precision = torch.backends.mkldnn.matmul.fp32_precision
    exact, exact_gradients = results()
    policy.autocast_dtype = torch.bfloat16
    logits, gradients = results()
    largest = hidden.detach().abs() @ weight.detach().abs().T * 2**-7  # two factors, each by 2^-8
    assert logits.dtype == torch.float32 and ((logits - exact).abs() <= largest).all()
    assert not torch.equal(logits, logits.bfloat16().float())
    for rounded, right in zip(gradients, exact_gradients):
        assert (rounded - right).norm() <= 0.02 * right.norm()
    assert torch.backends.mkldnn.matmul.fp32_precision == precision  # as before
    tokens = torch.randint(policy.config.vocab_size, (2, 9))
    assert policy(tokens).shape == (2, 9, policy.config.vocab_size)


def test_no_tokens_have_no_logits_under_autocast(policy):
    policy.autocast_dtype = torch.bfloat16
    none = torch.zeros(0, 32)
    assert policy.logits(none).shape == (0, policy.config.vocab_size)
    assert policy.token_logprobs(none, torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("vocab_size", [2048, 49152, 50257, 128256, 151936])
def test_chunks_of_logits_are_never_padded(policy, vocab_size):
    policy.config.vocab_size = vocab_size
    policy.autocast_dtype = torch.bfloat16
    rows = policy.logits_rows()
    assert policy.padded_count(rows) == rows
    assert rows * vocab_size <= model.LOGITS_AT_ONCE


def test_a_fresh_reward_model_prefers_nothing(tokenizer):
    net = ScalarGPT(Config(tokenizer.vocab_size, 64, 32, 2, 4, score_mean=0.5, score_std=2.0))
    assert (net(torch.randint(tokenizer.vocab_size, (2, 9))) == (0 - 0.5) / 2).all()
