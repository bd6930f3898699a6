"""Folders from the wide world give transformers' numbers, and what one GPU needs changes none of them."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

import run_rlhf
import train_sft
from minirlhf import UserError, cli, lora
from minirlhf.model import GPT, Config, ScalarGPT
from minirlhf.run import Run
from minirlhf.tokenizer import Tokenizer


def logits(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.log_softmax(model.hidden(tokens))


def rewritten(folder, target, change, dtype=None, **fields):
    """A copy of the folder with config.json's fields and tensors changed."""
    shutil.copytree(folder, target)
    (target / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | fields))
    tensors = {k: v.to(dtype) if dtype else v for k, v in change(load_file(folder / "model.safetensors")).items()}
    save_file(tensors, target / "model.safetensors")
    return tensors


def bare(tensors):
    return {k.removeprefix("transformer."): v for k, v in tensors.items()}


@pytest.mark.parametrize("odd", ["bare", "prefixed lm_head", "fp16", "bf16", "pytorch_model.bin", "old pytorch_model.bin"])
def test_odd_folders_of_one_model(tokenizer, tmp_path, odd):
    model, tokens = tiny(tokenizer), torch.randint(tokenizer.vocab_size, (2, 30))
    model.save_pretrained(tmp_path / "a")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(odd)
    change = bare if odd == "bare" else (lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()}) \
        if "lm_head" in odd else lambda t: t
    tensors = rewritten(tmp_path / "a", tmp_path / "b", change, dtype)
    if odd.endswith(".bin"):
        (tmp_path / "b" / "model.safetensors").unlink()
        torch.save(tensors, tmp_path / "b" / "pytorch_model.bin", _use_new_zipfile_serialization=not odd.startswith("old"))
    again = GPT.from_pretrained(tmp_path / "b")
    assert again.wte.weight.dtype == torch.float32
    off = (logits(again, tokens) - logits(model, tokens)).abs().max()
    assert off == 0 if dtype is None else 0 < off < 0.5


def test_other_sizes_and_an_untied_head_survive(tokenizer, tmp_path):
    for i, config in enumerate((Config(400, 50, 24, 3, 2, n_inner=40), Config(330, 70, 24, 1, 4, tie_word_embeddings=False))):
        torch.manual_seed(i)
        model, tokens = GPT(config, tokenizer), torch.randint(tokenizer.vocab_size, (2, 30))
        model.save_pretrained(tmp_path / str(i))
        again = GPT.from_pretrained(tmp_path / str(i))
        assert again.config == config and torch.equal(logits(again, tokens), logits(model, tokens))
        scalar = ScalarGPT.from_pretrained(tmp_path / str(i))
        assert torch.equal(scalar.hidden(tokens), model.hidden(tokens))
        assert (scalar.score_last(tokens, torch.tensor([3, 4])) == 0).all()


# ---------------------------------------------------------------------------------------------- transformers

@pytest.mark.parametrize("fields", [
    {}, {"n_positions": 50, "n_inner": 72, "vocab_size": 384}, {"tie_word_embeddings": False},
    {"activation_function": "gelu_pytorch_tanh"},
    {"reorder_and_upcast_attn": True, "layer_norm_epsilon": 1e-3}])
@pytest.mark.parametrize("how", ["safetensors", "shards", "half"])
def test_their_folders_give_their_logits(tokenizer, tmp_path, fields, how):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(**{"vocab_size": tokenizer.vocab_size, "n_positions": 64, "n_embd": 32, "n_layer": 2,
                                        "n_head": 4, "bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id,
                                        "initializer_range": 0.3} | fields)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    if how == "half":
        theirs = theirs.to(torch.bfloat16)
    tokenizer.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()                              # transformers 5 writes tokenizer.json alone
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if how == "shards" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (how == "shards")
    mine, tokens = GPT.from_pretrained(tmp_path), torch.randint(tokenizer.vocab_size, (2, 40))
    with torch.no_grad():
        expected = torch.log_softmax(theirs.float()(tokens).logits, -1)
    assert (logits(mine, tokens) - expected).abs().max() < 1e-4
    assert mine.tokenizer.encode("The fox can't, 12!") == tokenizer.encode("The fox can't, 12!")


@pytest.mark.parametrize("config", [Config(330, 64, 32, 2, 4), Config(400, 50, 24, 3, 2, n_inner=40, tie_word_embeddings=False)])
def test_our_folders_give_them_our_numbers(tokenizer, tmp_path, config):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    gpt, scalar = GPT(config, tokenizer), ScalarGPT(config, tokenizer)
    torch.nn.init.normal_(scalar.score.weight)
    scalar.config.score_mean, scalar.config.score_std = 0.5, 2.0
    gpt.save_pretrained(tmp_path / "lm")
    scalar.save_pretrained(tmp_path / "rm")
    text = "The fox can't ran home, 123 times.\n\nHuman: Why é 🙂?\n\nAssistant: No.<|endoftext|>"
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")(text).input_ids
    assert ids == [*tokenizer.encode(text.removesuffix("<|endoftext|>")), tokenizer.eos_id]
    tokens = torch.tensor([ids[-40:]])
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")(tokens).logits
        raw = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")(tokens).logits[:, 0]
    assert (torch.log_softmax(theirs, -1) - logits(gpt, tokens)).abs().max() < 1e-4
    assert ((raw - 0.5) / 2.0 - scalar.score_last(tokens, torch.tensor([tokens.shape[1]]))).abs().max() < 1e-4


# ---------------------------------------------------------------------------------------------- one GPU

def settings(tmp_path, **more):
    return train_sft.Settings(**{"out": str(tmp_path / "run"), "n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 400,
                                 "count": 60, "n_positions": 192, "batch_size": 8, "steps": 3} | more)


def gradients(model, tokens):
    loss = -model.token_logprobs(model.hidden(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).mean()
    return loss, torch.autograd.grad(loss, list(model.parameters()))


def test_checkpointing_changes_memory_and_nothing_else(policy):
    tokens, kept = torch.randint(policy.config.vocab_size, (4, 40)), {}

    def saved() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x):
            policy.hidden(tokens)
        return sum(x.untyped_storage().nbytes() for x in kept.values())
    loss, expected = gradients(policy, tokens)
    whole, policy.checkpointing = saved(), True
    again, got = gradients(policy, tokens)
    assert loss == again and all(torch.equal(a, b) for a, b in zip(got, expected))
    assert saved() < whole / 3


def test_frozen_models_in_bf16_give_the_same_numbers(tokenizer, tmp_path):
    run = Run(settings(tmp_path, dtype="bfloat16"), "x")
    tokens = torch.randint(tokenizer.vocab_size, (2, 30))
    for cls in (GPT, ScalarGPT):
        trained, frozen = run.place(tiny(tokenizer, cls)), run.place(tiny(tokenizer, cls), frozen=True)
        assert torch.equal(trained.hidden(tokens), frozen.hidden(tokens))
        assert frozen.h[0].c_fc.weight.dtype == torch.bfloat16 and trained.h[0].c_fc.weight.dtype == torch.float32
        assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize(("dtype", "checkpointing", "n_inner"), [
    ("float32", False, None), ("float32", True, None), ("bfloat16", False, None), ("float32", False, 100)])
def test_the_estimate_is_what_autograd_saves(tokenizer, tmp_path, capsys, dtype, checkpointing, n_inner):
    run = Run(settings(tmp_path, dtype=dtype, checkpointing=checkpointing, token_budget=8 * 128), "x")
    model = run.place(GPT(Config(tokenizer.vocab_size, 128, 64, 4, 4, n_inner=n_inner), tokenizer))
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(torch.randint(300, (8, 128)))
    parts = run.memory()
    logits_part = 12 * 8 * 128 * tokenizer.vocab_size
    block = (38 if dtype == "bfloat16" else 66) * 64 * 8 * 128 if checkpointing else 0      # the one that is recomputed
    saved = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert parts["activations"] * 2**30 - logits_part - block == pytest.approx(saved, rel=0.3 if checkpointing else 0.15)
    size = sum(p.numel() for p in model.parameters())
    assert parts["weights"] * 2**30 == 4 * size
    cast = 2 * sum(p.numel() for p in model.h.parameters()) * (dtype == "bfloat16")
    assert parts["gradients and AdamW"] * 2**30 == 12 * size + cast
    if not checkpointing:                     # LoRA: the same activations, moments of the adapters alone
        lora.add(model, 4, 8.0, 0)
        adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        more = run.memory()
        assert more["activations"] == parts["activations"] and 0 < adapters < size / 4
        assert more["gradients and AdamW"] * 2**30 == pytest.approx((14 if cast else 12) * adapters, rel=0.02)
    assert "--token_budget 512 or --checkpointing" in capsys.readouterr().out


def test_compiled_blocks_give_the_same_numbers(tokenizer, tmp_path):
    if not (torch.cuda.is_available() or os.environ.get("MINIRLHF_TEST_COMPILE")):
        pytest.skip("on a CPU compiling takes a minute or more: MINIRLHF_TEST_COMPILE=1 does it")
    run = Run(settings(tmp_path, compile=True), "x")
    plain, compiled = tiny(tokenizer), run.place(tiny(tokenizer))
    for length in (20, 33):
        tokens = torch.randint(tokenizer.vocab_size, (3, length))
        assert (gradients(compiled, tokens)[0] - gradients(plain, tokens)[0]).abs() < 1e-4
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore"), MemoryError(),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 80 bytes.")])
def test_out_of_memory_says_what_to_change(monkeypatch, capsys, error):
    def main(_):
        raise error
    monkeypatch.setattr(sys, "argv", ["train_sft.py"])
    with pytest.raises(SystemExit) as stopped:
        cli.start(main, train_sft.Settings)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and said.startswith("error: out of memory")
    assert all(flag in said for flag in ("--token_budget", "--checkpointing", "--dtype bfloat16", "--resume"))
    with pytest.raises(RuntimeError, match="else"):
        cli.start(lambda _: (_ for _ in ()).throw(RuntimeError("something else")), train_sft.Settings)


def test_really_out_of_memory(tmp_path):
    """A batch of rows that no machine has memory for, in a process that may take 4 GiB."""
    resource = pytest.importorskip("resource")
    (tmp_path / "x.txt").write_text("ab " * 2_000_000)

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    done = subprocess.run([sys.executable, "train_sft.py", "--data", tmp_path / "x.txt", "--out", tmp_path / "run",
                           "--n_positions", "4096", "--vocab_size", "260", "--batch_size", "512",
                           "--token_budget", str(2**21), "--validation", "0"], cwd=Path(__file__).parents[1], capture_output=True,
                          text=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 2 and "out of memory" in done.stderr and "--token_budget" in done.stderr, done.stderr[-600:]
    assert "Traceback" not in done.stderr and "memory: about" in done.stdout


# ---------------------------------------------------------------------------------------------- the preset

def test_the_preset_runs_on_human_preferences(tmp_path):
    said = ["I would try the lake in spring.", "No idea.", "It depends on the weather and on you.", "Why do you ask?"]
    rows = [{"chosen": f"\n\nHuman: question {i} of many?\n\nAssistant: {said[i % 3]}",
             "rejected": f"\n\nHuman: question {i} of many?\n\nAssistant: {said[3]}"} for i in range(90)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    torch.manual_seed(0)
    GPT(Config(512, 96, 32, 2, 4), Tokenizer.train([r["chosen"] for r in rows], 400)).save_pretrained(tmp_path / "init")
    out = tmp_path / "out"
    mine = run_rlhf.Settings(preset="hh_gpt2", init=str(tmp_path / "init"), data=str(tmp_path / "pairs.jsonl"),
                             out=str(out), quick=True)
    run_rlhf.main(mine)
    parts = [{json.loads(line)["prompt"] for line in (out / name).read_text().splitlines()}
             for name in ("pairs.jsonl", "judge.jsonl", "questions.jsonl")]
    assert all(parts) and sum(map(len, parts)) == len(set().union(*parts)) == 90          # nothing is on two sides
    report = json.loads((out / "report.json").read_text())
    assert [r["stage"] for r in report["policies"]] == ["SFT", "round 1"]
    judge = json.loads((out / "evaluation.json").read_text())["results"][0]
    assert judge["gold"]["mean"] != judge["reward"]["mean"] and set(judge["kinds"]) == {"other"}
    before = (out / "report.json").stat().st_mtime_ns
    run_rlhf.main(mine)                                                                   # all stages are done
    assert (out / "report.json").stat().st_mtime_ns > before
    with pytest.raises(UserError, match="--preset x"):
        run_rlhf.main(run_rlhf.Settings(preset="x", out=str(tmp_path / "x")))
