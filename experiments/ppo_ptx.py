"""What RL makes a model forget, and what holds it (Ouyang et al. 2022, figures 33 and 34).

RL maximises gold on seven kinds of requests; the pretraining text is demonstrations of the other
seven, which RL never asks for. Their language-model loss, and gold on them, is the alignment tax.
Arms: KL coefficients without a pretraining mix; coefficients of the mix at a small KL coefficient;
and, the null control, a mix of the same text with each response's words shuffled.

    python experiments/ppo_ptx.py
"""

import torch
from lab import arms, figures, forgetting, start
from lab.intervals import column, describe, estimate, table, where

from minirlhf.files import read_jsonl
from minirlhf.stats import correlation

SMALL = 0.02  # KL coefficient of the arms with a mix


def before(L, folder, *, count, questions, seed):
    files = L.arm(forgetting.texts, count=count, seed=seed)
    return forgetting.tax(L, folder, L.sft, files["held_out"], questions, seed)


def arm(L, folder, *, kl_coef, ptx_coef, mix, lr, count, steps, questions, seed):
    """mix: the text of the pretraining mix, as in `texts`."""
    files = L.arm(forgetting.texts, count=count, seed=seed)
    mixed = {"ptx_data": files[mix], "ptx_coef": ptx_coef}
    settings = {"reward": "toyworld", "data": files["prompts"], "kl_coef": kl_coef, "lr": lr}
    policy = arms.train_policy(L, folder, steps=steps, seed=seed, **settings, **mixed)
    kl = arms.metrics(policy, ["kl"], window=5)["kl"][-1]
    log = read_jsonl(f"{policy}/metrics.jsonl")
    path = [(row["kl"], row["lm_loss"]) for row in log if "lm_loss" in row]  # every five steps
    result = forgetting.tax(L, folder, policy, files["held_out"], questions, seed)
    return {"kl": kl, "path": path, **result}


def main(L):
    count, steps, questions = L.pick(quick=(500, 18, 50), default=(2000, 80, 200))
    kl_coefs = L.pick(quick=(0.0, 0.02, 0.2), default=(0.0, 0.02, 0.1, 0.3))
    ptx_coefs = L.pick(quick=(0.3, 1.0), default=(0.1, 0.3, 1.0, 3.0))
    variants = [{"kl_coef": kl, "ptx_coef": 0.0, "mix": "text"} for kl in kl_coefs]
    variants += [{"kl_coef": SMALL, "ptx_coef": ptx, "mix": "text"} for ptx in ptx_coefs]
    control = {"kl_coef": SMALL, "ptx_coef": 1.0, "mix": "shuffled"}
    variants.append(control)
    size = {"count": count, "questions": questions}
    sft = L.run(before, **size)
    rows = L.run(arm, variants, lr=2e-3, steps=steps, **size)

    gold = "gold on the kinds that RL trains"
    fig, (left, right) = figures.new(
        ("During RL", "KL to SFT, nats per response", "loss on the other kinds' text"),
        ("The tax", gold, "loss on the other kinds' text, nats per token"),
    )
    right.plot(column(sft, "gold"), column(sft, "lm_loss"), "k*", label="SFT")
    for i, variant in enumerate(variants):
        same = where(rows, **variant)
        style = {"color": f"C{i % 8}", "marker": "^" if variant["ptx_coef"] else "o"}
        if variant == control:
            style = {"color": "black", "marker": "x"}
        label = describe(variant)
        right.plot(column(same, "gold"), column(same, "lm_loss"), label=label, ls="", **style)
        for row in same:
            if variant != control:  # what that one logs is the loss on its own text
                left.plot(*zip(*row["path"]), color=style["color"])

    path = [point for row in where(rows, ptx_coef=0.0) for point in row["path"]]
    r = correlation(*torch.tensor(path).T)
    free, strict = (where(rows, kl_coef=kl, ptx_coef=0.0) for kl in (0.0, kl_coefs[-1]))
    mixed = where(rows, **{**control, "mix": "text"})
    shuffled = where(rows, **control)
    loss, *higher = (estimate(same, "lm_loss").mean for same in (mixed, free, shuffled))
    more_gold = estimate(mixed, "gold").mean > estimate(strict, "gold").mean
    L.finish(
        fig,
        [*sft, *rows],
        expected="the loss on text that RL does not train rises with KL; mixing that text into the "
        "updates holds it at a higher gold than a larger KL coefficient does, and shuffled text "
        "does not (null control).",
        found=[
            f"the SFT model's loss: {estimate(sft, 'lm_loss')}",
            *table(rows, variants, "lm_loss", "gold", "elsewhere"),
            f"correlation of loss and KL along the runs without a mix: {r:.2f}",
        ],
        agrees=loss < min(higher) and more_gold,
    )


if __name__ == "__main__":
    start(main)
