"""How much longer do responses get when annotators like length, and how much of the gain is only length (Singhal et al. 2023)?

Pairs are ranked by gold with some noise; then the fewest possible labels are turned round so that the longer response wins in 50,
56, 60 or 70 % of the pairs. Null control: as many labels turned round as for 70 %, whichever response is the longer one. A reward
model, RL against it, and on held-out prompts: words, and the share of the reward gained that is left when responses of equal length
are compared (Singhal's NRG). `--data` draws how often the longer response wins in real comparisons.

    python experiments/length_bias.py
"""
import random

import lab

import toyworld
from minirlhf import stats, winrate
from minirlhf.data import read_rankings
from minirlhf.files import read_jsonl

BIN = 4       # words: responses within the same bin count as equally long


def longer_wins(record) -> float | None:
    """1 if the longer of two responses is the better one, 0 if the shorter is; None where lengths or ranks are equal."""
    (a, b), (ra, rb) = (len(r.split()) for r in record["responses"]), record["ranks"]
    return None if a == b or ra == rb else float((a > b) == (ra < rb))


def planted(L, folder, *, count, share, blindly, seed):
    """Pairs in which the longer wins in `share` of the cases; blindly: as many turned round, at random."""
    rows = read_jsonl(L.arm(lab.rankings, count=count, samples=2, noise=0.2, seed=seed)["data"])
    wins = [longer_wins(r) for r in rows]
    usable = [i for i, w in enumerate(wins) if w is not None]
    surplus = round(share * len(usable) - sum(wins[i] for i in usable))          # pairs that the longer ought to win besides
    turned = [i for i in usable if blindly or wins[i] == (surplus < 0)]
    for i in random.Random(seed).sample(turned, abs(surplus)):
        rows[i] = rows[i] | {"ranks": [3 - x for x in rows[i]["ranks"]]}
    shares = [w for w in map(longer_wins, rows) if w is not None]
    return {"data": lab.write_lines(f"{folder}/rankings.jsonl", rows), "longer_wins": sum(shares) / len(shares),
            "turned": abs(surplus) / len(rows)}


def not_length(before, after, words_before, words_after) -> float:
    """The share of the mean reward gained that remains when responses within the same bin of words are compared."""
    bins = [w // BIN for w in words_before], [w // BIN for w in words_after]
    gained, weight = 0.0, 0
    for b in set(bins[0]) & set(bins[1]):
        old, new = ([x for x, at in zip(xs, ats) if at == b] for xs, ats in ((before, bins[0]), (after, bins[1])))
        gained, weight = gained + len(new) * (sum(new) / len(new) - sum(old) / len(old)), weight + len(new)
    return gained / weight / (sum(after) / len(after) - sum(before) / len(before))


def arm(L, folder, *, share, blindly, count, steps, questions, seed):
    label = L.arm(planted, count=count, share=share, blindly=blindly, seed=seed)
    rm = L.arm(lab.reward_model, data=label["data"], seed=seed, validation=0.02)["rm"]
    policy = lab.improve(L, folder, reward=rm, steps=steps, seed=seed, kl_coef=0.02)
    asked, reward = lab.wanted("test", questions, 1000 + seed, lambda p: True), lab.reward_of(L, rm)
    measured = []
    for name, model in (("before", L.sft), ("after", policy)):
        texts, responses, shape = lab.answers(L, f"{folder}/{name}", model, asked, 4, 1000 + seed)
        measured.append({"reward": lab.table(reward, texts, responses, shape), "words": lab.table(lab.feature("length"), texts,
                         responses, shape), "gold": lab.table(toyworld.reward, texts, responses, shape)})          # (P, 4)
    before, after = measured
    prefers = winrate.ranked_right(before["reward"], before["words"])                 # the longer of two SFT responses
    flat = [m[name].flatten().tolist() for name in ("reward", "words") for m in measured]
    return lab.means(words=after["words"] - before["words"], gold=after["gold"] - before["gold"],
                     gained=after["reward"] - before["reward"]) | {
        "longer_wins": label["longer_wins"], "turned": label["turned"], "not_length": not_length(*flat), "words_before": float(
            before["words"].mean()), "prefers_longer": prefers["mean"], "prefers_longer_interval": prefers["interval"],
        "correlation": stats.correlation(before["reward"].flatten(), before["words"].flatten())}


def main(L):
    count, steps, questions = L.pick((400, 18, 60), (1500, 60, 200), (5000, 200, 400))
    shares = L.pick((0.5, 0.6, 0.7), (0.5, 0.56, 0.6, 0.7), (0.5, 0.56, 0.6, 0.7))
    keys = [{"share": s, "blindly": blindly, "count": count, "steps": steps, "questions": questions, "seed": seed}
            for seed in L.seeds for s, blindly in [*((s, False) for s in shares), (0.7, True)]]
    rows = L.run(arm, keys)
    biased, null = ([r for r in rows if r["blindly"] == b] for b in (False, True))

    fig, axes = L.figure("Longer responses", "labels in which the longer wins", "words more than SFT", columns=3)
    for ax, name in zip(axes, ("words", "not_length", "prefers_longer")):
        lab.curve(ax, biased, "share", name, "length planted")
        ax.errorbar([0.7], *([x] for x in lab.over_seeds([r[name] for r in null])), fmt="s", color=lab.COLOURS[2], capsize=2,
                    label="as many turned at random")
        ax.set(xlabel="labels in which the longer wins")
    axes[1].set(title="Share of the gain that is not length", ylabel="share of the reward gained")
    axes[2].set(title="The reward model likes length", ylabel="prefers the longer of two")
    if L.data:
        real = [longer_wins({"responses": r.responses, "ranks": r.ranks}) for r in read_rankings(L.data) if len(r.responses) == 2]
        share = sum(x for x in real if x) / len([x for x in real if x is not None])
        axes[2].axvline(share, color="grey", linestyle=":", label=f"{lab.Path(L.data).name[:24]}: {share:.3f}")
    first, last = ([r for r in biased if r["share"] == s] for s in (shares[0], shares[-1]))
    more, half = lab.estimate(last, "words", first)
    against, against_half = lab.estimate(last, "words", null)
    words = ", ".join(f"{s:.0%} {lab.estimate([r for r in biased if r['share'] == s], 'words')[0]:+.1f}" for s in shares)
    kept = ", ".join(f"{s:.0%} {lab.said([r['not_length'] for r in biased if r['share'] == s])}" for s in shares)
    falls = sum(r["not_length"] for r in last) < sum(r["not_length"] for r in first)
    L.finish(fig, rows,
             expected="the more often the longer response wins, the longer responses get in RL, and the smaller is the share of "
                      "the reward gained at equal length; as many labels turned at random do nothing of the kind (null control).",
             found=f"words against SFT at {words}: {more:+.1f} ± {half:.1f} from the first to the last, {against:+.1f} ± "
                   f"{against_half:.1f} against the null control; share of the gain that is not length at {kept}.",
             agrees=None if abs(more) < half or abs(against) < against_half else more > 0 and against > 0 and falls,
             why=f"length {'rises' if more > half else 'falls' if more < -half else 'does not move beyond its interval'}, "
                 f"{'further' if against > against_half else 'not surely further'} than under the null control, and the share "
                 f"that is not length {'falls' if falls else 'does not fall'}")


if __name__ == "__main__":
    lab.start(main)
