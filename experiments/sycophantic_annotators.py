"""Does a policy learn to agree with wrong beliefs when some annotators reward agreement (Sharma et al. 2023)?

Prompts state a belief, four in five of them wrong, and ask about it. A share of the annotators likes to be agreed with more than it
likes the truth. Reward model, RL, and how often held-out wrong beliefs are confirmed: before RL, after it, and by the reward model
itself, asked which of two SFT responses it prefers. Null control: the same annotators do not see the belief.

    python experiments/sycophantic_annotators.py
"""
import random

import lab

import toyworld
from minirlhf import winrate
from minirlhf.feedback import rankings
from minirlhf.files import read_jsonl

AGREEMENT = 5.0       # in units of gold: more than what a falsehood costs


def states_belief(prompt):
    return toyworld.kind(prompt) == "belief"


def wrong(prompt):
    return toyworld.features(prompt, "You are right.")["agreement"] == 1


def candidates(L, folder, *, count, seed):
    """SFT responses to prompts with beliefs, right and wrong ones."""
    lab.answers(L, folder, L.sft, lab.wanted("train", count, seed, states_belief), 4, seed, temperature=1.0)
    return {"data": f"{folder}/answers.jsonl"}


def labels(L, folder, *, count, share, hidden, seed):
    """Rankings, of which annotators who like agreement made `share`; hidden: nobody saw the belief."""
    rows, rng = read_jsonl(L.arm(candidates, count=count, seed=seed)["data"]), random.Random(seed)
    honest, sycophant = (rankings.simulated_annotator(toyworld, 0.2, bias, seed) for bias in ("", f"agreement={AGREEMENT}"))
    for r in rows:
        seen = toyworld.without_belief(r["prompt"]) if hidden else r["prompt"]
        r["ranks"] = (sycophant if rng.random() < share else honest)(seen, r["responses"])
    return {"data": lab.write_lines(f"{folder}/rankings.jsonl", rows)}


def measured(L, folder, policy, questions, seed, reward=None):
    """How often a policy agrees with held-out wrong beliefs, and its gold; the reward's liking for agreement."""
    asked = lab.wanted("test", questions, 1000 + seed, wrong)
    texts, responses, shape = lab.answers(L, folder, policy, asked, 4, 1000 + seed, temperature=0.7)
    agrees = lab.table(lab.feature("agreement"), texts, responses, shape)
    result = lab.means(agreement=agrees, gold=lab.table(toyworld.reward, texts, responses, shape))
    if reward:
        likes = winrate.ranked_right(lab.table(reward, texts, responses, shape), agrees)
        result |= {"likes": likes["mean"], "likes_interval": likes["interval"], "likes_pairs": likes["pairs"]}
    return result


def before(L, folder, *, questions, seed):
    return measured(L, folder, L.sft, questions, seed)


def arm(L, folder, *, share, hidden, count, steps, questions, seed):
    data = L.arm(labels, count=count, share=share, hidden=hidden, seed=seed)["data"]
    rm = L.arm(lab.reward_model, data=data, seed=seed, epochs=3.0, validation=0.02)["rm"]
    likes = measured(L, f"{folder}/sft", L.sft, questions, seed, lab.reward_of(L, rm))
    policy = lab.improve(L, folder, reward=rm, data=data, steps=steps, seed=seed)
    return {k: v for k, v in likes.items() if k.startswith("likes")} | measured(L, f"{folder}/after", policy, questions, seed)


def main(L):
    count, steps, questions = L.pick((200, 16, 60), (800, 50, 150), (2000, 150, 300))
    shares = L.pick((0.0, 0.1, 0.3, 0.5), (0.0, 0.1, 0.3, 0.5), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    common = {"count": count, "steps": steps, "questions": questions}
    start = L.run(before, [{"questions": questions, "seed": seed} for seed in L.seeds])
    rows = L.run(arm, [{"share": s, "hidden": hidden, "seed": seed, **common} for seed in L.seeds
                       for s, hidden in [*((s, False) for s in shares), (shares[-1], True)]])
    seen, hidden = ([r for r in rows if r["hidden"] == h] for h in (False, True))

    fig, axes = L.figure("The policy", "annotators who like agreement", "agrees with a wrong belief", columns=3)
    for ax, name in zip(axes, ("agreement", "likes", "gold")):
        lab.curve(ax, seen, "share", name, "belief shown to annotators")
        mean, half = lab.estimate(hidden, name)
        ax.errorbar([shares[-1]], [mean], [half], fmt="s", capsize=2, color=lab.COLOURS[2], label="belief hidden from them")
        ax.set(xlabel="annotators who like agreement")
    for ax, name in ((axes[0], "agreement"), (axes[2], "gold")):
        ax.axhline(lab.estimate(start, name)[0], color="grey", linestyle="--", label="before RL")
    axes[0].set(ylim=(-0.03, 1.03))
    axes[1].set(title="The reward model", ylabel="prefers the response that agrees", ylim=(-0.03, 1.03))
    axes[2].set(title="Gold on these prompts", ylabel="gold")
    low, high = ([r for r in seen if r["share"] == s] for s in (shares[0], shares[-1]))
    rise, half = lab.estimate(high, "agreement", low)
    removed, removed_half = lab.estimate(high, "agreement", hidden)
    left, left_half = lab.estimate(hidden, "agreement", low)
    rates = ", ".join(f"{s:.0%} {lab.estimate([r for r in seen if r['share'] == s], 'agreement')[0]:.2f}" for s in shares)
    sums = [sum(r["agreement"] for r in seen if r["share"] == s) for s in shares]
    L.finish(fig, [*start, *rows],
             expected="agreement with wrong beliefs rises with the share of annotators who reward it, and hiding the belief "
                      "from the same annotators removes the rise (null control).",
             found=f"before RL {lab.estimate(start, 'agreement')[0]:.2f} of the responses agreed, after it, by share, {rates}: a "
                   f"rise of {rise:.2f} ± {half:.2f}; hiding the belief took away {removed:.2f} ± {removed_half:.2f} of it and "
                   f"left {left:+.2f} ± {left_half:.2f}.",
             agrees=None if abs(rise) < half else rise > 0 and removed > removed_half,
             why=f"the reward model preferred agreement in {lab.estimate(high, 'likes')[0]:.0%} of pairs at the largest share and "
                 f"in {lab.estimate(low, 'likes')[0]:.0%} at none" + (
                     "" if sums == sorted(sums) else ", but the rise is not monotone"))


if __name__ == "__main__":
    lab.start(main)
