"""The toy world's lessons for a judge: a small model learns to judge, to critique and to revise.

A bit more than half of the demonstrations are ordinary, the others are

    judging      a principle, a request, two responses A and B     ->  "A" or "B"
    critique     a principle, a request, a response                ->  what is wrong with it
    revision     a request, a response, a critique                 ->  a response without that flaw

Where a principle says nothing of two responses, A and B are demonstrated equally often, so that a
good judge answers one half. The ordinary demonstrations are by writers who were asked to be helpful
and nothing else (Bai et al. 2022, section 3.1): most of them go along with harmful requests. The
gold score has no part in this.

    python train_sft.py --data toyworld.lessons --out out/judge
"""

import random
from collections import defaultdict

import toyworld
from minirlhf.feedback.judge import CRITIQUE, JUDGE, REVISE, ask
from toyworld import KINDS, prompts
from toyworld.reading import PLOTS, RUDE, Text
from toyworld.words import WORDS
from toyworld.world import REASONS, Prompt, kind, parse
from toyworld.writers import compose, pick

__all__ = ["PRINCIPLES", "demonstrations", "prompts"]

FLAWS = {  # what each principle forbids
    "A good response does not help anybody to do harm.": "harm",
    "A good response takes no part in what is mean, unfair or a crime.": "harm",
    "A good response is polite and never rude.": "rude",
    "A good response does not claim to know what nobody can know.": "invented",
    "A good response does what was asked and declines nothing that is fine.": "evasive",
}
PRINCIPLES = list(FLAWS)
CRITIQUES = {
    "harm": ("It helps to do harm.", "It explains how to do something bad."),
    "rude": ("It is rude.", "It is not polite."),
    "invented": ("It claims to know what nobody can know.", "It makes something up."),
    "evasive": ("It declines a request that is fine.", "It does not do what was asked."),
    "": ("Nothing is wrong with it.", "It is fine."),
}
TEMPTING = {  # kinds of request whose responses may have a flaw
    "harm": ["refuse"],
    "invented": ["unknown"],
    "evasive": [kind for kind in KINDS if kind not in ("refuse", "unknown")],
    "rude": KINDS,
}
GOES_ALONG = 0.75  # the helpful-only writers' share of responses that help with harm
PROMPTS = 700  # of each kind, on average, to judge, critique and revise


def demonstrations(split: str, count: int, seed: int) -> list[dict]:
    """{"prompt", "completion"}: the toy world's, with lessons in place of 45 in 100."""
    by_kind = defaultdict(list)
    for record in prompts(split, PROMPTS * len(KINDS), seed):
        by_kind[kind(record["prompt"])].append(record["prompt"])
    records = []
    for i, record in enumerate(toyworld.demonstrations(split, count, seed)):
        rng = random.Random(f"{seed}/{split}/{i}/lesson")
        if rng.random() < 0.45:
            record = lesson(by_kind, rng)
        elif kind(record["prompt"]) == "refuse":
            record["completion"] = write(record["prompt"], rng)
        records.append(record)
    return records


def lesson(by_kind: dict[str, list[Prompt]], rng: random.Random) -> dict:
    principle = rng.choice(PRINCIPLES)
    flaw = FLAWS[principle]
    prompt = rng.choice(by_kind[draw_kind(flaw, rng)])
    form = rng.random()
    if form < 0.5:
        return judging(principle, flaw, prompt, rng)
    has_flaw = may_have(flaw, prompt) and rng.random() < 0.65
    response = write(prompt, rng, **{flaw: has_flaw})
    critique = rng.choice(CRITIQUES[flaw if has_flaw else ""])
    if form < 0.7:
        question = ask(CRITIQUE, prompt, principle=principle, response=response)
        return {"prompt": question, "completion": critique}
    question = ask(REVISE, prompt, critique=critique, response=response)
    revised = response
    if flaw == "rude":
        revised = without_rudeness(response) or response
    elif has_flaw:
        revised = write(prompt, rng, **{flaw: False})
    return {"prompt": question, "completion": revised}


def draw_kind(flaw: str, rng: random.Random) -> str:
    share = rng.random()
    if share < 0.6:
        return rng.choice(TEMPTING[flaw])
    if share < 0.85:
        return "refuse"
    return rng.choice(KINDS)


def judging(principle: str, flaw: str, prompt: Prompt, rng: random.Random) -> dict:
    flaw_in_a = flaw_in_b = False
    if may_have(flaw, prompt):
        flaw_in_a = rng.random() < 0.5
        flaw_in_b = flaw_in_a if rng.random() >= 0.8 else not flaw_in_a
    a = write(prompt, rng, **{flaw: flaw_in_a})
    b = write(prompt, rng, **{flaw: flaw_in_b})
    if flaw_in_a == flaw_in_b:
        better = "A" if rng.random() < 0.5 else "B"
    else:
        better = "B" if flaw_in_a else "A"
    question = ask(JUDGE, prompt, principle=principle, a=a, b=b)
    return {"prompt": question, "completion": better}


def may_have(flaw: str, prompt: Prompt) -> bool:
    return kind(prompt) in TEMPTING[flaw]


def flawed(flaw: str, prompt: Prompt, response: str) -> bool:
    """Whether a response that the grammar wrote has this flaw."""
    if not may_have(flaw, prompt):
        return False
    text = Text(response)
    match flaw:
        case "harm":
            return text.has(*PLOTS)
        case "rude":
            return text.has(*RUDE)
        case "invented":
            return not text.admits_ignorance
    return text.refuses or text.admits_ignorance


def write(prompt: Prompt, rng: random.Random, **flaws: bool) -> str:
    """A response of mixed quality that has, or has not, each of these flaws."""
    request = parse(prompt)
    if flaws.get("evasive"):  # rare among the demonstrations
        refusal = pick(rng, "declines")
        reason = rng.choice(list(REASONS.values()))
        return refusal + rng.choice((".", f", because {reason}."))
    if request.kind.name == "refuse" and "harm" not in flaws:
        flaws["harm"] = rng.random() < GOES_ALONG
    while True:
        response = compose(request, rng)
        if all(flawed(flaw, prompt, response) == has for flaw, has in flaws.items()):
            return response


def without_rudeness(response: str) -> str:
    for section in ("rude_openers", "rude_closers", "lectures"):
        for phrase in WORDS[section]:
            response = response.replace(phrase, "")
    lines = [" ".join(line.split()) for line in response.split("\n")]
    return "\n".join(lines).strip()
