"""Principles instead of people: revision, soft labels, both orders, AI beside human labels.

The model was made helpful and nothing else and goes along with most harmful requests, but it learnt
to judge, criticise and revise (train_sft.py --data toyworld.lessons, or --sft of such a model). It
revises its own responses up to four times by the toy world's principles (Bai et al. 2022b); null
control: by a principle that says nothing of harm. Then a judge, which had a quarter of these
lessons (after all of them it makes no mistakes), compares pairs of its responses (Lee et al. 2023).
Reward models learn from its preferences as chances or rounded, asked in both orders or in one, from
simulated people who are right as often as the judge is, and, the null control, from a coin. Gold's
harmlessness is the truth for all. A coin's reward model may by chance order all harmful responses
right, or all wrong: its loss, not its accuracy, tells that it knows nothing.

    python experiments/constitution.py
"""

import math
import random
from itertools import combinations

import torch
from lab import arms, figures, start
from lab.intervals import column, estimate, means, table, where
from torch.nn.functional import softplus

import label
import toyworld
import train_sft
from examples import revise
from minirlhf import rewards, stats, winrate
from minirlhf.feedback.rankings import rank_by
from minirlhf.files import read_json, read_jsonl, write_atomically
from toyworld.lessons import FLAWS

SOFT, HARD, ONE_ORDER, PEOPLE, COIN = SOURCES = (
    "AI, soft",
    "AI, hard",
    "AI, one order",
    "people, equal accuracy",
    "coin",
)
HELPFUL_LESSONS, JUDGE_LESSONS = 900, 250  # steps of SFT


def teach(L, name: str, steps: int) -> str:
    """The folder of a model that learnt the toy world and the lessons."""
    out = f"{L.settings.out}/{name}"
    lessons = {"data": "toyworld.lessons", "count": 40000, "n_positions": 256}
    settings = {"steps": steps, "out": out, "device": L.device, "resume": True}
    train_sft.main(train_sft.Settings(**lessons, **settings))
    return out


def harmless(prompt, response: str) -> float:
    """1, or 0 where a response helps with harm."""
    return 1 + toyworld.gold_parts(prompt, response)["harmless"]


def write_principles(folder: str, flaw: str) -> str:
    """A constitution of those principles alone that forbid a flaw."""
    path = f"{folder}/constitution.txt"
    principles = [principle for principle, forbidden in FLAWS.items() if forbidden == flaw]
    write_atomically(path, "\n\n".join(principles).encode())
    return path


# ---- arms


def revisions(L, folder, *, helpful, null, count, turns, seed):
    """Harmlessness of the responses after 0, 1, ... critiques and revisions."""
    prompts = arms.toy_prompts("train", count, seed, arms.is_harmful)
    constitution = write_principles(folder, "rude") if null else "toyworld.lessons"
    out = f"{folder}/out.jsonl"
    revise.main(
        revise.Settings(
            init=helpful,
            data=arms.write_prompts(f"{folder}/prompts.jsonl", prompts),
            count=count,
            revisions=turns,
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
    scores = torch.tensor(rows, dtype=torch.float64)  # (P, turns + 1)
    first = scores[:, 1] - scores[:, 0]
    later = (scores[:, -1] - scores[:, 1]) / (turns - 1)
    return {"curve": scores.mean(0).tolist(), **means(first=first, later=later)}


def judged(L, folder, *, helpful, judge, count, seed):
    """The judge's preferences among four of the model's responses to each harmful request."""
    asked = {"split": "train", "keep": arms.is_harmful, "seed": 50 + seed, "temperature": 1.0}
    candidates = arms.answer(L, folder, helpful, count, **asked).file
    out = f"{folder}/rankings.jsonl"
    constitution = write_principles(folder, "harm")
    ai = {"annotator": "ai", "judge": judge, "constitution": constitution, "device": L.device}
    label.main(label.Settings(candidates=candidates, out=out, seed=seed, **ai))
    prompt, answers = [], []  # P(A) with the harmless response as A, and as B
    for number, row in enumerate(read_jsonl(out)):
        truth = [harmless(row["prompt"], response) for response in row["responses"]]
        for i, j, once, swapped in row["asked"]:
            if truth[i] == truth[j] or None in (once, swapped):
                continue
            prompt.append(number)
            answers.append((once, swapped) if truth[i] > truth[j] else (swapped, once))
    as_a, as_b = torch.tensor(answers, dtype=torch.float64).T  # (N,)
    chance = (as_a + 1 - as_b) / 2  # (N,) that the harmless one is better, by both orders
    right = (chance > 0.5).double()
    row = means(
        one_order=((as_a > 0.5).double() + (as_b < 0.5).double()) / 2,
        both_orders=right,
        likes_a=(as_a + as_b) / 2 - 0.5,
        claims=(chance - 0.5).abs() + 0.5,
    )
    calibration = stats.calibration(torch.tensor(prompt), chance.logit(eps=1e-9))
    return {"data": out, "calibration": calibration, **row}


def preference(source, both_orders, one_order, truth, accuracy, rng) -> float | None:
    """The chance that the first of two responses is better, by one of SOURCES.

    truth: harmlessness of the two
    accuracy: of people, who guess where they see no difference
    """
    if source == SOFT:
        return both_orders
    if source == HARD:
        return both_orders if both_orders in (None, 0.5) else float(both_orders > 0.5)
    if source == ONE_ORDER:
        return one_order
    if source == COIN:
        return float(rng.random() < 0.5)
    right = rng.random() < (accuracy if truth[0] != truth[1] else 0.5)
    return float((truth[0] > truth[1]) == right)


def labels(L, folder, *, source, helpful, judge, count, seed):
    """Preferences from one of SOURCES, in the form that train_rm.py learns from as chances."""
    ai = L.arm(judged, helpful=helpful, judge=judge, count=count, seed=seed)
    rng = random.Random(seed)
    rows = read_jsonl(ai["data"])
    for row in rows:
        truth = [harmless(row["prompt"], response) for response in row["responses"]]
        one_order = {(i, j): once for i, j, once, _ in row["asked"]}
        chances = [[None] * 4 for _ in range(4)]
        for i, j in combinations(range(4), 2):
            answers = row["preferences"][i][j], one_order.get((i, j), 0.5)
            chance = preference(source, *answers, (truth[i], truth[j]), ai["both_orders"], rng)
            if chance is not None:
                chances[i][j], chances[j][i] = chance, 1 - chance
        wins = [sum(filter(None, chances_of_one)) for chances_of_one in chances]
        row["preferences"] = chances
        row["ranks"] = rank_by(wins)
    return {"data": arms.write(f"{folder}/rankings.jsonl", rows)}


def arm(L, folder, *, source, helpful, judge, count, steps, questions, seed):
    """A reward model from one source, on pairs of held-out responses; the policy after RL."""
    key = {"source": source, "helpful": helpful, "judge": judge, "count": count, "seed": seed}
    data = L.arm(labels, **key)["data"]
    rm = L.arm(arms.reward_model, data=data, seed=seed, init=helpful, validation=0.02)["rm"]
    asked = {"count": questions, "keep": arms.is_harmful, "seed": 1000 + seed}
    before = arms.answer(L, f"{folder}/before", helpful, temperature=1.0, **asked)
    std = read_json(f"{rm}/config.json")["score_std"]
    scores = std * before.scores(rewards.load(rm, L.device))  # (P, 4) log odds
    prompt, (better, worse) = winrate.pairs(before.each(harmless), scores)
    margin = better - worse  # (N,)
    accuracy = stats.accuracy(prompt, margin)
    loss = stats.estimate(prompt, [softplus(-margin)], [torch.ones_like(margin)])
    policy = arms.train_policy(
        L, folder, init=helpful, reward=rm, data=data, steps=steps, seed=seed
    )
    after = arms.answer(L, f"{folder}/after", policy, **asked)
    cells = {"accuracy": accuracy, "loss": loss}
    return {**means(harmless=after.each(harmless)), **arms.flat(cells)}


# ---- results


def main(L):
    helpful = L.settings.sft or teach(L, "helpful", HELPFUL_LESSONS)
    judge = teach(L, "judge", JUDGE_LESSONS)
    prompts, ranked, steps, questions = L.pick(
        quick=(60, 40, 10, 40), default=(200, 100, 40, 150), full=(800, 400, 120, 400)
    )
    turns = L.pick(quick=3, default=4, full=4)
    models = {"helpful": helpful, "judge": judge, "count": ranked}
    principles = [{"null": False}, {"null": True}]
    revised = L.run(revisions, principles, helpful=helpful, count=prompts, turns=turns)
    opinions = L.run(judged, **models)
    variants = [{"source": source} for source in SOURCES]
    rows = L.run(arm, variants, steps=steps, questions=questions, **models)

    fig, (left, middle, right) = figures.new(
        ("Critique and revision", "revisions", "harmless responses to harmful requests"),
        ("The judge's calibration", "claims to be right", "agrees with gold on harm"),
        ("Reward models by source of labels", "", ""),
    )
    by_all, by_manners = where(revised, null=False), where(revised, null=True)
    for same, name in ((by_all, "all principles"), (by_manners, "a principle on manners alone")):
        left.plot(torch.tensor(column(same, "curve")).mean(0), "o-", label=name)
    left.set(ylim=(0, 1.03), xticks=range(turns + 1))
    middle.plot([0.5, 1], [0.5, 1], "--", color="grey")
    for row in opinions:
        parts = row["calibration"]
        middle.plot(column(parts, "predicted"), column(parts, "accuracy"), "o-", color="C0")
    right.axhline(math.log(2), color="grey", linestyle=":")  # loss of who knows nothing
    shown = {"loss": "reward model's loss, nats", "accuracy": "its accuracy"}
    shown["harmless"] = "harmless after RL"
    for i, (name, text) in enumerate(shown.items()):
        cells = [estimate(where(rows, source=source), name) for source in SOURCES]
        xs = [x + 0.2 * i for x in range(len(SOURCES))]
        figures.points(right, xs, cells, text)
    right.set_xticks(range(len(SOURCES)), SOURCES, rotation=20)

    first, later = estimate(by_all, "first"), estimate(by_all, "later")
    null = estimate(by_manners, "first")
    one, both = estimate(opinions, "one_order"), estimate(opinions, "both_orders")
    soft, hard = where(rows, source=SOFT), where(rows, source=HARD)
    against_people = estimate(soft, "harmless", minus=where(rows, source=PEOPLE))
    found = [
        *table(revised, principles, "first", "later"),
        *table(opinions, [{"judge": judge}], "one_order", "both_orders", "claims", "likes_a"),
        *table(rows, variants, *shown),
        f"loss, soft labels minus hard ones: {estimate(soft, 'loss', minus=hard):+.2f}",
        f"harmless after RL, labels of AI minus people's: {against_people:+.2f}",
    ]
    agrees = None
    if first.sure:
        most = first.mean > max(later.mean, 0, null.mean + null.half)
        as_people = against_people.mean >= -against_people.half
        agrees = most and both.mean >= one.mean and as_people
    L.finish(
        fig,
        [*revised, *opinions, *rows],
        expected="harmlessness rises with each revision, with the first the most, and not by a "
        "principle on manners (null control); asking in both orders helps, calibrated soft labels "
        "beat hard ones, AI labels match people's of equal accuracy (null control: a coin).",
        found=found,
        agrees=agrees,
    )


if __name__ == "__main__":
    start(main)
