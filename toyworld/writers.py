"""The toy world's prompts, and demonstrations: people of mixed care and manners answer them."""

import random
import re
from itertools import product

from toyworld.words import WORDS
from toyworld.world import (
    OPPOSITE,
    REASONS,
    Prompt,
    Request,
    believed,
    believes_truth,
    calculation,
    draw,
    fact,
    last_turn,
    messages,
    misdeed,
    moves,
    other,
    python,
    robot_legs,
    slot_to_recall,
    yours,
)

CHANGES_SUBJECT = 0.15  # share of the requests that may come after others
LONGEST_PROMPT = 48  # words of a prompt that begins with other requests: contexts are short


def prompts(split: str, count: int, seed: int) -> list[dict]:
    """{"prompt"}, `count` of them. Prompt i depends on (split, i, seed) alone. Prompts recur."""
    return [{"prompt": prompt_of(split, number, seed)[0]} for number in range(count)]


def demonstrations(split: str, count: int, seed: int) -> list[dict]:
    """{"prompt", "completion"} for each of `prompts(split, count, seed)`.

    About one in six scores 3, the most there is.
    """
    records = []
    for number in range(count):
        prompt, request = prompt_of(split, number, seed)
        rng = random.Random(f"{seed}/{split}/{number}/completion")
        records.append({"prompt": prompt, "completion": compose(request, rng)})
    return records


def prompt_of(split: str, number: int, seed: int) -> tuple[Prompt, Request]:
    """Request `number` and its prompt, in which other requests and their answers may come first."""
    request = draw(split, number, seed)
    prompt = request.prompt
    rng = random.Random(f"{seed}/{split}/{number}/before")
    most = 2 if rng.random() < CHANGES_SUBJECT else 0
    for _ in range(most):
        earlier = draw(split, rng.randrange(10**6), seed)
        answer = {"role": "assistant", "content": compose(earlier, rng)}
        longer = [*messages(earlier.prompt), answer, *messages(prompt)]
        if sum(len(turn["content"].split()) for turn in longer) <= LONGEST_PROMPT:
            prompt = longer
    return prompt, request


def compose(request: Request, rng: random.Random, flawless: bool = False) -> str:
    """A response. A writer's haste shifts the odds of all faults, which then come independently."""
    haste = 1.4 - 0.8 * rng.random()  # mean 1

    def slips(chance: float) -> bool:
        return not flawless and rng.random() < chance * haste

    content = write_content(request, rng, careless=slips(0.17))
    parts = [content]
    if request.kind.certain and slips(0.2):
        parts.insert(rng.randrange(2), pick(rng, "hedges"))
    if slips(0.35):
        parts.insert(rng.randrange(len(parts) + 1), pick(rng, "fillers"))
    if slips(0.04):  # says something twice
        parts.append(rng.choice(re.split(r"(?<=[.!?]) ", content)))
    if slips(0.04):  # copies the request
        parts.insert(0, last_turn(request.prompt))
    rude = slips(0.25)
    polite = flawless or rng.random() < 0.4
    if rude:
        add_manners(parts, rng, "rude_openers", "rude_closers")
    elif polite:
        add_manners(parts, rng, request.kind.openers, "closers")
    while len(" ".join(parts).split()) > 48 and len(parts) > 1:  # contexts are short
        parts.pop(0 if parts[-1] == content else -1)
    return ("\n" if request.kind.name == "code" else " ").join(parts)


def write_content(request: Request, rng: random.Random, careless: bool) -> str:
    name = request.kind.name
    may_shirk = name not in ("refuse", "unknown", "lookalike")
    if careless and may_shirk and rng.random() < 0.1:
        return rng.choice(WORDS["declines"] + WORDS["admits"]) + "."
    return WRITERS[name](request, rng, careless)


def add_manners(parts: list[str], rng: random.Random, openers: str, closers: str) -> None:
    """Put a phrase before the parts, after them, or both."""
    where = rng.choice(("before", "after", "both"))
    opener, closer = pick(rng, openers), pick(rng, closers)
    if where != "after":
        parts.insert(0, opener)
    if where != "before":
        parts.append(closer)


def pick(rng: random.Random, section: str, **slots) -> str:
    """A random phrase of a section of words.txt."""
    return rng.choice(WORDS[section]).format(**slots)


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


# ---------------------------------------------------------------- one writer for each kind


def write_story(request, rng, careless):
    items = list(request.slots.values())
    has_ending = not careless or rng.random() < 0.5
    if careless and (has_ending or rng.random() < 0.4):  # forgets an ingredient
        stray = other(rng, WORDS["item"], *items)
        items[rng.randrange(len(items))] = stray
    name, friend = rng.sample(WORDS["name"], 2)
    creature, stranger = rng.sample(WORDS["creature"], 2)
    cast = {"name": name, "friend": friend, "creature": creature, "stranger": stranger}
    for slot in ("weather", "place", "feeling"):
        cast[slot] = pick(rng, slot)
    sentences = [pick(rng, "beginnings", item=items[0], **cast)]
    middles = rng.sample(WORDS["middles"], len(items) - 1)
    for middle, item in zip(middles, items[1:]):
        sentences.append(middle.format(item=item, **cast))
    ending = f"{pick(rng, 'endings')} {pick(rng, 'results')}."
    if has_ending:
        sentences.append(ending)
    return " ".join(sentences)


def write_comfort(request, rng, careless):
    mishap = request["mishap"]
    remedies = WORDS["mishap"][mishap]
    understanding = pick(rng, "heard", feeling=request["feeling"], mishap=yours(mishap))
    advice = pick(rng, "advise", remedy=rng.choice([*remedies, *remedies, *WORDS["care"]]))
    if not careless:
        return f"{understanding} {advice}"
    stray = rng.choice(WORDS["mishap"][other(rng, WORDS["mishap"], mishap)])
    parts = {"understanding": understanding, "advice": advice}
    parts["stray"] = pick(rng, "advise", remedy=stray)
    parts["lecture"] = pick(rng, "lectures")
    return pick(rng, "poor_comfort", **parts)


def write_ideas(request, rng, careless):
    number, stray = int(WORDS["count"][request["count"]]), 0
    if careless:  # one too few or too many, or some that do not fit
        extra, stray = rng.choice(((-1, 0), (1, 0), (0, 1), (0, 1), (0, 2)))
        number += extra
    occasion = request["occasion"]
    other_occasion = other(rng, WORDS["occasion"], occasion)
    ideas = rng.sample(WORDS["occasion"][occasion], number - stray)
    ideas += rng.sample(WORDS["occasion"][other_occasion], stray)
    *ideas, last = rng.sample(ideas, number)
    if ideas:
        last = ", ".join(ideas) + rng.choice((" or ", ", or ", " and ")) + last
    return pick(rng, "propose", ideas=last)


def claim(relation, subject, value):
    slots = {f"{relation}_s": subject, f"{relation}_v": value}
    return WORDS["claims"][relation].format(**slots)


def write_fact(request, rng, careless):
    relation, subject, value = fact(request)
    if careless:
        value = other(rng, WORDS[relation].values(), value)
    sentence = claim(relation, subject, value)
    return pick(rng, "answers", claim=sentence, Claim=capitalised(sentence), value=value)


def write_belief(request, rng, careless):
    relation, subject, value = fact(request)
    agrees = believes_truth(request)
    if careless and agrees:  # contradicts what is right
        value = other(rng, WORDS[relation].values(), value)
    elif careless:  # goes along with what is wrong, as sycophants do
        value = believed(request)
    tone = "agrees" if agrees != careless else "corrects"
    return pick(rng, tone, claim=claim(relation, subject, value))


def write_sum(request, rng, careless):
    a, sign, b, result = calculation(request)
    error = rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    if careless:
        result = max(0, result + error)
    word = "plus" if sign == "+" else "minus"
    return pick(rng, "sums", a=a, sign=sign, word=word, b=b, result=result)


def write_followup(request, rng, careless):
    write = write_sum if "n1" in request.slots else write_fact
    return write(request, rng, careless)


def write_recall(request, rng, careless):
    slot = slot_to_recall(request)
    word = request[slot]
    if careless:
        word = other(rng, WORDS[slot], word)
    return pick(rng, f"remember_{slot}", **{slot: word})


def write_code(request, rng, careless):
    operations = list(request.slots.values())
    fault, place = rng.random(), rng.randrange(len(operations))
    if careless and len(operations) == 2 and fault < 0.25:
        operations.reverse()
    elif careless and len(operations) == 2 and fault < 0.5:  # does half of it
        operations = [operations[place]]
    elif careless:
        operations[place] = misread(operations[place], rng, same_verb=fault < 0.8)
    return f"f = lambda x: {python(operations)}"


def misread(operation, rng, same_verb):
    """Another operation, with the same verb if there is one."""
    verb = operation.split()[0]
    choices = [choice for choice in WORDS["op"] if choice.startswith(verb)]
    if not same_verb or len(choices) == 1:
        choices = WORDS["op"]
    return other(rng, choices, operation)


def write_summary(request, rng, careless):
    told = {slot: request[slot] for slot in ("name", "deed", "place")}
    fault = rng.random() if careless else 1
    slot = rng.choice(list(told))
    if fault < 0.3:  # leaves out where it happened, or what
        return pick(rng, "half_summaries", **told)
    if careless and fault > 0.5:  # gets something wrong
        told[slot] = other(rng, WORDS[slot], told[slot])
    summary = pick(rng, "summaries", **told, Place=capitalised(told["place"]))
    if fault > 0.5:
        return summary
    return f"{request['detail1']} {summary}"


def write_robot(request, rng, careless):
    legs = robot_legs(request)
    detour = []
    fault = rng.random() if careless else 1
    if fault < 0.3:
        detour = [pick(rng, "detours")]
    elif fault < 0.6:  # goes the wrong way
        leg = rng.choice(legs)
        leg[1] = OPPOSITE[leg[1]]
    elif careless:  # goes one step too far, or stops too early
        leg, error = rng.choice(list(product(legs, (1, -1))))
        leg[0] += error
    return pick(rng, "moves", moves=" ".join(moves(legs) + detour))


def write_refusal(request, rng, careless):
    verb, act = misdeed(request)
    if careless and rng.random() < 0.75:
        return pick(rng, "plots", act=act)
    because = rng.choice((", because", ":", ", since"))
    reason = f"{because} {REASONS[verb]}. {pick(rng, 'instead')}"
    refusal = pick(rng, "declines")
    return f"{refusal}." if careless else refusal + reason


def write_chore(request, rng, careless):
    if careless and rng.random() < 0.6:  # too careful
        return f"{pick(rng, 'declines')}, because {rng.choice(list(REASONS.values()))}."
    chore = request["chore"]
    if careless:
        chore = other(rng, WORDS["chore"], chore)
    a, b = rng.sample(WORDS["chore"][chore], 2)
    return pick(rng, "chores", a=a, b=b)


def write_unknown(request, rng, careless):
    if not careless or rng.random() < 0.15:
        admission = pick(rng, "admits")
        return f"{admission}." if careless else f"{admission}, {pick(rng, 'offers')}."
    number, name, feeling = rng.randint(2, 30), pick(rng, "name"), pick(rng, "feeling")
    invention = rng.choice(WORDS["secret"][request["secret"]])
    invention = invention.format(n=number, name=name, feeling=feeling)
    return pick(rng, "inventions", invention=invention)


WRITERS = {
    "story": write_story,
    "comfort": write_comfort,
    "ideas": write_ideas,
    "fact": write_fact,
    "sum": write_sum,
    "code": write_code,
    "summary": write_summary,
    "robot": write_robot,
    "refuse": write_refusal,
    "lookalike": write_chore,
    "unknown": write_unknown,
    "belief": write_belief,
    "recall": write_recall,
    "followup": write_followup,
}
