"""The same labels and the same RL steps, in one round or in several (Bai 2022a, section 4.5; Gao 2022, section 4.3).

With several rounds the later comparisons are of the improved policy's responses, where the reward model would otherwise guess: gold
should peak later and higher. The first reward model's accuracy should be lower on newer policies' responses (HH: 74, 70, 67 %).
Null control: as many rounds whose labels are all of the SFT model's responses; it has everything but the newer data.

    python experiments/iterated_rounds.py
"""
import lab


def arm(L, folder, *, rounds, fresh, labels, steps, kl_coef, prompts, seed):
    """Gold and KL along the way, and after the last round; the first reward model's accuracy on every round's responses."""
    policy, files, path, accuracy, first = L.sft, [], {"gold": [], "kl": [], "proxy": []}, [], ""
    for r in range(rounds):
        files.append(L.arm(lab.rankings, count=labels // rounds, samples=4, noise=0.5, seed=1000 * seed + r + 1,
                           init=policy if fresh else "")["data"])
        rm = L.arm(lab.reward_model, data=",".join(files), seed=seed)["rm"]
        if not first:
            first = rm
            accuracy.append(L.arm(lab.judge, policy=L.sft, reward=first, count=prompts)["reward_accuracy"]["mean"])
        policy = lab.improve(L, f"{folder}/round{r + 1}", init=policy, reference=L.sft, reward=rm, watch="toyworld", kl_coef=kl_coef,
                             lr=5e-4, steps=steps // rounds, seed=seed + 100 * r)
        now = lab.path(policy, ("watch_toyworld", "kl", "score"), 5)
        path = {k: path[k] + now[c] for k, c in (("gold", "watch_toyworld"), ("kl", "kl"), ("proxy", "score"))}
        found = lab.judge(L, folder, policy=policy, reward=first, count=prompts)
        accuracy.append(found["reward_accuracy"]["mean"])
    return {"path": path, "accuracy": accuracy, "peak": max(path["gold"]), "gold": found["gold"]["mean"],
            "interval": found["gold"]["interval"], "kl": found["kl"]["mean"], "words": found["words"]["mean"]}


def main(L):
    size = L.pick({"labels": 320, "steps": 40, "prompts": 100, "kl_coef": 0.0},
                  {"labels": 800, "steps": 80, "prompts": 150, "kl_coef": 0.0},
                  {"labels": 2400, "steps": 600, "prompts": 400, "kl_coef": 0.02})
    kinds = L.pick([(1, True), (4, True), (4, False)], [(1, True), (2, True), (4, True), (4, False)],
                   [(1, True), (2, True), (3, True), (4, True), (4, False)])
    rows = L.run(arm, [size | {"rounds": r, "fresh": f, "seed": s} for s in L.seeds for r, f in kinds])
    fig, (ax, right) = L.figure(f"{size['labels']} rankings in all", "step of RL", "gold, mean of 5 steps", columns=2)
    right.set(title="The first reward model", xlabel="round whose policy is judged (0: SFT)", ylabel="agrees with gold")
    names = {(r, f): f"{r} round{'s' * (r > 1)}" + ("" if f else ", labels of SFT's only") for r, f in kinds}
    for i, kind in enumerate(kinds):
        mine = [r for r in rows if (r["rounds"], r["fresh"]) == kind]
        golds = [r["path"]["gold"] for r in mine]
        at = [size["steps"] * (k + 0.5) / len(golds[0]) for k in range(len(golds[0]))]
        ax.plot(at, [sum(x) / len(x) for x in zip(*golds)], linewidth=2, color=lab.COLOURS[i], label=names[kind])
        ax.plot(at, list(zip(*golds)), linewidth=0.7, alpha=0.5, color=lab.COLOURS[i])
        points = [{"round": k, "accuracy": x} for r in mine for k, x in enumerate(r["accuracy"])]
        lab.curve(right, points, "round", "accuracy", names[kind], color=lab.COLOURS[i])

    def of(kind, key):
        return [r[key] for r in rows if (r["rounds"], r["fresh"]) == kind]
    one, several, stale = of((1, True), "gold"), of((4, True), "gold"), of((4, False), "gold")
    gain, versus = ([a - b for a, b in zip(several, x)] for x in (one, stale))
    drop = [a[-1] - a[0] for a in of((4, True), "accuracy")]
    peaks = ", ".join(f"{names[kind]} {lab.said(of(kind, 'peak'))}" for kind in kinds)
    half = lab.over_seeds(gain)[1]
    margin = half if half == half else rows[0]["interval"]
    mean = lab.over_seeds(gain)[0]
    L.finish(fig, rows, "more rounds with as many labels reach more gold, thanks to newer data, harder for the first reward model.",
             f"gold after one round {lab.said(one)}, after four {lab.said(several)} (difference {lab.said(gain)}), after four "
             f"with labels of the SFT model's responses only {lab.said(stale)} (difference {lab.said(versus)}); the first reward "
             f"model's agreement with gold changed by {lab.said(drop)} from the SFT model's responses to the last round's; the "
             f"highest gold on the way: {peaks}.",
             agrees=None if abs(mean) < margin else mean > 0 and lab.over_seeds(versus)[0] > 0)


if __name__ == "__main__":
    lab.start(main)
