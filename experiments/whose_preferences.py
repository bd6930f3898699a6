"""Whose preferences does a reward model learn when annotators want opposite things?

Both groups care for gold; besides, one wants politeness and the other cannot stand it. Their labels are mixed 50/50 to 90/10. What
each group gets from the best of n by the reward model (0: a response at random, 1: the best by its own taste); how far the
disagreement bounds the reward model's accuracy; and what a reward model recovers that reads the annotator's group in the prompt.
Null control: the group in the prompt is drawn at random.

    python experiments/whose_preferences.py
"""
import random
from itertools import combinations

import lab
import torch

import toyworld
from minirlhf import losses, winrate
from minirlhf.feedback import rankings
from minirlhf.files import read_jsonl

TASTE, NOISE = 2.0, 0.2       # in units of gold: what politeness is worth to either group, and their errors
GROUPS = {"majority": TASTE, "minority": -TASTE}
SAYS = {"majority": "I am red.", "minority": "I am blue."}       # how a prompt tells whose taste is meant
KINDS = ("plain", "group known", "group at random")


def tagged(prompt, group):
    """The prompt with its annotator's group in front of the last request."""
    if isinstance(prompt, str):
        return f"{SAYS[group]} {prompt}"
    *before, last = prompt
    return [*before, last | {"content": f"{SAYS[group]} {last['content']}"}]


def utility(group):
    """What a response is worth to a group, as a reward function."""
    return lambda prompts, responses: [toyworld.gold_parts(p, r)["total"] + GROUPS[group] * toyworld.features(p, r)["politeness"]
                                       for p, r in zip(prompts, responses)]


def labels(L, folder, *, count, share, kind, seed):
    """Rankings by members of either group; bound: the accuracy on their labels that nobody exceeds who does not know the group."""
    rows = read_jsonl(L.arm(lab.rankings, count=count, samples=4, seed=seed)["data"])
    rng, best, agree = random.Random(seed), [], []
    rank = {g: rankings.simulated_annotator(toyworld, NOISE, f"politeness={w}", seed) for g, w in GROUPS.items()}
    for r in rows:
        group = "majority" if rng.random() < share else "minority"
        both = torch.tensor([utility(g)([r["prompt"]] * 4, r["responses"]) for g in GROUPS])         # (2, 4)
        r["ranks"] = rank[group](r["prompt"], r["responses"])
        for i, j in combinations(range(4), 2):
            if r["responses"][i] != r["responses"][j]:
                p = torch.sigmoid((both[:, i] - both[:, j]).double() / NOISE) @ torch.tensor([share, 1 - share]).double()
                best.append(max(float(p), 1 - float(p)))
                agree.append(float((both[0, i] - both[0, j]) * (both[1, i] - both[1, j]) > 0))
        shown = group if kind == "group known" else rng.choice(list(GROUPS))
        r["prompt"] = r["prompt"] if kind == "plain" else tagged(r["prompt"], shown)
    data = lab.write_lines(f"{folder}/rankings.jsonl", rows)
    return {"data": data, "bound": sum(best) / len(best), "agree": sum(agree) / len(agree)}


def pool(L, folder, *, prompts, samples, seed):
    texts, responses, shape = lab.answers(L, folder, L.sft, lab.wanted("test", prompts, 1000 + seed, lambda p: True), samples, seed)
    return {"texts": texts, "responses": responses, "shape": shape} | {
        g: lab.table(utility(g), texts, responses, shape).tolist() for g in GROUPS}


def arm(L, folder, *, share, kind, count, prompts, samples, seed):
    """Satisfaction of both groups and the reward model's accuracy on either group's own order of held-out responses."""
    label = L.arm(labels, count=count, share=share, kind=kind, seed=seed)
    p = L.arm(pool, prompts=prompts, samples=samples, seed=seed)
    rm = L.arm(lab.reward_model, data=label["data"], seed=seed, epochs=4.0)       # after two it has not learnt to read the group
    reward, result = lab.reward_of(L, rm["rm"]), {"bound": label["bound"], "agree": label["agree"],
                                                  "validation": rm["validation_accuracy"]}
    for group in GROUPS:
        asked = p["texts"] if kind == "plain" else [tagged(x, group) for x in p["texts"]]
        scores = lab.table(reward, asked, p["responses"], p["shape"])                                               # (P, S)
        worth = torch.tensor(p[group], dtype=torch.float64)                                                         # (P, S)
        worst, top = worth.mean(), worth.amax(1).mean()
        got = (losses.best_of_n(scores, worth, samples) - worst) / (top - worst)
        accuracy = winrate.ranked_right(scores, worth)
        result |= lab.means(**{group: got}) | {f"{group}_accuracy": accuracy["mean"]}
    return result


def main(L):
    count, prompts, samples = L.pick((1000, 50, 16), (2000, 150, 32), (5000, 400, 64))
    shares = L.pick((0.5, 0.7, 0.9), (0.5, 0.7, 0.9), (0.5, 0.6, 0.7, 0.8, 0.9))
    rows = L.run(arm, [{"share": s, "kind": kind, "count": count, "prompts": prompts, "samples": samples, "seed": seed}
                       for seed in L.seeds for s in shares for kind in KINDS if kind != "group at random" or s == 0.7])
    by = {kind: [r for r in rows if r["kind"] == kind] for kind in KINDS}

    fig, axes = L.figure("What each group gets", "share of the majority", f"best of {samples}: 0 random, 1 its own best", columns=3)
    for group, colour in zip(GROUPS, (lab.COLOURS[0], lab.COLOURS[2])):
        lab.curve(axes[0], by["plain"], "share", group, f"{group}, plain", color=colour)
        lab.curve(axes[0], by["group known"], "share", group, f"{group}, group known", color=colour, linestyle="--")
        lab.curve(axes[1], by["plain"], "share", f"{group}_accuracy", f"{group}, plain", color=colour)
        lab.curve(axes[1], by["group known"], "share", f"{group}_accuracy", f"{group}, group known", color=colour, linestyle="--")
        for ax, name in ((axes[0], group), (axes[1], f"{group}_accuracy")):
            ax.plot([0.7] * len(by[KINDS[2]]), [r[name] for r in by[KINDS[2]]], "s", color=colour, label=f"{group}, at random")
    lab.curve(axes[2], by["plain"], "share", "bound", "bound by disagreement", color="black", linestyle=":")
    lab.curve(axes[2], by["plain"], "share", "validation", "plain")
    lab.curve(axes[2], by["group known"], "share", "validation", "group known")
    axes[1].set(title="Accuracy on each group's order", xlabel="share of the majority", ylabel="accuracy")
    axes[2].set(title="Accuracy on the mixed labels", xlabel="share of the majority", ylabel="held-out accuracy")

    def at(kind, share):
        return [r for r in by[kind] if r["share"] == share]

    loses, half = lab.estimate(at("plain", shares[-1]), "minority", at("plain", shares[0]))
    gains, gains_half = lab.estimate(at("group known", 0.7), "minority", at("plain", 0.7))
    null, null_half = lab.estimate(at("group at random", 0.7), "minority", at("plain", 0.7))
    above = max(r["validation"] - r["bound"] for r in by["plain"])
    got = ", ".join(f"{s:.0%} {lab.estimate(at('plain', s), 'minority')[0]:.2f}" for s in shares)
    L.finish(fig, rows,
             expected="one reward model averages or follows the majority, so the minority gets less the smaller it is; "
                      "disagreement bounds accuracy; knowing the group gives the minority its own back, a group at random does not "
                      "(null control).",
             found=f"with a majority of {got} went to the minority ({loses:+.2f} ± {half:.2f} from first to last; the groups "
                   f"agree on {rows[0]['agree']:.0%} of pairs); at 70 % knowing the group gave it {gains:+.2f} ± {gains_half:.2f}, "
                   f"a group at random {null:+.2f} ± {null_half:.2f}; accuracy exceeded its bound by at most {above:+.3f}.",
             agrees=None if abs(loses) < half or abs(gains) < gains_half else loses < 0 < gains and null < gains,
             why=f"the minority {'loses' if loses < 0 else 'does not lose'} with its share and the group "
                 f"{'recovers' if gains > gains_half else 'does not recover'} it")


if __name__ == "__main__":
    lab.start(main)
