"""LoRA starts at the model, trains nothing else, shares its weights and is merged when saved."""

import copy

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file

from minirlhf import UserError, lora, rollout
from minirlhf.model import GPT, ScalarGPT

TOKENS = torch.arange(40).view(2, 20)
LAYERS = ("c_attn", "c_proj", "c_fc", "mlp_proj")


def with_trained_adapters(model):
    """Adapters on, as training would leave them."""
    lora.add(model, 4, 8.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


def test_adapters_start_at_the_model_and_the_base_stays_it(policy):
    before = policy(TOKENS)
    lora.add(policy, 4, 8.0, seed=0)
    assert torch.equal(policy(TOKENS), before)
    reference = lora.base(policy)
    for name, parameter in policy.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(policy(TOKENS), before, atol=1e-2)
    assert torch.equal(reference(TOKENS), before)


def test_the_base_shares_the_models_memory(policy):
    reference = lora.base(lora.add(policy, 4, 8.0, seed=0))
    addresses = {parameter.data_ptr() for parameter in policy.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} <= addresses
    assert reference.tokenizer is policy.tokenizer
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_an_adapter_is_w_plus_scaled_b_a(policy):
    layer = with_trained_adapters(policy).h[0].c_fc
    x = torch.randn(5, 32)
    full = layer.weight + 8.0 / 4 * layer.lora_b @ layer.lora_a
    assert torch.allclose(layer(x), x @ full.T + layer.bias, atol=1e-5)


@pytest.mark.parametrize("cls", [GPT, ScalarGPT])
def test_only_adapters_and_a_scalar_head_are_trained(tokenizer, cls):
    model = lora.add(tiny(tokenizer, cls), 4, 8.0, seed=0)
    expected = {"score.weight"} if cls is ScalarGPT else set()
    for i in range(2):
        for layer in LAYERS:
            expected |= {f"h.{i}.{layer}.lora_a", f"h.{i}.{layer}.lora_b"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected


def test_merged_it_is_a_plain_model_with_the_same_outputs(policy, tmp_path):
    names = set(policy.state_dict())
    expected = with_trained_adapters(policy)(TOKENS)
    lora.merge(policy).save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert set(again.state_dict()) == names
    assert torch.allclose(again(TOKENS), expected, atol=1e-3)
    assert lora.merge(again) is again


def test_untrained_adapters_save_the_very_weights_under_autocast(policy, tmp_path):
    policy.save_pretrained(tmp_path / "before")
    policy.autocast_dtype = torch.bfloat16
    lora.add(policy, 4, 8.0, seed=0)
    lora.merge(policy).save_pretrained(tmp_path / "after")
    before = load_file(tmp_path / "before" / "model.safetensors")
    after = load_file(tmp_path / "after" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rank_zero_is_no_lora(policy):
    names = list(policy.state_dict())
    assert list(lora.add(policy, 0, 8.0, seed=0).state_dict()) == names
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_the_seed_alone_decides_the_adapters(policy):
    def adapter(seed):
        return lora.add(copy.deepcopy(policy), 4, 8.0, seed).h[1].c_attn.lora_a

    assert torch.equal(adapter(0), adapter(0))
    assert not torch.equal(adapter(0), adapter(1))


@pytest.mark.parametrize("rank", [-1, 33])
def test_a_rank_that_is_none_is_refused(policy, rank):
    with pytest.raises(UserError, match=f"--lora_rank {rank}"):
        lora.add(policy, rank, 8.0, seed=0)


def test_sampling_and_scoring_agree_with_adapters_on(policy, prompts):
    with_trained_adapters(policy)
    batch = rollout.sample(policy, prompts, 8, torch.Generator().manual_seed(0))
    logprobs = rollout.logprobs(policy, batch)
    greedy = rollout.sample(policy, prompts, 1, torch.Generator(), temperature=0)
    first = torch.stack([row[n] for row, n in zip(greedy.tokens, greedy.prompt_lengths)])
    full = policy(greedy.tokens)[torch.arange(len(greedy)), greedy.prompt_lengths - 1]
    assert torch.equal(first, full.argmax(-1))
    parts = rollout.in_micro_batches(rollout.logprobs, policy, batch, token_budget=50)
    assert torch.allclose(logprobs, parts, atol=1e-4)
