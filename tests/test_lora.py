"""LoRA: starts at the model, trains nothing else, shares its weights with the reference, and is merged when saved."""
import copy
import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file

import train_ppo
import train_sft
from minirlhf import UserError, lora, rollout
from minirlhf.model import GPT, ScalarGPT
from minirlhf.run import Run, read_jsonl

TOKENS = torch.arange(40).view(2, 20)


def moved(model):
    """Adapters as training would leave them."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_b" in name:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def test_adapters_start_at_the_model_and_the_base_stays_it(policy):
    before = policy.hidden(TOKENS)
    lora.add(policy, 4, 8.0, seed=0)
    assert torch.equal(policy.hidden(TOKENS), before)
    reference = lora.base(policy)
    moved(policy)
    assert not torch.allclose(policy.hidden(TOKENS), before, atol=1e-2)
    assert torch.equal(reference.hidden(TOKENS), before)
    mine = {p.data_ptr() for p in policy.parameters()}
    assert {p.data_ptr() for p in reference.parameters()} <= mine and reference.tokenizer is policy.tokenizer
    assert not any(p.requires_grad for p in reference.parameters())


def test_an_adapter_is_w_plus_scaled_b_a(policy):
    lora.add(policy, 3, 6.0, seed=0)
    moved(policy)
    layer, x = policy.h[0].c_fc, torch.randn(5, 32)
    full = layer.weight + 6.0 / 3 * layer.lora_b @ layer.lora_a
    assert torch.allclose(layer(x), x @ full.T + layer.bias, atol=1e-5)


def test_only_adapters_and_a_scalar_head_are_trained(tokenizer):
    for cls in (GPT, ScalarGPT):
        model = lora.add(tiny(tokenizer, cls), 4, 8.0, seed=0)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        layers = {f"h.{i}.{layer}.{x}" for i in range(2) for layer in ("c_attn", "c_proj", "c_fc", "mlp_proj")
                  for x in ("lora_a", "lora_b")}
        assert trained == layers | ({"score.weight"} if cls is ScalarGPT else set())


def test_merged_it_says_the_same_as_a_plain_model_folder(policy, tmp_path):
    names = set(policy.state_dict())
    expected = moved(lora.add(policy, 4, 8.0, seed=0)).hidden(TOKENS)
    lora.merge(policy).save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert set(again.state_dict()) == names and torch.allclose(again.hidden(TOKENS), expected, atol=1e-4)
    assert lora.merge(again) is again


def test_under_autocast_the_base_takes_half_the_memory_and_says_the_same(policy, tmp_path):
    policy.autocast_dtype = torch.bfloat16
    before = policy.hidden(TOKENS)
    lora.add(policy, 4, 8.0, seed=0)
    assert policy.h[0].c_fc.weight.dtype == torch.bfloat16 and policy.h[0].c_fc.lora_a.dtype == torch.float32
    assert torch.equal(policy.hidden(TOKENS), before) and torch.equal(lora.base(policy).hidden(TOKENS), before)
    expected = moved(policy).hidden(TOKENS)
    lora.merge(policy).save_pretrained(tmp_path)
    assert {x.dtype for x in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    again = GPT.from_pretrained(tmp_path)
    again.autocast_dtype = torch.bfloat16
    assert (again.hidden(TOKENS) - expected).abs().mean() < 0.05 * (expected - before).abs().mean()


def test_rank_zero_is_no_lora_and_the_seed_alone_decides(policy):
    state = copy.deepcopy(policy).state_dict()
    assert lora.add(policy, 0, 8.0, seed=0).state_dict().keys() == state.keys()
    assert all(p.requires_grad for p in policy.parameters())
    a, b, c = (lora.add(copy.deepcopy(policy), 4, 8.0, seed=s).h[1].c_attn.lora_a for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    for rank in (-1, 33):
        with pytest.raises(UserError, match=f"--lora_rank {rank}: take 1 to 32"):
            lora.add(policy, rank, 8.0, seed=0)


def test_cached_sampling_and_rescoring_agree_with_adapters_on(policy, prompts):
    moved(lora.add(policy, 4, 8.0, seed=0))
    batch = rollout.sample(policy, prompts, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = rollout.logprobs(policy, batch)
        parts = rollout.in_parts(rollout.logprobs, policy, batch)
    assert torch.allclose(whole, parts, atol=1e-4)


# --- the scripts

class Killed(Exception):
    pass


@pytest.fixture
def folder(tokenizer, tmp_path):
    tiny(tokenizer, spread=2.0).save_pretrained(tmp_path / "sft")
    tiny(tokenizer, ScalarGPT, spread=2.0).save_pretrained(tmp_path / "rm")
    lines = [{"prompt": p, "completion": "It is 5."} for p in ("What is 2 + 3?", "Tell me of a fox.", "Why not?", "Who ran?")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path


def settings_of(stage, folder, out):
    common = {"init": str(folder / "sft"), "data": str(folder / "data.jsonl"), "out": str(folder / out), "lora_rank": 4, "steps": 4,
              "save_every": 2, "lr": 1e-2, "warmup": 1}
    if stage == "sft":
        return train_sft.Settings(**common, batch_size=2, validation=0.3)
    return train_ppo.Settings(**common, reward=str(folder / "rm"), prompts_per_step=4, max_tokens=6)


MAIN = {"sft": train_sft.main, "ppo": train_ppo.main}


@pytest.mark.parametrize("stage", MAIN)
def test_killed_and_resumed_it_ends_bit_for_bit_the_same_plain_model(stage, folder, monkeypatch):
    log = Run.log

    def die(self, step, *args, **kwargs):
        row = log(self, step, *args, **kwargs)
        if step == 2:
            raise Killed
        return row

    whole, cut = (settings_of(stage, folder, x) for x in ("whole", "cut"))
    MAIN[stage](whole)
    with monkeypatch.context() as m:
        m.setattr(Run, "log", die)
        with pytest.raises(Killed):
            MAIN[stage](cut)
    MAIN[stage](replace(cut, resume=True))
    before, after, cut = (load_file(folder / x / "model.safetensors") for x in ("sft", "whole", "cut"))
    assert before.keys() == after.keys() == cut.keys() and all(torch.equal(after[k], cut[k]) for k in after)
    changed = {k.split(".")[-2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"c_attn", "c_proj", "c_fc"}            # weights of the linear layers (the MLP's is a c_proj too)
    assert all(torch.equal(before[k], after[k]) for k in before if k.endswith("bias") or "wte" in k or "ln" in k)
    if stage == "ppo":
        rows = read_jsonl(folder / "whole" / "metrics.jsonl")
        assert rows[0]["kl"] == 0 and rows[-1]["kl"] != 0 and max(r["first_ratio_off"] for r in rows) < 1e-4


def test_a_fresh_model_has_nothing_to_adapt(folder):
    with pytest.raises(UserError, match="give it as --init"):
        train_sft.main(replace(settings_of("sft", folder, "x"), init=""))
