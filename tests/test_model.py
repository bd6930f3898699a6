"""The model is GPT-2, whatever the padding, the batch or the cache."""
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, tiny

from minirlhf import UserError, model, run
from minirlhf.model import GPT, Config, KVCache, ScalarGPT, hf_name, is_transposed


def test_logits_loss_and_gradients_equal_transformers():
    folder = SHARED / "oracles"
    if not folder.exists():
        pytest.skip("the oracle file is not here")
    oracle = np.load(folder / "gpt2_3l_48d_v512.npz")
    gpt = GPT(Config(512, 64, 48, 3, 4)).double()
    gpt.load_hf({k[2:]: torch.from_numpy(oracle[k]) for k in oracle if k.startswith("w.")}, folder)
    ids = torch.from_numpy(oracle["input_ids"])
    hidden = gpt.hidden(ids)
    logits = hidden @ gpt.wte.weight.T
    assert (logits - torch.from_numpy(oracle["logits"])).abs().max() < 1e-10
    loss = -gpt.token_logprobs(hidden[:, :-1].reshape(-1, 48), ids[:, 1:].reshape(-1)).mean()
    assert loss.item() == pytest.approx(float(oracle["loss"]), abs=1e-6)          # theirs was summed in float32
    loss.backward()
    for name, p in gpt.named_parameters():
        theirs = torch.from_numpy(oracle["g." + hf_name(name)])
        assert (p.grad - (theirs.T if is_transposed(name) else theirs)).abs().max() < 1e-7, name


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    gpt = GPT(Config(400, 64, 64, 8, 4))
    deviation = {n: p.std().item() for n, p in gpt.named_parameters() if p.dim() > 1}
    assert deviation["wte.weight"] == pytest.approx(0.02, rel=0.05)
    assert deviation["h.3.c_attn.weight"] == pytest.approx(0.02, rel=0.05)
    assert deviation["h.3.c_proj.weight"] == pytest.approx(0.02 / 4, rel=0.05)       # 1 / sqrt(2 * 8 layers)
    assert deviation["h.3.mlp_proj.weight"] == pytest.approx(0.02 / 4, rel=0.05)
    assert all((p == 0).all() for n, p in gpt.named_parameters() if n.endswith("bias"))
    fresh_loss = -gpt.token_logprobs(gpt.hidden(torch.randint(400, (4, 32))).reshape(-1, 64), torch.randint(400, (128,))).mean()
    assert fresh_loss.item() == pytest.approx(math.log(400), abs=0.1)


@pytest.mark.parametrize("cls", [GPT, ScalarGPT])
def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(tokenizer, cls):
    net = tiny(tokenizer, cls)
    lengths = [3, 17, 1, 9]
    rows = [torch.randint(tokenizer.vocab_size, (n,)) for n in lengths]
    padded = torch.randint(tokenizer.vocab_size, (4, 25))                # garbage in the padding
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    together = net.hidden(padded)
    for i, row in enumerate(rows):
        alone = net.hidden(row[None])[0]
        assert torch.allclose(together[i, : len(row)], alone, atol=1e-5)
        if cls is ScalarGPT:
            assert net.score_last(padded, torch.tensor(lengths))[i].item() == pytest.approx(net.scores(alone)[-1].item(), abs=1e-5)


def test_cached_decoding_equals_the_full_forward(policy):
    lengths = torch.tensor([3, 17, 1, 9])
    tokens = torch.randint(policy.config.vocab_size, (4, 40))
    with torch.no_grad():
        full = policy.hidden(tokens)
        cache = KVCache(policy.config, 4, 40, policy.wte.weight)
        policy.hidden(tokens[:, :17], cache)                              # ragged prompts, the rest is rubbish to overwrite
        for i in range(20):
            at = lengths + i
            step = policy.hidden(tokens[torch.arange(4), at][:, None], cache, at)[:, 0]
            assert torch.allclose(step, full[torch.arange(4), at], atol=1e-4)


def test_the_heads_product_is_float32s_under_autocast(policy):
    """The one that sampling and scoring share; bf16's is off by more than a hundredth here."""
    hidden = torch.randn(20, 32)
    expected = hidden @ policy.wte.weight.T / 0.7
    assert ((hidden.bfloat16() @ policy.wte.weight.bfloat16().T).float() / 0.7 - expected).abs().max() > 0.01
    policy.autocast_dtype = torch.bfloat16
    with policy.autocast():
        inside = policy.logits(hidden, 0.7)
    for logits in (inside, policy.logits(hidden, 0.7)):
        assert logits.dtype == torch.float32
        assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tf32"), [("bfloat16", True), ("float32", False)])
def test_float32_products_of_a_bf16_run_on_a_gpu_are_tf32s(dtype, tf32):
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        products.allow_tf32 = not tf32
        run.pick_autocast(dtype, torch.device("cpu"))
        assert products.allow_tf32 != tf32
        run.pick_autocast(dtype, torch.device("cuda"))
        assert products.allow_tf32 == tf32
    finally:
        products.allow_tf32 = before


def test_logits_in_chunks_change_nothing(policy, monkeypatch):
    hidden = torch.randn(50, 32, dtype=torch.double, requires_grad=True)
    targets = torch.randint(policy.config.vocab_size, (50,))
    policy.double()
    whole = policy.token_logprobs(hidden, targets, 0.7)
    expected = torch.autograd.grad(whole.square().sum(), [hidden, policy.wte.weight])
    assert torch.allclose(whole, -F.cross_entropy(hidden @ policy.wte.weight.T / 0.7, targets, reduction="none"))
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", policy.config.vocab_size * 7)
    chunked = policy.token_logprobs(hidden, targets, 0.7)
    assert torch.allclose(chunked, whole)
    for got, wanted in zip(torch.autograd.grad(chunked.square().sum(), [hidden, policy.wte.weight]), expected):
        assert torch.allclose(got, wanted)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokens = torch.randint(tokenizer.vocab_size, (2, 9))
    for cls in (GPT, ScalarGPT):
        net = tiny(tokenizer, cls)
        net.config.score_mean, net.config.score_std = 0.5, 2.0
        net.save_pretrained(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__)
        assert torch.equal(net.hidden(tokens), again.hidden(tokens))
        assert again.tokenizer.encode("The fox can't.") == tokenizer.encode("The fox can't.")
    assert torch.equal(net.score_last(tokens, torch.tensor([9, 4])), again.score_last(tokens, torch.tensor([9, 4])))
    fresh = ScalarGPT.from_pretrained(tmp_path / "GPT")                   # a language model becomes a fresh reward model
    assert (fresh.score_last(tokens, torch.tensor([9, 9])) == (0 - 0.5) / 2).all()


def test_the_folder_has_hugging_faces_names_and_layout(policy, tmp_path):
    from safetensors.torch import load_file
    policy.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["transformer.h.1.attn.c_attn.weight"].shape == (32, 96)                    # Conv1D: (in, out)
    assert torch.equal(tensors["transformer.h.1.mlp.c_proj.weight"], policy.h[1].mlp_proj.weight.T)
    assert "lm_head.weight" not in tensors                                                     # tied
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert config["vocab_size"] == policy.config.vocab_size


def test_transformers_opens_it(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(tokenizer.vocab_size, (1, 20))
    gpt = tiny(tokenizer)
    gpt.save_pretrained(tmp_path / "lm")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert torch.allclose(theirs(tokens).logits, gpt.hidden(tokens) @ gpt.wte.weight.T, atol=1e-4)
    text = "The fox can't ran home, 123 times.\n\nWhy?"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")(text).input_ids == tokenizer.encode(text)
    scalar = tiny(tokenizer, ScalarGPT)
    scalar.save_pretrained(tmp_path / "rm")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert torch.allclose(theirs(tokens).logits[:, 0], scalar.score_last(tokens, torch.tensor([20])), atol=1e-4)


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(("name", "change", "said"), [
    ("config.json", lambda b: b[:20], "config.json is not valid JSON"),
    ("config.json", lambda b: b.replace(b'"gpt2"', b'"llama"'), "llama"),
    ("config.json", lambda b: b.replace(b'"n_embd": 32', b'"n_embd": 64'), "has shape"),
    ("config.json", lambda b: b.replace(b'"n_layer": 2', b'"n_layer": 3'), "no tensor h.2"),
    ("config.json", lambda b: b.replace(b'"vocab_size": 320', b'"vocab_size": 300'), "320 tokens"),
    ("model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors cannot be read"),
    ("vocab.json", lambda b: b[:30], "vocab.json"),
])
def test_a_damaged_folder_is_named_in_one_sentence(policy, tmp_path, name, change, said):
    policy.save_pretrained(tmp_path)
    damage(tmp_path, name, change)
    with pytest.raises(UserError, match=said) as error:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        GPT.from_pretrained(tmp_path / "nowhere")


def test_responses_that_share_a_row_score_as_if_alone(tokenizer):
    net = tiny(tokenizer, ScalarGPT)
    ids = [torch.randint(tokenizer.vocab_size, (n,)).tolist() for n in (7, 1, 12, 3, 1, 9, 5)]
    groups = [(ids[0], [ids[1], ids[2], ids[3]]), (ids[4], [ids[5]]), (ids[6], [ids[2], ids[2]])]
    together = net.score_groups(groups)
    alone = [net.score_last(torch.tensor([p + r]), torch.tensor([len(p + r)])).item() for p, rs in groups for r in rs]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)
