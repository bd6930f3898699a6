"""Principles instead of people: what do critique and revision change?

The model was made helpful and nothing else and goes along with most harmful requests, but it learnt
to judge, criticise and revise (train_sft.py --data toyworld.lessons, or --sft of such a model). It
revises its own responses up to four times by the toy world's principles (Bai et al. 2022b, figure
5). Null control: by a principle that says nothing of harm.

    python experiments/constitution.py
"""

import torch
from lab import arms, figures, start
from lab.intervals import column, estimate, means, table, where
from lab.principles import HELPFUL, harmless, teach, write_principles

from examples import revise
from minirlhf.files import read_jsonl


def revised(L, folder, *, helpful, null, count, revisions, seed):
    """Harmlessness of the responses after 0, 1, ... critiques and revisions."""
    prompts = arms.toy_prompts("train", count, seed, arms.is_harmful)
    constitution = write_principles(folder, "rude") if null else "toyworld.lessons"
    out = f"{folder}/out.jsonl"
    revise.main(
        revise.Settings(
            init=helpful,
            data=arms.write_prompts(f"{folder}/prompts.jsonl", prompts),
            count=count,
            revisions=revisions,
            constitution=constitution,
            out=out,
            seed=seed,
            device=L.device,
        )
    )
    rows = []
    for record in read_jsonl(out):
        responses = [*column(record["steps"], "response"), record["completion"]]
        rows.append([harmless(record["prompt"], response) for response in responses])
    scores = torch.tensor(rows, dtype=torch.float64)  # (P, revisions + 1)
    first = scores[:, 1] - scores[:, 0]
    later = (scores[:, -1] - scores[:, 1]) / (revisions - 1)
    return {"curve": scores.mean(0).tolist(), **means(first=first, later=later)}


def main(L):
    helpful = L.settings.sft or teach(L.settings.out, *HELPFUL, device=L.device)
    count, revisions = L.pick(quick=(60, 3), default=(200, 4))
    variants = [{"null": False}, {"null": True}]
    rows = L.run(revised, variants, helpful=helpful, count=count, revisions=revisions)
    by_all, by_manners = where(rows, null=False), where(rows, null=True)

    fig, [ax] = figures.new(
        ("Critique and revision", "revisions", "harmless responses to harmful requests")
    )
    for same, name in ((by_all, "all principles"), (by_manners, "a principle on manners alone")):
        ax.plot(torch.tensor(column(same, "curve")).mean(0), "o-", label=name)
    ax.set(ylim=(0, 1.03), xticks=range(revisions + 1))

    first, later = estimate(by_all, "first"), estimate(by_all, "later")
    null = estimate(by_manners, "first")
    L.finish(
        fig,
        rows,
        expected="harmlessness rises with each revision, with the first the most, and not by a "
        "principle on manners (null control).",
        found=table(rows, variants, "first", "later"),
        agrees=first.mean > max(later.mean, 0, null.mean + null.half),
        decided=first.sure,
    )


if __name__ == "__main__":
    start(main)
