"""What RL makes a model forget, and what holds it (Ouyang et al. 2022, figures 33 and 34).

RL maximises gold on seven kinds of requests; the pretraining text is demonstrations of the other seven, which RL never asks for.
Their language-model loss, and gold on them, is the alignment tax. Arms: KL coefficients without a pretraining mix, coefficients of
the mix at a small KL coefficient, and, the null control, a mix of the same text with each response's words shuffled: as many
gradient steps on text that holds nothing worth keeping but the words.

    python experiments/ppo_ptx.py
"""
import random

import lab
import torch

import toyworld
from minirlhf import stats, supervised
from minirlhf.data import read_demonstrations
from minirlhf.device import pick_device
from minirlhf.files import read_jsonl
from minirlhf.model import GPT

TRAINED = ("comfort", "ideas", "fact", "refuse", "lookalike", "unknown", "belief")


def text(L, folder, *, count, seed):
    """Demonstrations of the kinds that RL does not train: {"text", "shuffled", "held_out": files}; RL's prompts."""
    rows = [r for r in toyworld.demonstrations("train", 2 * count, 500 + seed) if not trained(r["prompt"])]
    mixed, rng = [], random.Random(seed)
    for r in rows:
        words = r["completion"].split()
        mixed.append(r | {"completion": " ".join(rng.sample(words, len(words)))})
    held_out = [r for r in toyworld.demonstrations("test", 1000, seed) if not trained(r["prompt"])][:300]
    prompts = lab.wanted("train", count, seed, trained)
    return {name: lab.write_lines(f"{folder}/{name}.jsonl", x) for name, x in (
        ("text", rows), ("shuffled", mixed), ("held_out", held_out), ("prompts", [{"prompt": p} for p in prompts]))}


def lm_loss(L, folder: str, file: str) -> float:
    """Nats per token of a policy's on the held-out text."""
    model = GPT.from_pretrained(folder).to(pick_device(L.device))
    return supervised.validation_loss(model, supervised.to_rows(model, read_demonstrations(file)), 4096)


def trained(prompt):
    return toyworld.kind(prompt) in TRAINED


def tax(L, folder, policy, files, questions, seed):
    """The loss on held-out text; gold on the kinds that RL trains, and elsewhere."""
    gold = {}
    for name, keep in (("gold", trained), ("elsewhere", lambda p: not trained(p))):
        asked = lab.wanted("test", questions, 1000 + seed, keep)
        gold[name] = lab.table(toyworld.reward, *lab.answers(L, f"{folder}/{name}", policy, asked, 2, 1000 + seed))
    return {"lm_loss": lm_loss(L, policy, files["held_out"])} | lab.means(**gold)


def before(L, folder, *, count, questions, seed):
    return tax(L, folder, L.sft, L.arm(text, count=count, seed=seed), questions, seed)


def arm(L, folder, *, kl_coef, ptx, mix, lr, count, steps, questions, seed):
    """ptx: the mix's coefficient; mix: its text."""
    files = L.arm(text, count=count, seed=seed)
    policy = lab.improve(L, folder, reward="toyworld", data=files["prompts"], kl_coef=kl_coef, ptx_data=files[mix], ptx_coef=ptx, lr=lr,
                         steps=steps, seed=seed)
    trail = lab.path(policy, ("kl",), 5)["kl"], [r["lm_loss"] for r in read_jsonl(f"{policy}/metrics.jsonl") if "lm_loss" in r]
    return {"kl": trail[0][-1], "path": list(zip(*trail))} | tax(L, folder, policy, files, questions, seed)


def name_of(row) -> str:
    return (f"KL {row['kl_coef']:g}" if not row["ptx"] else f"KL {row['kl_coef']:g}, mix {row['ptx']:g}") + (
        ", shuffled" if row["mix"] == "shuffled" else "")


def main(L):
    count, steps, questions = L.pick((500, 18, 50), (2000, 80, 200), (4000, 300, 400))
    small = 0.02
    arms = [(kl, 0.0, "text") for kl in L.pick((0.0, 0.02, 0.2), (0.0, 0.02, 0.1, 0.3), (0.0, 0.02, 0.05, 0.1, 0.2, 0.5))]
    arms += [(small, ptx, "text") for ptx in L.pick((0.3, 1.0), (0.1, 0.3, 1.0, 3.0), (0.03, 0.1, 0.3, 1.0, 3.0))]
    arms += [(small, 1.0, "shuffled")]
    start = L.run(before, [{"count": count, "questions": questions, "seed": seed} for seed in L.seeds])
    rows = L.run(arm, [{"kl_coef": kl, "ptx": ptx, "mix": mix, "lr": 2e-3, "count": count, "steps": steps, "questions": questions,
                        "seed": seed} for seed in L.seeds for kl, ptx, mix in arms])

    fig, axes = L.figure("During RL", "KL to SFT, nats per response", "loss on the other kinds' text, nats per token", columns=3)
    for i, (kl, ptx, mix) in enumerate(arms):
        mine = [r for r in rows if (r["kl_coef"], r["ptx"], r["mix"]) == (kl, ptx, mix)]
        colour, marker = ("black", "x") if mix == "shuffled" else (lab.COLOURS[i % 8], "^" if ptx else "o")
        if mix == "text":                                            # what the other arm logs is the loss on its own text
            for r in mine:
                axes[0].plot(*zip(*r["path"]), "-", color=colour, linewidth=1, label=name_of(r) if r is mine[0] else None)
        for ax, y in ((axes[1], "lm_loss"), (axes[2], "elsewhere")):
            ax.plot([r["gold"] for r in mine], [r[y] for r in mine], marker, color=colour, label=name_of(mine[0]), linestyle="")
    for ax, y in ((axes[1], "lm_loss"), (axes[2], "elsewhere")):
        ax.plot([r["gold"] for r in start], [r[y] for r in start], "k*", markersize=8, label="SFT")
        ax.set(xlabel="gold on the kinds that RL trains")
    axes[1].set(title="The tax, as loss", ylabel="loss on the other kinds' text")
    axes[2].set(title="The tax, as gold", ylabel="gold on the other kinds")

    def mean(kl, ptx, mix, name):
        return lab.over_seeds([r[name] for r in rows if (r["kl_coef"], r["ptx"], r["mix"]) == (kl, ptx, mix)])[0]

    sft, free, strict = (sum(r["lm_loss"] for r in start) / len(start), mean(*arms[0], "lm_loss"), max(a[0] for a in arms))
    rise = [r["lm_loss"] - s["lm_loss"] for s in start for r in rows if (r["seed"], r["kl_coef"], r["ptx"]) == (s["seed"], 0, 0)]
    listed = "; ".join(f"{name_of({'kl_coef': a[0], 'ptx': a[1], 'mix': a[2]})}: loss {mean(*a, 'lm_loss') - sft:+.2f}, gold "
                       f"{mean(*a, 'gold'):.2f}" for a in arms)
    path = [point for r in rows if r["ptx"] == 0 for point in r["path"]]
    r_kl = stats.correlation(*torch.tensor(path, dtype=torch.float64).T)
    mixed, shuffled, tight = ({x: mean(*a, x) for x in ("lm_loss", "gold")} for a in (
        (small, 1.0, "text"), (small, 1.0, "shuffled"), (strict, 0.0, "text")))
    L.finish(fig, [*start, *rows],
             expected="the loss on text that RL does not train rises with KL; mixing that text into the updates holds it at a "
                      "higher gold than a larger KL coefficient does, and shuffled text does not (null control).",
             found=f"the loss of {sft:.2f} rose by {lab.said(rise)} without any KL penalty (correlation with KL along all runs "
                   f"without mix {r_kl:.2f}); by arm, {listed}.",
             agrees=mixed["lm_loss"] < min(free, shuffled["lm_loss"]) and mixed["gold"] > tight["gold"],
             why=f"with the mix the loss moved by {mixed['lm_loss'] - sft:+.2f} and gold was {mixed['gold']:.2f}; with a KL "
                 f"coefficient of {strict:g} by {tight['lm_loss'] - sft:+.2f} and {tight['gold']:.2f}")


if __name__ == "__main__":
    lab.start(main)
