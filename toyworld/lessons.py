"""The toy world's small model learns to judge, to critique and to revise: further kinds of request in its SFT data.

`--data toy+judge` writes a bit more than half ordinary demonstrations and, for the rest, demonstrations of

    judging      a principle, a request, two responses A and B         ->  "A" or "B"
    critique     a principle, a request, a response                    ->  what is wrong with it
    revision     a request, a response, a critique                     ->  a response without that flaw

A flaw is known by rule, since the grammar wrote it; where a principle has nothing to say of two responses, A and B are
demonstrated equally often, so that a good judge answers one half. The ordinary demonstrations are those of writers asked
to be helpful and nothing else, as in Bai et al. 2022 (section 3.1): most of them go along with harmful requests. Nothing
here looks at the gold score.
"""

import random
from collections import defaultdict

from minirlhf.questions import CRITIQUE, JUDGE, REVISE, ask

from minirlhf import toyworld

PRINCIPLES = {  # the toy world's constitution -> the flaw that each forbids
    "A good response does not help anybody to do harm.": "harm",
    "A good response takes no part in what is mean, unfair or a crime.": "harm",
    "A good response is polite and never rude.": "rude",
    "A good response does not claim to know what nobody can know.": "invented",
    "A good response does what was asked and declines nothing that is fine.": "evasive",
}
CRITIQUES = {
    "harm": ("It helps to do harm.", "It explains how to do something bad."),
    "rude": ("It is rude.", "It is not polite."),
    "invented": ("It claims to know what nobody can know.", "It makes something up."),
    "evasive": ("It declines a request that is fine.", "It does not do what was asked."),
    "": ("Nothing is wrong with it.", "It is fine."),
}
KINDS_OF = {
    "harm": ("refuse",),
    "invented": ("unknown",),  # requests that tempt to a flaw; rudeness may be anywhere
    "evasive": tuple(k for k in toyworld.KINDS if k not in ("refuse", "unknown")),
    "rude": toyworld.KINDS,
}
GOES_ALONG = 0.75  # share of harmful requests that the helpful-only writers go along with
PROMPTS = 700  # different prompts of each kind that are judged, critiqued and revised


def flawed(flaw: str, prompt: str, response: str) -> bool:
    """Whether a response that the grammar wrote has this flaw."""
    if toyworld.kind(prompt) not in KINDS_OF[flaw]:
        return False
    text = toyworld._read(response)
    return {
        "harm": any(cue in text.flat for cue in toyworld.CUES),
        "rude": any(r in text.flat for r in toyworld.RUDE),
        "invented": not toyworld.ADMISSION.search(text.lower),
        "evasive": any(no.search(text.lower) for no in (toyworld.REFUSAL, toyworld.ADMISSION)),
    }[flaw]


def write(prompt: str, rng: random.Random, **flaws: bool) -> str:
    """A response of mixed quality that has each of these flaws, or has it not."""
    kind, slots = toyworld._parse(prompt)
    if flaws.get("evasive"):  # rare among the demonstrations
        return rng.choice(toyworld.DECLINES) + rng.choice(
            (".", f", because {rng.choice([*toyworld.REASONS.values()])}.")
        )
    if (
        kind.name == "refuse" and "harm" not in flaws
    ):  # a principle that says nothing of harm sees, and leaves, much of it
        flaws["harm"] = rng.random() < GOES_ALONG
    while True:
        response = toyworld._compose(kind, slots, prompt, rng)
        if all(flawed(flaw, prompt, response) == wanted for flaw, wanted in flaws.items()):
            return response


def without_rudeness(response: str) -> str:
    for phrase in (*toyworld.RUDE_OPENERS, *toyworld.RUDE_CLOSERS, *toyworld.LECTURES):
        response = response.replace(phrase, "")
    return "\n".join(" ".join(line.split()) for line in response.split("\n")).strip()


def lesson(prompts: dict[str, list[str]], rng: random.Random) -> tuple[str, str]:
    """(question, answer) of one of the three new kinds. prompts: by kind."""
    principle = rng.choice(list(PRINCIPLES))
    flaw = PRINCIPLES[principle]
    share = rng.random()
    kind = (
        rng.choice(KINDS_OF[flaw])
        if share < 0.6
        else "refuse"
        if share < 0.85
        else rng.choice(toyworld.KINDS)
    )
    prompt, tempting = rng.choice(prompts[kind]), kind in KINDS_OF[flaw]
    lot = rng.random()
    if lot < 0.5:
        has = tempting and rng.random() < 0.5
        other = not has if tempting and rng.random() < 0.8 else has
        a, b = (write(prompt, rng, **{flaw: x}) for x in (has, other))
        better = rng.random() < 0.5 if has == other else other  # is A better?
        return ask(JUDGE, prompt, principle=principle, a=a, b=b), "A" if better else "B"
    has = tempting and rng.random() < 0.65
    response = write(prompt, rng, **{flaw: has})
    critique = rng.choice(CRITIQUES[flaw if has else ""])
    if lot < 0.7:
        return ask(CRITIQUE, prompt, principle=principle, response=response), critique
    revised = (
        without_rudeness(response)
        if flaw == "rude"
        else write(prompt, rng, **{flaw: False})
        if has
        else response
    )
    return ask(REVISE, prompt, critique=critique, response=response), revised or response


def demonstrations(split: str, count: int, seed: int) -> list[dict]:
    """{"prompt", "completion"}, count of them, a function of (split, count, seed) alone."""
    prompts = defaultdict(list)
    for prompt in toyworld.prompts(split, PROMPTS * len(toyworld.KINDS), seed):
        prompts[toyworld.kind(prompt)].append(prompt)
    records = []
    for i, record in enumerate(toyworld.demonstrations(split, count, seed)):
        rng = random.Random(f"{seed}/{split}/{i}/lesson")
        if rng.random() < 0.45:
            record = dict(zip(("prompt", "completion"), lesson(prompts, rng)))
        elif toyworld.kind(record["prompt"]) == "refuse":
            record["completion"] = write(record["prompt"], rng)
        records.append(record)
    return records
