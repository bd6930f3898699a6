"""Rankings of K responses as groups, or as shuffled pairs (Ouyang 2022, section 3.5).

InstructGPT's authors saw that the C(K,2) comparisons of a ranking, shuffled into one data set, made a single pass overfit: each
response is trained on K - 1 times. As one element of a batch they need K forward passes instead of K(K-1), and do not. Null
control: as many pairs, each of another prompt, so that nothing is repeated; if pairs as such were the trouble, it would show here.

    python experiments/kway_batching.py
"""
import json
from itertools import combinations
from pathlib import Path

import lab

from minirlhf import preferences
from minirlhf.data import read_rankings
from minirlhf.files import read_jsonl, write_atomically
from minirlhf.model import ScalarGPT

K = 6


def write(folder: str, form: str, rows: list[dict]) -> int:
    """train.jsonl in that form; how many comparisons it holds."""
    if form == "groups":
        records, count = rows, sum(len(set(r["ranks"])) > 1 for r in rows) * K * (K - 1) // 2
    else:
        pairs = [(r["prompt"], *sorted((i, j), key=r["ranks"].__getitem__), r) for r in rows for i, j in
                 combinations(range(len(r["ranks"])), 2) if r["responses"][i] != r["responses"][j]]
        records = [{"prompt": p, "responses": [r["responses"][i], r["responses"][j]], "ranks": [1, 2]} for p, i, j, r in pairs]
        count = len(records)
    write_atomically(Path(folder, "train.jsonl"), "".join(json.dumps(r) + "\n" for r in records).encode())
    return count


def arm(L, folder, *, form, prompts, epochs, test, seed):
    """A reward model from `prompts` rankings: held-out loss and accuracy, loss and accuracy on its own training data."""
    samples = 2 if form == "independent pairs" else K
    count = prompts * K * (K - 1) // 2 if form == "independent pairs" else prompts
    rows = read_jsonl(L.arm(lab.rankings, count=count, samples=samples, noise=0.5, seed=seed + 1)["data"])
    comparisons = write(folder, form, rows)
    batch = K * (K - 1) // 2 * 8 if form == "pairs, 8 prompts' worth" else 8
    lab.reward_model(L, folder, data=f"{folder}/train.jsonl", epochs=epochs, seed=seed, batch_size=batch, normalize_samples=0,
                     validation=1e-9)
    model = ScalarGPT.from_pretrained(f"{folder}/rm").to(L.device)
    held_out = L.arm(lab.rankings, count=test, samples=K, noise=0.5, seed=seed + 1000, split="test")["data"]
    result = {"comparisons": comparisons}
    for name, file in (("held_out", held_out), ("train", f"{folder}/train.jsonl")):
        groups = preferences.to_groups(model.tokenizer, read_rankings(file), model.config.n_positions)
        found = preferences.validate(model, groups[:1500], 8192)
        result |= {f"{name}_loss": found["validation_loss"], f"{name}_accuracy": found["validation_accuracy"]}
    log = read_jsonl(f"{folder}/rm/metrics.jsonl")
    tokens = sum(g.tokens() for g in groups) / len(groups) * batch * len(log)
    return result | {"steps": len(log), "tokens": tokens}


def main(L):
    forms = ("groups", "pairs", "pairs, 8 prompts' worth", "independent pairs")
    prompts, test, epochs = L.pick((40, 100, (1, 3)), (150, 300, (1, 2, 4)), (400, 600, (1, 2, 4, 8)))
    rows = L.run(arm, [{"form": form, "prompts": prompts, "epochs": e, "test": test, "seed": s} for s in L.seeds for form in forms
                       for e in epochs if form != "independent pairs" or e == 1])
    fig, (ax, right) = L.figure(f"{prompts} rankings of {K} responses", "epochs", "held-out loss, nats per comparison", columns=2)
    right.set(title="Remembered, not learnt", xlabel="epochs", ylabel="accuracy: training data minus held-out")
    for r in rows:
        r["gap"] = r["train_accuracy"] - r["held_out_accuracy"]
    for form in forms:
        mine = [r for r in rows if r["form"] == form]
        lab.curve(ax, mine, "epochs", "held_out_loss", form)
        lab.curve(right, mine, "epochs", "gap", form)
    ax.axhline(0.6931, color="#8b93a1", linewidth=0.8, linestyle=":")

    def of(form, name, e=1):
        return [r[name] for r in rows if r["form"] == form and r["epochs"] == e]
    worse = [p - g for p, g in zip(of("pairs", "held_out_loss"), of("groups", "held_out_loss"))]
    gaps = {form: lab.said(of(form, "gap")) for form in forms}
    mean, half = lab.over_seeds(worse)
    half, remembers = (half if half == half else 0), sum(of("pairs", "gap")) - sum(of("groups", "gap"))
    late = lab.said([p - g for p, g in zip(of("pairs", "held_out_loss", epochs[1]), of("groups", "held_out_loss", epochs[1]))])
    L.finish(fig, rows, "shuffled pairs overfit within one epoch, groups do not, and groups cost a fraction of the computation.",
             f"after one epoch the held-out loss of shuffled pairs (batches of 8) is {lab.said(worse, 3)} nats above that of "
             f"groups, the gap between training and held-out accuracy {gaps['pairs']} against {gaps['groups']}; with batches of "
             f"as many comparisons as the groups have the gap is {gaps[forms[2]]}, with pairs of different prompts "
             f"{gaps[forms[3]]}; an epoch of pairs computes "
             f"{of('pairs', 'tokens')[0] / of('groups', 'tokens')[0]:.1f} times the tokens.",
             agrees=None if abs(mean) < half else mean > 0,
             why=f"after one epoch shuffled pairs {'remember more' if remembers > 0 else 'do not remember more'}, and their "
                 f"held-out loss is {'higher' if mean > half else 'lower' if mean < -half else 'not surely another'}; after "
                 f"{epochs[1]} it is {late} nats above that of groups")


if __name__ == "__main__":
    lab.start(main)
