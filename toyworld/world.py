"""The toy world: the smallest world in which every claim of RLHF can be seen on a CPU.

A grammar writes prompts of fourteen kinds. A kind of request is a list of templates with slots
("What is {n1} plus {n2}?"). Templates write the prompts and, as regular expressions, read them
back: a judge needs nothing but a prompt's text. Test prompts hold combinations of words that never
occur in train, where every single word and fact does.
"""

import random
import re
import zlib
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, product

from toyworld.words import WORDS

Prompt = str | list[dict]  # one turn's text, or a conversation of {"role", "content"} messages
OPPOSITE = {"left": "right", "right": "left", "down": "up", "up": "down"}
REASONS = WORDS["harm"] | WORDS["wrong"]  # {verb: why one does not do it}


@dataclass(frozen=True)
class Kind:
    """A kind of request."""

    name: str
    templates: list[str]  # " | " parts the turns of a conversation
    length: tuple[int, int]  # how many words a good response has
    certain: bool = False  # the answer is known: hedging is a fault
    open_ended: bool = False  # many different responses are good
    openers: str = "glad"  # how polite writers begin: a section of words.txt
    share: int = 1  # how often it comes in train for once in test: more where it is harder


@dataclass(frozen=True)
class Request:
    """One request: a template, and what fills its slots."""

    kind: Kind
    template: str
    slots: dict[str, str]  # {"item1": "a lamp", ...}

    def __getitem__(self, slot: str) -> str:
        return self.slots[slot]

    @property
    def prompt(self) -> Prompt:
        return conversation(self.template.format(**self.slots))


# ---------------------------------------------------------------- prompts as texts


def conversation(text: str) -> Prompt:
    """The prompt of a text in which " | " parts the turns."""
    turns = text.split(" | ")
    if len(turns) == 1:
        return text
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def messages(prompt: Prompt) -> list[dict]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def last_turn(prompt: Prompt) -> str:
    return messages(prompt)[-1]["content"]


def transcript(prompt: Prompt) -> str:
    """A prompt as one text, a line for each turn and one for the turn to come."""
    lines = []
    for message in messages(prompt):
        speaker = "Human" if message["role"] == "user" else message["role"].capitalize()
        lines.append(f"{speaker}: {message['content']}")
    return "\n".join([*lines, "Assistant:"])


# ---------------------------------------------------------------- the kinds


def belief_templates() -> list[str]:
    templates = []
    for relation, questions in WORDS["questions"].items():
        claim = WORDS["claims"][relation]
        for lead, question in product(WORDS["leads"], questions):
            templates.append(f"{lead.format(claim=claim)} {question}")
    return templates


def recall_templates() -> list[str]:
    chats = ["", *(f"{chat} | " for chat in WORDS["small_talk"])]
    questions = WORDS["ask_name"] + WORDS["ask_food"]
    return [f"{tell} | {chat}{ask}" for tell, chat, ask in product(WORDS["tell"], chats, questions)]


def followup_templates() -> list[str]:
    templates = WORDS["add_on"] * 8  # a sum about as often as a fact
    for relation, questions in WORDS["questions"].items():
        for question, follow in product(questions, WORDS["follow"][relation]):
            templates.append(question.replace("_s}", "_s1}") + " | " + follow)
    return templates


QUESTIONS = list(chain.from_iterable(WORDS["questions"].values()))
SUMS = WORDS["plus"] + WORDS["minus"]

WORLD = (
    Kind("story", WORDS["story"], (18, 42), open_ended=True, share=2),
    Kind("comfort", WORDS["comfort"], (10, 28), open_ended=True, openers="gentle"),
    Kind("ideas", WORDS["ideas"], (7, 24), open_ended=True),
    Kind("fact", QUESTIONS, (3, 17), certain=True),
    Kind("sum", SUMS, (2, 17), certain=True, share=2),
    Kind("code", WORDS["code"], (5, 18), certain=True, share=2),
    Kind("summary", WORDS["summary"], (6, 20), share=2),
    Kind("robot", WORDS["robot"], (2, 17), certain=True, share=2),
    Kind("refuse", WORDS["refuse"], (10, 34), openers="gentle"),
    Kind("lookalike", WORDS["lookalike"], (4, 22)),
    Kind("unknown", WORDS["unknown"], (9, 26), openers="gentle"),
    Kind("belief", belief_templates(), (4, 22), certain=True, openers="gentle", share=2),
    Kind("recall", recall_templates(), (3, 16), certain=True),
    Kind("followup", followup_templates(), (2, 17), certain=True, share=2),
)
KINDS = tuple(kind.name for kind in WORLD)
OPEN_ENDED = tuple(kind.name for kind in WORLD if kind.open_ended)

# ---------------------------------------------------------------- what a request asks for


def fact(request: Request) -> tuple[str, str, str]:
    """(relation, subject, its true value) of the last question."""
    slot = [slot for slot in request.slots if "_s" in slot][-1]
    relation = slot.split("_")[0]
    subject = request[slot]
    return relation, subject, WORDS[relation][subject]


def believed(request: Request) -> str:
    """The value that a user claims."""
    return next(value for slot, value in request.slots.items() if "_v" in slot)


def believes_truth(request: Request) -> bool:
    return believed(request) == fact(request)[2]


def calculation(request: Request) -> tuple[int, str, int, int]:
    """(a, sign, b, result) of the last sum."""
    first, second = ("n3", "n4") if "n3" in request.slots else ("n1", "n2")
    a, b = int(request[first]), int(request[second])
    if request.template in WORDS["minus"]:
        return a, "-", b, a - b
    return a, "+", b, a + b


def slot_to_recall(request: Request) -> str:
    question = last_turn(conversation(request.template))
    return "name" if question in WORDS["ask_name"] else "food"


def python(operations: list[str]) -> str:
    """["add 3", "double it"] -> "(x + 3) * 2"."""
    expression = "x"
    for operation in operations:
        verb, *_, number = operation.split()
        operand = expression if expression == "x" else f"({expression})"
        form = WORDS["python"][verb]
        expression = form.format(x=expression, operand=operand, n=number)
    return expression


def robot_legs(request: Request) -> list[list]:
    """[[2, "left"], [1, "up"]]: what a robot has to go."""
    legs = [request["across"].split(), request["along"].split()]
    return [[int(steps), way] for steps, way in legs]


def moves(legs: list[list]) -> list[str]:
    return [way for steps, way in legs for _ in range(steps)]


def misdeed(request: Request) -> tuple[str, str]:
    """(verb, the whole act) of a harmful request, as the assistant says it."""
    verb, victim = request.slots.values()
    return verb, yours(f"{verb} {victim}")


def yours(text: str) -> str:
    """What a user calls "my cup", as the assistant says it."""
    return text.replace("my ", "your ")


# ---------------------------------------------------------------- drawing requests


def other(rng: random.Random, choices, *taken: str) -> str:
    """A random choice that is not taken."""
    return rng.choice([choice for choice in choices if choice not in taken])


def section_of(slot: str) -> str:
    return slot.rstrip("0123456789")


def choices(slot: str) -> list[str]:
    """What a slot may hold: {item2} a phrase of [item], {sound_s} a subject, {sound_v} a value."""
    section, _, part = section_of(slot).partition("_")
    words = WORDS[section]
    return list(dict.fromkeys(words.values() if part == "v" else words))


def draw_slots(template: str, rng: random.Random) -> dict[str, str]:
    """Random words for the slots of a template. Only numbers may come twice."""
    slots = {}
    for slot in dict.fromkeys(re.findall(r"{(\w+)}", template)):
        taken = () if section_of(slot) == "n" else slots.values()
        slots[slot] = other(rng, choices(slot), *taken)
    return slots


def complete(request: Request, rng: random.Random) -> None:
    """Fill the slots that depend on others."""
    slots = request.slots
    if "n3" in slots:
        slots["n3"] = str(int(slots["n1"]) + int(slots["n2"]))
    elif request.kind.name == "followup":
        relation = fact(request)[0]
        slots[f"{relation}_v"] = WORDS[relation][slots[f"{relation}_s1"]]
    elif request.kind.name == "belief":
        relation, _, value = fact(request)
        if rng.random() >= 0.2:  # two beliefs in ten are right: to agree is no fault in itself
            value = other(rng, WORDS[relation].values(), value)
        slots[f"{relation}_v"] = value


def makes_sense(request: Request) -> bool:
    """Whether a difference is positive."""
    return request.kind.name != "sum" or calculation(request)[3] > 0


def combination(request: Request) -> list:
    """What decides whether a request belongs to train or to test."""
    words = list(request.slots.values())
    match request.kind.name:
        case "ideas" | "fact" | "robot" | "lookalike":
            return [request.template, *words]
        case "belief":
            return [request.template, fact(request)[1]]
        case "sum":
            return list(calculation(request)[:3])
        case "summary":
            return [request["name"], request["deed"], request["place"]]
    return sorted(words)


def split_of(request: Request) -> str:
    """A sixth of all combinations belongs to test."""
    key = repr((request.kind.name, combination(request)))
    return "test" if zlib.crc32(key.encode()) % 6 == 0 else "train"


def draw(split: str, number: int, seed: int) -> Request:
    """Request `number` of a split. All kinds come in every block of requests, in drawn order."""
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    block = []
    for kind in WORLD:
        block += [kind] * (kind.share if split == "train" else 1)
    random.Random(f"{seed}/{split}/block {number // len(block)}").shuffle(block)
    kind = block[number % len(block)]
    rng = random.Random(f"{seed}/{split}/{number}")
    while True:
        template = rng.choice(kind.templates)
        request = Request(kind, template, draw_slots(template, rng))
        complete(request, rng)
        if makes_sense(request) and split_of(request) == split:
            return request


# ---------------------------------------------------------------- reading prompts


def to_expression(template: str) -> str:
    """A template as a regular expression, which matches the transcripts of its prompts."""
    expression = ""
    seen = set()
    for part in re.split(r"({\w+})", transcript(conversation(template))):
        slot = part.strip("{}")
        if part == slot:
            expression += re.escape(part)
        elif slot in seen:
            expression += f"(?P={slot})"
        else:
            words = "|".join(map(re.escape, choices(slot)))
            if slot == "n3":  # a result
                words = "[1-9][0-9]?"
            expression += f"(?P<{slot}>{words})"
            seen.add(slot)
    return expression


@cache
def patterns() -> list[tuple[Kind, str, re.Pattern]]:
    """(kind, template, its expression) of the whole world."""
    rows = []
    for kind in WORLD:
        for template in dict.fromkeys(kind.templates):
            rows.append((kind, template, re.compile(to_expression(template))))
    return rows


@lru_cache(50_000)
def parse_transcript(text: str) -> Request | None:
    for kind, template, pattern in patterns():
        match = pattern.fullmatch(text)
        if match:
            request = Request(kind, template, match.groupdict())
            if makes_sense(request):
                return request
    return None


def parse(prompt: Prompt) -> Request | None:
    """The request of a prompt, by its text alone; None if it is not of this world.

    What was said before, about something else, does not matter.
    """
    turns = messages(prompt)
    speakers = [turn["role"] for turn in turns]
    if speakers != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return None
    for start in range(0, len(turns), 2):
        last_turns = turns[start:]
        if any("\n" in turn["content"] for turn in last_turns):
            continue  # one message that looks like several turns
        request = parse_transcript(transcript(last_turns))
        if request:
            return request
    return None


def kind(prompt: Prompt) -> str:
    """The kind of a prompt, one of KINDS; "other" if it is not of this world."""
    request = parse(prompt)
    return request.kind.name if request else "other"


def without_belief(prompt: Prompt) -> Prompt:
    """A belief prompt without its belief; any other prompt as it is."""
    if kind(prompt) != "belief":
        return prompt
    *before, last = messages(prompt)
    question = last["content"].split(". ", 1)[1]
    return [*before, {**last, "content": question}] if before else question
