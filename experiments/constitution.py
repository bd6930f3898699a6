"""Principles instead of people: revision, soft labels, both orders, AI beside human labels (Bai et al. 2022b; Lee et al. 2023).

The model was made helpful and nothing else and goes along with most harmful requests, but it learnt to judge, criticise and revise
(train_sft.py --data toyworld.lessons; with --sft a model that did). It revises its own responses up to four times by the toy world's
principles; null control: by a principle that says nothing of harm. Then a judge, which had a quarter of these lessons (after all of
them it makes no mistakes), compares pairs of its responses, and reward models learn from the preferences as chances or
rounded, asked in both orders or in one, from simulated people who are right as often as the judge is,
and, the null control, from a coin. Gold's harmlessness is the truth for all. A reward model of a coin may by chance order all
harmful responses right, or all wrong: its loss, not its accuracy, tells that it knows nothing.

    python experiments/constitution.py
"""
import json
import math
import random
from itertools import combinations, pairwise

import lab
import torch

import label
import toyworld
import train_sft
from examples import revise
from minirlhf import stats, winrate
from minirlhf.feedback import rankings
from minirlhf.files import read_jsonl
from toyworld.lessons import FLAWS

RUDE_ONLY = [p for p, flaw in FLAWS.items() if flaw == "rude"]
HARM_ONLY = [p for p, flaw in FLAWS.items() if flaw == "harm"]
SOURCES = ("AI, soft", "AI, hard", "AI, one order", "people, equal accuracy", "coin")


def harmful(prompt):
    return toyworld.kind(prompt) == "refuse"


def harmless(prompts, responses):
    """1 where a response does not help with harm, as a reward function."""
    return [1 + toyworld.gold_parts(p, r)["harmless"] for p, r in zip(prompts, responses)]


def constitution(folder, principles):
    path = f"{folder}/constitution.txt"
    lab.write_atomically(lab.Path(path), "\n\n".join(principles).encode())
    return path


def revisions(L, folder, *, helpful, null, count, turns, seed):
    """Harmlessness of the responses after 0, 1, ... critiques and revisions."""
    prompts = lab.wanted("train", count, seed, harmful)
    revise.main(revise.Settings(
        init=helpful, data=lab.write_lines(f"{folder}/prompts.jsonl", [{"prompt": p} for p in prompts]), count=count,
        revisions=turns, constitution=constitution(folder, RUDE_ONLY) if null else "toyworld.lessons", out=f"{folder}/out.jsonl", seed=seed,
        device=L.device))
    rows = read_jsonl(f"{folder}/out.jsonl")
    said = [[*(step["response"] for step in r["steps"]), r["completion"]] for r in rows]
    scores = torch.tensor([harmless([r["prompt"]] * len(x), x) for r, x in zip(rows, said)])              # (P, turns + 1)
    result = lab.means(first=scores[:, 1] - scores[:, 0], later=(scores[:, -1] - scores[:, 1]) / (turns - 1))
    return result | {"curve": scores.mean(0).tolist(), "usable": len(rows) / len(prompts)}


def judged(L, folder, *, helpful, judge, count, seed):
    """The judge's preferences among four of the model's responses to each harmful request."""
    lab.answers(L, folder, helpful, lab.wanted("train", count, 50 + seed, harmful), 4, seed, temperature=1.0)
    label.main(label.Settings(candidates=f"{folder}/answers.jsonl", out=f"{folder}/rankings.jsonl", annotator="ai", judge=judge,
                              constitution=constitution(folder, HARM_ONLY), seed=seed, device=L.device))
    rows, found = read_jsonl(f"{folder}/rankings.jsonl"), []
    for r in rows:
        truth = harmless([r["prompt"]] * 4, r["responses"])
        for i, j, i_first, j_first in r["asked"]:
            if truth[i] != truth[j] and None not in (i_first, j_first):
                p = [i_first, 1 - j_first, (i_first + 1 - j_first) / 2]              # i is better: asked first, second, both
                found.append([x if truth[i] > truth[j] else 1 - x for x in p] + [(i_first + j_first) / 2])
    right = torch.tensor(found, dtype=torch.float64)                                                                # (pairs, 4)
    first, second, both, letter = right.T
    sure, edges = (both - 0.5).abs() + 0.5, (0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
    inside = [(sure >= a) & (sure < b) for a, b in pairwise(edges)]
    calibration = [(float(sure[x].mean()), float((both[x] > 0.5).double().mean()), int(x.sum())) for x in inside if x.sum() > 9]
    return {"data": f"{folder}/rankings.jsonl", "calibration": calibration, "pairs": len(found)} | lab.means(
        one_order=((first > 0.5).double() + (second > 0.5).double()) / 2, both_orders=(both > 0.5).double(), likes_a=letter - 0.5)


def labels(L, folder, *, source, helpful, judge, count, seed):
    """Preferences [i][j] from one of SOURCES, in the form that train_rm.py learns from as chances."""
    ai, rng = L.arm(judged, helpful=helpful, judge=judge, count=count, seed=seed), random.Random(seed)
    rows = read_jsonl(ai["data"])
    for r in rows:
        truth, asked = harmless([r["prompt"]] * 4, r["responses"]), {(i, j): x for i, j, *x in r["asked"]}
        matrix = [[None] * 4 for _ in range(4)]
        for i, j in combinations(range(4), 2):
            p = r["preferences"][i][j]
            if source == "AI, hard" and p is not None:
                p = float(p > 0.5) if p != 0.5 else 0.5
            elif source == "AI, one order":
                p = asked[i, j][0]
            elif source == "coin":
                p = float(rng.random() < 0.5)
            elif source == "people, equal accuracy":
                right = rng.random() < (0.5 if truth[i] == truth[j] else ai["both_orders"])         # who sees no difference guesses
                p = float((truth[i] > truth[j]) == right)
            if p is not None:
                matrix[i][j], matrix[j][i] = p, 1 - p
        wins = [sum(x for x in row if x is not None) for row in matrix]
        r |= {"preferences": matrix, "ranks": rankings.rank_by(wins)}
    return {"data": lab.write_lines(f"{folder}/rankings.jsonl", rows)}


def arm(L, folder, *, source, helpful, judge, count, steps, questions, seed):
    """A reward model from one source: how often and how surely it prefers the harmless one of two held-out responses; RL."""
    data = L.arm(labels, source=source, helpful=helpful, judge=judge, count=count, seed=seed)["data"]
    rm = L.arm(lab.reward_model, data=data, seed=seed, init=helpful, validation=0.02)["rm"]
    asked = lab.wanted("test", questions, 1000 + seed, harmful)
    texts, responses, shape = lab.answers(L, f"{folder}/before", helpful, asked, 4, 1000 + seed, temperature=1.0)
    truth, scores = lab.table(harmless, texts, responses, shape), lab.table(lab.reward_of(L, rm), texts, responses, shape)
    scale = json.loads(lab.Path(rm, "config.json").read_text(encoding="utf-8"))["score_std"]       # scores -> log odds
    prompt, (better, worse) = winrate.pairs(truth, scale * scores)
    accuracy = stats.accuracy(prompt, better - worse)
    loss = stats.estimate(prompt, [torch.nn.functional.softplus(worse - better)], [torch.ones_like(better)])
    policy = lab.improve(L, folder, init=helpful, reward=rm, data=data, steps=steps, seed=seed)
    said = lab.answers(L, f"{folder}/after", policy, asked, 4, 1000 + seed)
    return lab.means(harmless=lab.table(harmless, *said)) | {
        "before": float(truth.mean()), "accuracy": accuracy["mean"], "accuracy_interval": accuracy["interval"],
        "loss": loss["mean"], "loss_interval": loss["interval"]}


def main(L):
    helpful, judge = L.settings.sft or f"{L.settings.out}/helpful", f"{L.settings.out}/judge"
    for folder, lessons in ((helpful, 900), (judge, 250)):
        if folder != L.settings.sft:
            train_sft.main(train_sft.Settings(data="toyworld.lessons", count=40000, n_positions=256, steps=lessons, out=folder,
                                              device=L.device, resume=True))
    count, ranked, steps, questions = L.pick((60, 40, 10, 40), (200, 100, 40, 150), (800, 400, 120, 400))
    turns = L.pick(3, 4, 4)
    turned = L.run(revisions, [{"helpful": helpful, "null": null, "count": count, "turns": turns, "seed": seed} for seed in L.seeds
                               for null in (False, True)])
    opinions = L.run(judged, [{"helpful": helpful, "judge": judge, "count": ranked, "seed": seed} for seed in L.seeds])
    rows = L.run(arm, [{"source": source, "helpful": helpful, "judge": judge, "count": ranked, "steps": steps,
                        "questions": questions, "seed": seed} for seed in L.seeds for source in SOURCES])

    fig, axes = L.figure("Critique and revision", "revisions", "harmless responses to harmful requests", columns=3)
    by_null = {n: [r for r in turned if r["null"] == n] for n in (False, True)}
    for null, name in ((False, "all principles"), (True, "a principle on manners alone")):
        axes[0].plot([sum(x) / len(x) for x in zip(*(r["curve"] for r in by_null[null]))], "o-", label=name)
    axes[0].set(ylim=(0, 1.03), xticks=range(turns + 1))
    axes[1].plot([0.5, 1], [0.5, 1], "--", color="grey")
    for r in opinions:
        axes[1].plot([c[0] for c in r["calibration"]], [c[1] for c in r["calibration"]], "o-", color=lab.COLOURS[0])
    axes[1].set(title="The judge's calibration", xlabel="its preference, both orders averaged", ylabel="agrees with gold on harm")
    by = {source: [r for r in rows if r["source"] == source] for source in SOURCES}
    for i, (name, mark, what) in enumerate((("loss", "^", "reward model's loss on harm, nats"), ("accuracy", "o", "its accuracy"),
                                            ("harmless", "s", "harmless after RL"))):
        cells = [lab.estimate(by[s], name) for s in SOURCES]
        axes[2].errorbar([m for m, _ in cells], [y + 0.2 * i for y in range(5)], xerr=[h for _, h in cells], fmt=mark, capsize=2,
                         label=what)
    axes[2].axvline(math.log(2), color="grey", linestyle=":", linewidth=0.8)                               # of who knows nothing
    axes[2].set(title="Reward models by source of labels", yticks=range(5), yticklabels=SOURCES, xlim=(0, 1.2), ylim=(-0.5, 6.2))
    axes[2].invert_yaxis()

    (first, fh), (later, _), (null, nh) = (
        lab.estimate(by_null[n], x) for n, x in ((False, "first"), (False, "later"), (True, "first")))
    one, both, likes = (lab.estimate(opinions, x) for x in ("one_order", "both_orders", "likes_a"))
    soft, soft_half = lab.estimate(by[SOURCES[0]], "loss", by[SOURCES[1]])
    apart, apart_half = lab.estimate(by[SOURCES[0]], "harmless", by[SOURCES[3]])
    pairs = [c for r in opinions for c in r["calibration"]]
    claims = sum(c[0] * c[2] for c in pairs) / sum(c[2] for c in pairs)
    scores = "; ".join(f"{s}: loss {lab.estimate(by[s], 'loss')[0]:.2f}, accuracy {lab.estimate(by[s], 'accuracy')[0]:.2f}, "
                       f"harmless after RL {lab.estimate(by[s], 'harmless')[0]:.2f}" for s in SOURCES)
    most = first > max(later, 0)
    L.finish(fig, [*turned, *opinions, *rows],
             expected="harmlessness rises with each revision, with the first the most, and not by a principle on manners (null "
                      "control); asking in both orders helps, calibrated soft labels beat hard ones, AI labels match people's of "
                      "equal accuracy (null control: a coin).",
             found=f"the first revision made {first:+.2f} ± {fh:.2f}, each later one {later:+.2f}, the first of the null "
                   f"control {null:+.2f} ± {nh:.2f}; the judge was right on {one[0]:.3f} ± {one[1]:.3f} of pairs in one "
                   f"order, {both[0]:.3f} ± {both[1]:.3f} in both (of which it claims {claims:.3f}), its liking for A "
                   f"{likes[0]:+.3f} ± {likes[1]:.3f}; reward models from {scores}.",
             agrees=None if first < fh else most and null < nh and both[0] >= one[0] and apart >= -apart_half,
             why=f"the first revision does {'the most' if most else 'not do the most'}, {max(0, null) / first:.0%} of it also by a "
                 "principle on manners, which is what being revised at all does; policies from AI labels are more harmless than "
                 f"those from people's by {apart:+.3f} ± {apart_half:.3f}; soft labels have {abs(soft):.2f} ± {soft_half:.2f} nats "
                 f"{'more' if soft > 0 else 'less'} loss than hard ones, the judge being {abs(both[0] - claims):.2f} too "
                 f"{'modest' if both[0] > claims else 'sure'}")


if __name__ == "__main__":
    lab.start(main)
