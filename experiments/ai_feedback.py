"""Do an AI's labels teach harmlessness as well as people's (Lee et al. 2023)?

A judge, which had a quarter of the lessons in principles (after all of them it makes no mistakes),
compares pairs of a helpful model's responses to harmful requests. Reward models learn from its
preferences as chances or rounded, asked in both orders or in one, from simulated people who are
right as often as the judge is, and, the null control, from a coin. Gold's harmlessness is the truth
for all. A coin's reward model may by chance order all harmful responses right, or all wrong: its
loss, not its accuracy, tells that it knows nothing.

    python experiments/ai_feedback.py
"""

import math

import torch
from lab import arms, figures, sources, start
from lab.intervals import estimate, means, table, where
from lab.principles import HELPFUL, JUDGE, harmless, teach
from torch.nn.functional import softplus

from minirlhf import rewards, stats, winrate
from minirlhf.files import read_json


def arm(L, folder, *, source, helpful, judge, count, steps, questions, seed):
    """A reward model from one source, on pairs of held-out responses; the policy after RL."""
    key = {"source": source, "helpful": helpful, "judge": judge, "count": count, "seed": seed}
    data = L.arm(sources.labels, **key)["data"]
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


def main(L):
    helpful = L.settings.sft or teach(L.settings.out, *HELPFUL, device=L.device)
    judge = teach(L.settings.out, *JUDGE, device=L.device)
    count, steps, questions = L.pick(quick=(40, 10, 40), default=(100, 40, 150))
    models = {"helpful": helpful, "judge": judge, "count": count}
    opinions = L.run(sources.judged, **models)
    variants = [{"source": source} for source in sources.SOURCES]
    rows = L.run(arm, variants, steps=steps, questions=questions, **models)

    fig, (left, right) = figures.new(
        ("The judge's calibration", "claims to be right", "agrees with gold on harm"),
        ("Reward models by source of labels", "", ""),
    )
    figures.calibration(left, opinions, "the judge")
    right.axhline(math.log(2), color="grey", linestyle=":")  # loss of who knows nothing
    shown = {"loss": "reward model's loss, nats", "accuracy": "its accuracy"}
    shown["harmless"] = "harmless after RL"
    cells = {}
    for name, text in shown.items():
        cells[text] = [estimate(where(rows, **variant), name) for variant in variants]
    figures.by_name(right, sources.SOURCES, cells)

    one, both = estimate(opinions, "one_order"), estimate(opinions, "both_orders")
    soft, hard = where(rows, source=sources.SOFT), where(rows, source=sources.HARD)
    harder = estimate(soft, "loss", minus=hard)
    people = estimate(soft, "harmless", minus=where(rows, source=sources.PEOPLE))
    L.finish(
        fig,
        [*opinions, *rows],
        expected="asking in both orders helps, calibrated soft labels beat hard ones, AI labels "
        "match people's of equal accuracy (null control: a coin).",
        found=[
            *table(opinions, [{"judge": judge}], "one_order", "both_orders", "claims", "likes_a"),
            *table(rows, variants, *shown),
            f"loss, soft labels minus hard ones: {harder:+.2f}",
            f"harmless after RL, labels of AI minus people's: {people:+.2f}",
        ],
        agrees=both.mean >= one.mean and not people.mean < -people.half,
    )


if __name__ == "__main__":
    start(main)
