"""Reward-model accuracy against the number of comparisons and the model's size (Stiennon 2020, figure 6; Bai 2022a, section 3.3).

Near chance at first, then about linear in the logarithm of the comparisons, never above the share of labels that are right; and
four passes over N comparisons are not one pass over 4 N. Null control: the same training on labels that are coin flips.

    python experiments/label_scaling.py
    python experiments/label_scaling.py --data helpful-base.test.jsonl.gz --sft out/hh_small/sft --out out/hh_lab     # real pairs
"""
import json
import math
import random
from pathlib import Path

import lab

import train_sft
from minirlhf import preferences
from minirlhf.batches import held_out
from minirlhf.data import read_rankings
from minirlhf.files import read_jsonl, write_atomically
from minirlhf.model import GPT, ScalarGPT
from toyworld import reward as gold_scores


def small_sft(L, folder, *, n_embd, n_layer, n_head, steps):
    """A smaller parent for a smaller reward model."""
    train_sft.main(train_sft.Settings(out=f"{folder}/sft", n_embd=n_embd, n_layer=n_layer, n_head=n_head, steps=steps, count=20000,
                                      device=L.device, resume=True))
    return {"sft": f"{folder}/sft"}


def comparisons(L, folder, *, count, seed):
    """train.jsonl and test.jsonl of pairs; test pairs are of held-out prompts and ranked by gold. Real ones with --data."""
    if L.data:
        sft = GPT.from_pretrained(L.sft)
        read = [r for r in read_rankings(L.data) if all(
            len(sft.tokenizer.encode_prompt(r.prompt.turns)) + len(sft.tokenizer.encode_response(r.prompt.turns, x)) <= sft.config.n_positions for x in r.responses)]
        train, test = held_out(read, lambda r: r.prompt.turns[0][1], 0.25, seed)
        train, test = ([{"prompt": r.prompt.source, "responses": r.responses, "ranks": r.ranks} for r in x] for x in (train, test))
        random.Random(seed).shuffle(train)
    else:
        train, test = (read_jsonl(L.arm(lab.rankings, count=n, noise=noise, seed=s, split=split)["data"]) for n, noise, s, split in
                       ((count * 5 // 4, 0.5, seed + 1, "train"), (600, 0.0, seed + 1000, "test")))
        train = [r for r in train if r["responses"][0] != r["responses"][1]]
    for name, part in (("train", train), ("test", test)):
        write_atomically(Path(folder, f"{name}.jsonl"), "".join(json.dumps(r) + "\n" for r in part).encode())
    right = [(a > b) == (r["ranks"][0] < r["ranks"][1]) for r in ([] if L.data else train)
             for a, b in [gold_scores([r["prompt"]] * 2, r["responses"])] if abs(a - b) > 1e-9]
    return {"labels_right": sum(right) / max(1, len(right)), "training_pairs": len(train)}


def arm(L, folder, *, size, labels, epochs, coin, seed, pool):
    """Accuracy on the test pairs of a reward model that saw the first `labels` comparisons `epochs` times."""
    source = L.arm(comparisons, count=pool, seed=seed)
    init = L.sft if size == "large" else L.arm(small_sft, **SMALL)["sft"]
    rows = read_jsonl(f"{source['folder']}/train.jsonl")[:labels]
    if coin:
        rng = random.Random(seed)
        rows = [r | {"ranks": rng.choice(([1, 2], [2, 1]))} for r in rows]
    write_atomically(Path(folder, "train.jsonl"), "".join(json.dumps(r) + "\n" for r in rows).encode())
    lab.reward_model(L, folder, data=f"{folder}/train.jsonl", init=init, epochs=epochs, seed=seed, normalize_samples=0,
                     validation=1e-9)                   # one pair: the test set is our own
    model = ScalarGPT.from_pretrained(f"{folder}/rm").to(L.device)
    test = preferences.to_groups(model.tokenizer, read_rankings(f"{source['folder']}/test.jsonl"), model.config.n_positions)
    return preferences.validate(model, test, 8192) | {"parameters": sum(p.numel() for p in model.parameters())}


SMALL = {"n_embd": 48, "n_layer": 1, "n_head": 4, "steps": 300}


def main(L):
    sizes = L.pick([10, 40, 160, 640], [20, 80, 320, 1280, 5120], [20, 80, 320, 1280, 5120, 20480])
    if L.data:                        # as many as there are
        sizes = [n for n in sizes if n <= L.arm(comparisons, count=sizes[-1], seed=0)["training_pairs"]]
    common = {"coin": False, "pool": sizes[-1]}
    keys = [common | {"size": "large", "labels": n, "epochs": e, "seed": s} for s in L.seeds for n in sizes for e in (1, 4)
            if e == 1 or n < sizes[-1]]
    if not L.data:
        keys += [common | {"size": "small", "labels": n, "epochs": 1, "seed": s} for s in L.seeds for n in sizes]
    keys += [common | {"size": "large", "labels": n, "epochs": 1, "seed": s, "coin": True} for s in L.seeds for n in sizes[2:3]]
    rows = L.run(arm, keys)
    ceiling = [L.arm(comparisons, count=sizes[-1], seed=s)["labels_right"] for s in L.seeds]

    fig, (ax, right) = L.figure("Reward-model accuracy", "comparisons seen in training", "accuracy on held-out pairs", columns=2)
    right.set(title="Calibration, held-out pairs", xlabel="claimed accuracy", ylabel="accuracy")
    ax.set_xscale("log")
    large = [r for r in rows if r["size"] == "large" and not r["coin"]]
    once, four = ([r for r in large if r["epochs"] == e] for e in (1, 4))
    lab.curve(ax, once, "labels", "validation_accuracy", f"{once[0]['parameters'] / 1e6:.1f} M parameters, 1 epoch")
    lab.curve(ax, four, "labels", "validation_accuracy", "the same, 4 epochs", linestyle="--")
    if small := [r for r in rows if r["size"] == "small"]:
        lab.curve(ax, small, "labels", "validation_accuracy", f"{small[0]['parameters'] / 1e6:.2f} M parameters, 1 epoch")
    lab.curve(ax, coins := [r for r in rows if r["coin"]], "labels", "validation_accuracy", "labels are coin flips", linestyle="")
    ax.axhline(0.5, color="#8b93a1", linewidth=0.8, linestyle=":")
    right.plot([0.5, 1], [0.5, 1], "--", color="grey", linewidth=0.8)
    for labels, epochs in ((sizes[1], 4), (sizes[-2], 4), (sizes[-1], 1)):
        mine = [c for r in large if (r["labels"], r["epochs"]) == (labels, epochs) for c in r["calibration"]]
        bins = [mine[i :: len(mine) // len(L.seeds)] for i in range(len(mine) // len(L.seeds))]
        right.plot(*([sum(c[k] for c in b) / len(b) for b in bins] for k in ("predicted", "accuracy")), "o-",
                   label=f"{labels} comparisons, {epochs} epoch{'s' * (epochs > 1)}")
    sure = {e: [sum(c["pairs"] * (c["predicted"] - c["accuracy"]) for c in r["calibration"]) / r["validation_pairs"] for r in part
                if r["labels"] == sizes[-2]] for e, part in ((1, once), (4, four))}
    middle = [r for r in once if r["labels"] >= sizes[1]]
    per_doubling, half = lab.slope([math.log2(r["labels"]) for r in middle], [r["validation_accuracy"] for r in middle])
    gap = [next(a["validation_accuracy"] for a in once if a["labels"] == 4 * b["labels"] and a["seed"] == b["seed"])
           - b["validation_accuracy"] for b in four]
    first, last = ([r["validation_accuracy"] for r in once if r["labels"] == n] for n in (sizes[0], sizes[-1]))
    found = (f"{100 * per_doubling:.1f} ± {100 * half:.1f} points per doubling from {sizes[1]} comparisons on, from "
             f"{lab.said(first)} at {sizes[0]} to {lab.said(last)} at {sizes[-1]}; one pass over 4 N beats four over N by "
             f"{100 * sum(gap) / len(gap):.1f} points (mean over N); coin-flip labels give "
             + lab.said([r["validation_accuracy"] for r in coins])
             + f"; with {sizes[-2]} it claims {lab.said(sure[1])} more accuracy than it has after one epoch, {lab.said(sure[4])} "
             "after four"
             + ("." if L.data else f"; {100 * sum(ceiling) / len(ceiling):.0f} % of the training labels are right."))
    L.finish(fig, rows, "near chance with few comparisons, then about linear in their logarithm (papers: about 1 point per "
             "doubling on human data); four epochs on N fall short of one on 4 N.", found,
             agrees=None if abs(per_doubling) < half else per_doubling > 0 and sum(gap) > 0, labels_right=ceiling,
             points_per_doubling=[per_doubling, half])


if __name__ == "__main__":
    lab.start(main)
