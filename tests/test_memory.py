"""What memory a run will take: the estimate counts what autograd keeps."""

import os

import pytest
import torch
from conftest import SMALL, tiny

import train_sft
from minirlhf import device
from minirlhf.memory import activation_bytes
from minirlhf.model import GPT, Config, ScalarGPT
from minirlhf.run import Run


def saved_bytes(model, tokens) -> int:
    """What autograd keeps of a forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(tokens)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("n_inner", [None, 100])
@pytest.mark.parametrize("rows", [1, 8])  # with few tokens, copies of the weights are most of it
def test_the_estimate_is_what_autograd_saves(tokenizer, dtype, n_inner, rows):
    config = Config(tokenizer.vocab_size, 128, 64, 4, 4, n_inner=n_inner)
    model = device.place(GPT(config, tokenizer), torch.device("cpu"), dtype, trained=True)
    tokens = torch.randint(300, (rows, 128))
    logits = 12 * tokens.numel() * tokenizer.vocab_size
    estimate = activation_bytes(model, tokens.numel()) - logits
    assert estimate == pytest.approx(saved_bytes(model, tokens), rel=0.15)


def test_checkpointing_keeps_a_third_and_changes_nothing(policy):
    tokens = torch.randint(policy.config.vocab_size, (4, 40))
    outputs = []
    sizes = []
    for checkpointing in (False, True):
        policy.checkpointing = checkpointing
        sizes.append(saved_bytes(policy, tokens))
        policy.zero_grad()
        loss = policy(tokens).square().mean()
        loss.backward()
        outputs.append((loss.item(), policy.wte.weight.grad.clone()))
    assert sizes[1] < sizes[0] / 3
    assert outputs[0][0] == outputs[1][0] and torch.equal(outputs[0][1], outputs[1][1])


def test_frozen_models_in_bf16_give_the_numbers_of_trained_ones(tokenizer):
    tokens = torch.randint(tokenizer.vocab_size, (2, 30))
    cpu = torch.device("cpu")
    for cls in (GPT, ScalarGPT):
        trained = device.place(tiny(tokenizer, cls), cpu, torch.bfloat16, trained=True)
        frozen = device.place(tiny(tokenizer, cls), cpu, torch.bfloat16)
        assert torch.equal(trained.hidden(tokens), frozen.hidden(tokens))
        assert frozen.h[0].c_fc.weight.dtype == torch.bfloat16
        assert trained.h[0].c_fc.weight.dtype == torch.float32
        assert not any(p.requires_grad for p in frozen.parameters())


def test_a_small_run_says_nothing_of_memory(tmp_path, capsys, tokenizer):
    run = Run(train_sft.Settings(out=str(tmp_path / "x"), **SMALL), "train_sft.py")
    run.place(tiny(tokenizer), trained=True)
    assert 0 < run.say_memory() < 1
    assert "memory" not in capsys.readouterr().out


def test_compiled_blocks_give_the_same_numbers(tokenizer):
    if not (torch.cuda.is_available() or os.environ.get("MINIRLHF_TEST_COMPILE")):
        pytest.skip("on a CPU compiling takes a minute: MINIRLHF_TEST_COMPILE=1 does it")
    plain = tiny(tokenizer)
    compiled = device.place(tiny(tokenizer), torch.device("cpu"), None, compile=True)
    for length in (20, 33):
        tokens = torch.randint(tokenizer.vocab_size, (3, length))
        assert torch.allclose(plain(tokens), compiled(tokens), atol=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
