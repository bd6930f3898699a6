"""Llama's block, in Llama, Mistral, Qwen2 and Qwen3: alone, and beside transformers."""

import json

import pytest
import torch
from conftest import SMALL, tiny
from safetensors.torch import load_file

import train_sft
from minirlhf import UserError, checkpoint, device, lora, rollout
from minirlhf.memory import activation_bytes
from minirlhf.model import GPT, Config, KVCache, ScalarGPT, rotary_at

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "llama": {"model_type": "llama"},
    "llama3": {"model_type": "llama", "n_kv_head": 2, "rope_theta": 50.0, "rope_scaling": LLAMA3},
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "n_kv_head": 1},
    "mistral": {"model_type": "mistral", "n_kv_head": 2, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "n_kv_head": 2, "attention_bias": True},
    "qwen3": {"model_type": "qwen3", "n_kv_head": 2, "head_dim": 12},
}


def make(tokenizer, kind, cls=GPT):
    """A tiny model of a kind, whose gains and biases are random too."""
    model = tiny(tokenizer, cls, n_inner=40, **KINDS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# ---- the same numbers on every path


@pytest.mark.parametrize("cls", [GPT, ScalarGPT])
def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(tokenizer, kind, cls):
    model = make(tokenizer, kind, cls)
    rows = [torch.randint(tokenizer.vocab_size, (n,)) for n in (3, 17, 1, 9)]
    padded = torch.randint(tokenizer.vocab_size, (4, 25))  # garbage in the padding
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    together = model(padded)
    for i, row in enumerate(rows):
        assert torch.allclose(together[i, : len(row)], model(row[None])[0], atol=2e-4)


@pytest.mark.parametrize("has_amx", [False, True])
def test_cached_decoding_equals_the_full_forward(tokenizer, kind, monkeypatch, has_amx):
    monkeypatch.setattr("minirlhf.model.has_amx", lambda: has_amx)
    model = make(tokenizer, kind)
    lengths = torch.tensor([3, 17, 1, 9])
    rows = torch.arange(4)
    tokens = torch.randint(tokenizer.vocab_size, (4, 40))
    with torch.no_grad():
        full = model.hidden(tokens)
        cache = KVCache(model, 4, 20)
        model.hidden(tokens[:, :17], cache)
        cache.resize(4, 40)
        for i in range(20):
            at = lengths + i
            step = model.hidden(tokens[rows, at][:, None], cache, at)[:, 0]
            assert torch.allclose(step, full[rows, at], atol=1e-4)


def test_responses_that_share_a_row_score_as_if_alone(tokenizer, kind):
    model = make(tokenizer, kind, ScalarGPT)
    ids = [torch.randint(tokenizer.vocab_size, (n,)).tolist() for n in (7, 1, 12, 3, 1, 9, 5)]
    shared = [(ids[0], ids[1]), (ids[0], ids[2]), (ids[0], ids[3])]
    pairs = [*shared, (ids[4], ids[5]), (ids[6], ids[2]), (ids[6], ids[2])]
    alone = [model(torch.tensor([prompt + response]))[0, -1].item() for prompt, response in pairs]
    assert model.score_sequences(pairs).tolist() == pytest.approx(alone, abs=1e-4)


def test_sampled_tokens_have_the_log_probs_that_scoring_gives(tokenizer, kind, prompts):
    model = make(tokenizer, kind)
    options = {"temperature": 0, "samples_per_prompt": 2}
    batch = rollout.sample(model, prompts, 12, torch.Generator(), **options)
    best = model(batch.tokens).argmax(-1)[:, :-1]  # greedy: each token is its place's likeliest
    is_response = batch.is_response[:, 1:]
    assert torch.equal(best[is_response], batch.tokens[:, 1:][is_response])
    whole = rollout.logprobs(model, batch)
    parts = rollout.in_micro_batches(rollout.logprobs, model, batch, token_budget=50)
    assert torch.allclose(whole, parts, atol=1e-4)


def test_recomputing_blocks_changes_nothing(tokenizer, kind):
    model = make(tokenizer, kind)
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model(tokens).square().mean(), parameters)
    model.checkpointing = True
    again = torch.autograd.grad(model(tokens).square().mean(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again))


def test_bfloat16_is_near_float32(tokenizer, kind):
    model = make(tokenizer, kind)
    tokens = torch.randint(tokenizer.vocab_size, (2, 30))
    expected = model(tokens).log_softmax(-1)
    trained = device.place(model, torch.device("cpu"), torch.bfloat16, trained=True)
    before = trained(tokens)
    frozen = device.place(model, torch.device("cpu"), torch.bfloat16)
    assert frozen.h[0].c_fc.weight.dtype == torch.bfloat16
    assert torch.equal(frozen(tokens), before)
    assert before.dtype == torch.float32
    assert (before.log_softmax(-1) - expected).abs().mean() < 0.15


def test_adapters_are_merged_into_a_plain_model(tokenizer, kind, tmp_path):
    model = make(tokenizer, kind)
    tokens = torch.randint(tokenizer.vocab_size, (2, 20))
    before = model(tokens)
    lora.add(model, 4, 8.0, seed=0)
    reference = lora.base(model)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    after = model(tokens)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.equal(reference(tokens), before)
    lora.merge(model).save_pretrained(tmp_path)
    assert torch.allclose(GPT.from_pretrained(tmp_path)(tokens), after, atol=1e-3)


# ---- positions


def test_only_distances_between_tokens_matter(tokenizer, kind):
    model = make(tokenizer, kind)
    tokens = torch.randint(tokenizer.vocab_size, (2, 20))
    positions = torch.arange(20) + torch.tensor([[31], [7]])
    causal = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    moved = model.hidden(tokens, positions=positions, mask=causal)
    assert torch.allclose(moved, model.hidden(tokens), atol=1e-3)
    assert not torch.allclose(model.hidden(tokens.flip(1)).flip(1), moved, atol=0.1)


def test_llama_3_slows_down_what_turns_slowly():
    def speed(**fields) -> torch.Tensor:
        """Radians per position of a head's 32 pairs."""
        config = Config(n_embd=64, n_head=1, model_type="llama", **fields)
        cos, sin = rotary_at(torch.tensor([1]), config)
        return torch.atan2(sin, cos)[0, 0, 32:]

    original_context = 64
    plain = speed()
    scaled = speed(rope_scaling=LLAMA3 | {"original_max_position_embeddings": original_context})
    turns = original_context * plain / (2 * torch.pi)
    slow, fast = turns < 1, turns > 4
    between = ~slow & ~fast
    assert slow.any() and fast.any() and between.any()
    assert torch.allclose(scaled[slow], plain[slow] / 8)
    assert torch.equal(scaled[fast], plain[fast])
    assert (scaled[between] > plain[between] / 8).all()
    assert (scaled[between] < plain[between]).all()


def test_a_long_context_costs_nothing_until_it_is_used(tokenizer):
    fields = {"n_embd": 32, "n_layer": 2, "n_head": 4, "model_type": "llama"}
    short, long = (
        GPT(Config(tokenizer.vocab_size, n_positions, **fields), tokenizer)
        for n_positions in (64, 10**6)
    )
    assert sum(p.numel() for p in short.parameters()) == sum(p.numel() for p in long.parameters())
    responses, _ = rollout.generate(long, [[5, 6, 7]], 4, torch.Generator().manual_seed(0))
    assert 1 <= len(responses[0]) <= 4


def test_grouped_heads_cache_less_and_keep_less(tokenizer):
    many, few = make(tokenizer, "llama"), make(tokenizer, "llama3")
    assert KVCache(few, 3, 10).layers[0].numel() * 2 == KVCache(many, 3, 10).layers[0].numel()
    assert activation_bytes(few, 1000) < activation_bytes(many, 1000)


# ---- folders


def test_saved_and_loaded_it_is_the_same(tokenizer, kind, tmp_path):
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    for cls in (GPT, ScalarGPT):
        model = make(tokenizer, kind, cls)
        model.config.score_mean, model.config.score_std = 0.5, 2.0
        model.save_pretrained(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__)
        assert torch.equal(model(tokens), again(tokens))
        again.save_pretrained(tmp_path / "again")
        for file in ("config.json", "model.safetensors"):
            first = (tmp_path / cls.__name__ / file).read_bytes()
            assert first == (tmp_path / "again" / file).read_bytes()


def test_the_folder_has_hugging_faces_names_and_layout(tokenizer, tmp_path):
    model = make(tokenizer, "qwen3")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    block = "model.layers.1"
    q, k = (tensors[f"{block}.self_attn.{name}_proj.weight"] for name in "qk")
    assert q.shape == (48, 32) and k.shape == (24, 32)
    assert torch.equal(torch.cat((q, k)), model.h[1].c_attn.weight[:72])
    assert torch.equal(tensors[f"{block}.mlp.up_proj.weight"], model.h[1].c_fc.weight[40:])
    assert tensors[f"{block}.self_attn.q_norm.weight"].shape == (12,)
    assert "model.norm.weight" in tensors and "lm_head.weight" not in tensors
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["num_key_value_heads"] == 2 and config["intermediate_size"] == 40


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rotary_numbers_are_read_from_either_field(tokenizer, tmp_path, name):
    make(tokenizer, "llama").save_pretrained(tmp_path)
    change_config(tmp_path, rope_theta=3.0, **{name: LLAMA3 | {"rope_theta": 7e4}})
    config = GPT.from_pretrained(tmp_path).config
    assert (config.rope_theta, config.rope_scaling) == (7e4, LLAMA3)
    change_config(tmp_path, **{name: LLAMA3})
    assert GPT.from_pretrained(tmp_path).config.rope_theta == 3.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"model_type": "mixtral"}, ["model_type", "mixtral"]),
        ({"model_type": ["llama"]}, ["model_type"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "linear"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["rope_parameters", "yarn"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["full_attention"]),
        ({"rope_scaling": LLAMA3 | {"factor": None}}, ["rope_scaling"]),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, ["rope_scaling"]),
        ({"rope_scaling": [8.0]}, ["rope_scaling"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"model_type": "mistral", "sliding_window": 16}, ["sliding_window", 16]),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16},
            ["sliding_window", 16],
        ),
        ({"model_type": "qwen2"}, ["q_proj.bias"]),
        ({"model_type": "qwen3"}, ["q_norm"]),
        ({"attention_bias": True}, ["q_proj.bias"]),
        ({"attention_bias": 1}, ["attention_bias"]),
        ({"rope_theta": "1e4"}, ["rope_theta"]),
        ({"rope_theta": 0}, ["rope_theta"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"intermediate_size": None}, ["intermediate_size"]),
        ({"max_position_embeddings": 10**9}, ["max_position_embeddings"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
        ({"num_key_value_heads": 2}, ["k_proj", "(32, 32)", "(16, 32)"]),
        ({"head_dim": 7}, ["head_dim"]),
        ({"head_dim": 16}, ["q_proj"]),
    ],
)
def test_what_the_model_cannot_represent_is_named(tokenizer, tmp_path, fields, words):
    make(tokenizer, "llama").save_pretrained(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(UserError) as error:
        GPT.from_pretrained(tmp_path)
    message = str(error.value)
    assert all(str(word) in message for word in words), message
    assert "\n" not in message and len(message) < 400


def test_a_window_that_no_text_exceeds_is_none(tokenizer, tmp_path):
    model = make(tokenizer, "mistral")
    model.save_pretrained(tmp_path)
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    for window in (None, 64, 4096):
        change_config(tmp_path, sliding_window=window)
        assert torch.equal(GPT.from_pretrained(tmp_path)(tokens), model(tokens))


@pytest.mark.parametrize("fields", [{}, KINDS["llama3"]])
def test_a_reward_model_is_no_policy_but_a_language_model_becomes_one(tokenizer, tmp_path, fields):
    tiny(tokenizer, ScalarGPT, **fields).save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match="reward model"):
        GPT.from_pretrained(tmp_path / "rm")
    tiny(tokenizer, **fields).save_pretrained(tmp_path / "lm")
    fresh = ScalarGPT.from_pretrained(tmp_path / "lm")
    assert (fresh(torch.arange(9)[None]) == 0).all()
    change_config(tmp_path / "lm", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match=r"score\.weight"):
        ScalarGPT.from_pretrained(tmp_path / "lm")


def test_a_reward_models_padding_is_not_its_end(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "pad_id", 7)
    for cls, expected in ((ScalarGPT, 7), (GPT, None)):
        tiny(tokenizer, cls).save_pretrained(tmp_path / cls.__name__)
        config = json.loads((tmp_path / cls.__name__ / "config.json").read_text())
        assert config.get("pad_token_id") == expected
    monkeypatch.setattr(tokenizer, "pad_id", tokenizer.eos_id)
    tiny(tokenizer, ScalarGPT).save_pretrained(tmp_path)
    assert "pad_token_id" not in json.loads((tmp_path / "config.json").read_text())


# ---- training


def test_a_fresh_llama_is_trained_and_read_back(tmp_path):
    out = str(tmp_path / "run")
    settings = train_sft.Settings(out=out, arch="llama", steps=30, warmup=5, **SMALL)
    train_sft.main(settings)
    model = GPT.from_pretrained(out)
    assert model.config.model_type == "llama" and model.config.n_inner == 88  # 8/3 of 32
    first, *_, last = (json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open())
    assert last["loss"] < first["loss"] - 0.5
    with pytest.raises(UserError, match="--n_head"):
        train_sft.main(train_sft.Settings(out=out, arch="llama", n_embd=33, n_head=11))


# ---- transformers

HF_SIZES = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": 319,
}
HF_KINDS = {
    "llama": ("Llama", {"num_key_value_heads": None}),
    "tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3 | {"rope_theta": 5000.0}}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 20}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 20, "attention_bias": True}),
}


@pytest.mark.parametrize("hf_kind", HF_KINDS)
def test_transformers_computes_the_same(tokenizer, tmp_path, hf_kind):
    """Logits and gradients of its folder here, and of our folder there."""
    transformers = pytest.importorskip("transformers")
    name, fields = HF_KINDS[hf_kind]
    config = getattr(transformers, f"{name}Config")(**(HF_SIZES | fields))
    torch.manual_seed(0)
    hf_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter_name, parameter in hf_model.named_parameters():
        if parameter.dim() == 1:
            mean = 1.0 if "norm" in parameter_name else 0.0
            torch.nn.init.normal_(parameter, mean, std=0.3)
    hf_model.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    model = GPT.from_pretrained(tmp_path / "hf")
    tokens = torch.randint(320, (3, 200))
    lengths = torch.tensor([200, 150, 3])
    real = torch.arange(200) < lengths[:, None]  # (3, 200)
    expected = hf_model(tokens, attention_mask=real.long()).logits
    logits = model(tokens)
    assert (logits - expected)[real].abs().max() < 1e-4

    (expected.log_softmax(-1)[real].square().mean()).backward()
    (logits.log_softmax(-1)[real].square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = checkpoint.to_hf(gradients, model.config)
    hf_gradients = {name: parameter.grad for name, parameter in hf_model.named_parameters()}
    assert gradients.keys() == hf_gradients.keys()
    for name, gradient in gradients.items():
        scale = hf_gradients[name].abs().max()
        assert (gradient - hf_gradients[name]).abs().max() < 1e-4 * max(1, scale), name

    model.save_pretrained(tmp_path / "lm")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert type(again) is type(hf_model)
    with torch.no_grad():
        assert (again(tokens, attention_mask=real.long()).logits - logits)[real].abs().max() < 1e-4

    scalar = ScalarGPT.from_pretrained(tmp_path / "lm")
    torch.nn.init.normal_(scalar.score.weight)
    scalar.save_pretrained(tmp_path / "rm")
    classifier = transformers.AutoModelForSequenceClassification
    hf_scalar = classifier.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        assert (hf_scalar(tokens[:1]).logits[:, 0] - scalar(tokens[:1])[:, -1]).abs().max() < 1e-4
