"""transformers and this model open each other's folders and compute the same numbers."""

import pytest
import torch

from minirlhf.model import GPT, Config, ScalarGPT

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_positions": 50, "n_inner": 72, "vocab_size": 384},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu"},
        {"reorder_and_upcast_attn": True, "layer_norm_epsilon": 1e-3},
    ],
)
@pytest.mark.parametrize("kind", ["one file", "shards", "bfloat16"])
def test_their_folders_open_here(tokenizer, tmp_path, fields, kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "n_positions": 64, "n_embd": 32, "n_layer": 2}
    eos = tokenizer.eos_id
    sizes |= {"n_head": 4, "bos_token_id": eos, "eos_token_id": eos, "initializer_range": 0.3}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes | fields))).eval()
    if kind == "bfloat16":
        theirs = theirs.to(torch.bfloat16)
    tokenizer.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()  # transformers 5 writes tokenizer.json alone
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if kind == "shards" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (kind == "shards")
    ours = GPT.from_pretrained(tmp_path)
    tokens = torch.randint(tokenizer.vocab_size, (2, 40))
    with torch.no_grad():
        logits = theirs.float()(tokens).logits[..., : tokenizer.vocab_size]  # ids with a token
        actual = ours(tokens).log_softmax(-1)[..., : tokenizer.vocab_size]
        assert (actual - logits.log_softmax(-1)).abs().max() < 1e-4
    assert ours.tokenizer.encode("The fox can't, 12!") == tokenizer.encode("The fox can't, 12!")


@pytest.mark.parametrize(
    "config",
    [
        Config(330, 64, 32, 2, 4, activation_function="gelu"),
        Config(400, 50, 24, 3, 2, n_inner=40, tie_word_embeddings=False),
    ],
)
def test_our_folders_open_there(tokenizer, tmp_path, config):
    torch.manual_seed(0)
    gpt = GPT(config, tokenizer)
    scalar = ScalarGPT(config, tokenizer)
    torch.nn.init.normal_(scalar.score.weight)
    gpt.save_pretrained(tmp_path / "lm")
    scalar.save_pretrained(tmp_path / "rm")
    text = "The fox can't ran home, 123 times.\n\nHuman: Why é 🙂?\n\nAssistant: No."
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")
    ids = hf_tokenizer(text + "<|endoftext|>").input_ids
    assert ids == [*tokenizer.encode(text), tokenizer.eos_id]
    tokens = torch.tensor([ids[-40:]])
    lm = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    rm = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        difference = (lm(tokens).logits - gpt(tokens))[..., : tokenizer.vocab_size]
        assert difference.abs().max() < 1e-4
        assert (rm(tokens).logits[:, 0] - scalar(tokens)[:, -1]).abs().max() < 1e-4
