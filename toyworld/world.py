"""The toy world: the smallest world in which every claim of RLHF can be seen on a CPU.

A grammar writes prompts of fourteen kinds, and demonstrations of mixed quality, as people's are. A
kind of request is a list of templates with slots ("What is {n1} plus {n2}?"). Templates write the
prompts and, turned into regular expressions, read them back: a judge needs only a prompt's text.

Test prompts hold combinations of words that never occur in train; every word and every fact does.
"""

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

from toyworld.words import WORDS

Prompt = str | list[dict]  # one turn's text, or a conversation of {"role", "content"} messages
STEPS = {"left": (-1, 0), "right": (1, 0), "down": (0, -1), "up": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "down": "up", "up": "down"}
REASONS = WORDS["harm"] | WORDS["wrong"]  # why one does not do what


@dataclass(frozen=True)
class Request:
    """One prompt of the world: what fills the slots of a template."""

    kind: "Kind"
    template: str
    slots: dict[str, str]  # {"item1": "a lamp", ...}

    def __getitem__(self, slot: str) -> str:
        return self.slots[slot]

    @property
    def prompt(self) -> Prompt:
        return conversation(self.template.format(**self.slots))

    @property
    def last_turn(self) -> str:
        return messages(self.prompt)[-1]["content"]


def conversation(text: str) -> Prompt:
    """The prompt of a text whose turns are parted by " | "."""
    turns = text.split(" | ")
    if len(turns) == 1:
        return text
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def messages(prompt: Prompt) -> list[dict]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def words_of(request: Request) -> list:
    return sorted(request.slots.values())


def template_and_words_of(request: Request) -> list:
    return [request.template, *request.slots.values()]


@dataclass(frozen=True)
class Kind:
    """A kind of request."""

    name: str
    templates: list[str]  # " | " parts the turns of a conversation
    write: Callable  # (request, rng, careless) -> the content of a response
    combination: Callable = words_of  # request -> what is either in train or in test
    openers: str = "glad"  # how polite writers begin: a section of words.txt
    certain: bool = False  # the answer is known: hedging is a fault
    open_ended: bool = False  # many different responses are good
    share: int = 1  # how often it comes in train for once in test; more where it is harder


def pick(rng: random.Random, section: str, **slots) -> str:
    """A random phrase of a section of words.txt."""
    return rng.choice(WORDS[section]).format(**slots)


def other(rng: random.Random, choices, *taken: str) -> str:
    """A random choice that is not taken."""
    return rng.choice([choice for choice in choices if choice not in taken])


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def yours(text: str) -> str:
    """What the user calls "my cup", as the assistant says it."""
    return text.replace("my ", "your ")


# ---------------------------------------------------------------- story, comfort, ideas


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
    other_mishap = other(rng, WORDS["mishap"], mishap)
    stray = pick(rng, "advise", remedy=rng.choice(WORDS["mishap"][other_mishap]))
    lecture = pick(rng, "lectures")
    faults = (
        lecture,
        understanding,
        stray,
        f"{understanding} {lecture}",
        f"{lecture} {advice}",
        f"{understanding} {stray}",
    )
    return rng.choice(faults)


def number_of_ideas(request) -> int:
    return {"two": 2, "three": 3}[request["count"]]


def write_ideas(request, rng, careless):
    number, stray = number_of_ideas(request), 0
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


# ---------------------------------------------------------------- fact, belief


def about(relation: str, text: str) -> str:
    """A text with the slots of a relation: "{s} says {v}" becomes "{sound_s} says {sound_v}"."""
    return text.replace("{s", f"{{{relation}_s").replace("{v", f"{{{relation}_v")


def fact_templates() -> list[str]:
    templates = []
    for relation, questions in WORDS["questions"].items():
        templates += [about(relation, question) for question in questions]
    return templates


def fact(request) -> tuple[str, str, str]:
    """(relation, subject, its true value) of the last question."""
    slot = [slot for slot in request.slots if "_s" in slot][-1]
    relation = slot.split("_")[0]
    subject = request[slot]
    return relation, subject, WORDS[relation][subject]


def claim(relation: str, subject: str, value: str) -> str:
    return WORDS["claims"][relation].format(s=subject, v=value)


def write_fact(request, rng, careless):
    relation, subject, value = fact(request)
    if careless:
        value = other(rng, WORDS[relation].values(), value)
    sentence = claim(relation, subject, value)
    plain = capitalised(sentence)
    longer = (f"I can tell you that {sentence}", f"The answer is {value}")
    return rng.choice((plain, plain, *longer)) + "."


def belief_templates() -> list[str]:
    templates = []
    for relation, questions in WORDS["questions"].items():
        for lead, question in product(WORDS["leads"], questions):
            belief = lead.format(claim=WORDS["claims"][relation])
            templates.append(about(relation, f"{belief} {question}"))
    return templates


def template_and_subject(request) -> list[str]:
    return [request.template, fact(request)[1]]


def believed(request) -> str:
    return next(value for slot, value in request.slots.items() if "_v" in slot)


def write_belief(request, rng, careless):
    relation, subject, truth = fact(request)
    value = truth
    agrees = believed(request) == truth
    if careless and agrees:  # contradicts what is right
        value = other(rng, WORDS[relation].values(), truth)
    elif careless:  # goes along with what is wrong, as sycophants do
        value = believed(request)
    agrees = agrees != careless
    return pick(rng, "agrees" if agrees else "corrects", claim=claim(relation, subject, value))


# ---------------------------------------------------------------- sum, recall, follow-up


def calculate(request) -> tuple[int, str, int, int]:
    """(a, sign, b, result) of the last sum."""
    first, second = ("n3", "n4") if "n3" in request.slots else ("n1", "n2")
    a, b = int(request[first]), int(request[second])
    if request.template in WORDS["minus"]:
        return a, "-", b, a - b
    return a, "+", b, a + b


def operands(request) -> list:
    return list(calculate(request)[:3])


def write_sum(request, rng, careless):
    a, sign, b, result = calculate(request)
    error = rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    if careless:
        result = max(0, result + error)
    word = "plus" if sign == "+" else "minus"
    sums = (f"{a} {sign} {b} = {result}.", f"{a} {word} {b} is {result}.")
    return rng.choice((*sums, f"{a} {word} {b} makes {result}."))


def recall_templates() -> list[str]:
    chats = ("", *(f"{chat} | " for chat in WORDS["small_talk"]))
    questions = WORDS["ask_name"] + WORDS["ask_food"]
    return [f"{tell} | {chat}{ask}" for tell, chat, ask in product(WORDS["tell"], chats, questions)]


def slot_to_recall(request) -> str:
    return "name" if request.last_turn in WORDS["ask_name"] else "food"


def write_recall(request, rng, careless):
    slot = slot_to_recall(request)
    word = request[slot]
    if careless:
        word = other(rng, WORDS[slot], word)
    return pick(rng, f"remember_{slot}", **{slot: word})


def followup_templates() -> list[str]:
    templates = WORDS["add_on"] * 8  # a sum about as often as a fact
    for relation, questions in WORDS["questions"].items():
        for question, follow in product(questions, WORDS["follow"]):
            first = question.replace("{s}", "{s1}")
            templates.append(about(relation, f"{first} | {follow}"))
    return templates


def write_followup(request, rng, careless):
    write = write_sum if "n1" in request.slots else write_fact
    return write(request, rng, careless)


# ---------------------------------------------------------------- code, summary, robot


def python(operations: list[str]) -> str:
    """["add 3", "double it"] -> "(x + 3) * 2"."""
    expression = "x"
    for operation in operations:
        verb, *_, number = operation.split()
        operand = expression if expression == "x" else f"({expression})"
        form = WORDS["python"][verb]
        expression = form.format(x=expression, operand=operand, n=number)
    return expression


def write_code(request, rng, careless):
    operations = list(request.slots.values())
    fault = rng.random()
    place = rng.randrange(len(operations))
    if careless and len(operations) == 2 and fault < 0.25:
        operations.reverse()
    elif careless and len(operations) == 2 and fault < 0.5:  # does half of it
        operations = [operations[place]]
    elif careless:  # takes another number, or another operation
        operation = operations[place]
        verb = operation.split()[0]
        choices = [choice for choice in WORDS["op"] if choice.split()[0] == verb]
        if fault >= 0.8 or len(choices) == 1:
            choices = WORDS["op"]
        operations[place] = other(rng, choices, operation)
    return f"f = lambda x: {python(operations)}"


def summary_templates() -> list[str]:
    return [" ".join(parts) for parts in product(WORDS["summary_asks"], WORDS["summary_texts"])]


def what_to_sum_up(request) -> list[str]:
    return [request["name"], request["deed"], request["place"]]


def write_summary(request, rng, careless):
    told = {slot: request[slot] for slot in ("name", "deed", "place")}
    fault = rng.random() if careless else 1
    slot = rng.choice(list(told))
    if fault < 0.3:  # leaves out where it happened, or what
        return f"{told['name']} {rng.choice((told['deed'], 'was ' + told['place']))}."
    if careless and fault > 0.5:  # gets something wrong
        told[slot] = other(rng, WORDS[slot], told[slot])
    summary = pick(rng, "summary", **told, Place=capitalised(told["place"]))
    if fault > 0.5:
        return summary
    return f"{request['detail1']} {summary}"


def write_robot(request, rng, careless):
    steps, across = request["across"].split()
    more_steps, along = request["along"].split()
    counts = [int(steps), int(more_steps)]
    detour = []
    fault = rng.random() if careless else 1
    if fault < 0.3:
        detour = [pick(rng, "detours")]
    elif fault < 0.6:  # goes the wrong way
        ways = ((OPPOSITE[across], along), (across, OPPOSITE[along]))
        across, along = rng.choice(ways)
    elif careless:  # goes one step too far, or stops too early
        which, error = rng.choice(((0, 1), (0, -1), (1, 1), (1, -1)))
        counts[which] += error
    moves = [across] * counts[0] + [along] * counts[1] + detour
    return pick(rng, "moves", moves=" ".join(moves))


# ---------------------------------------------------------------- refuse, look-alike, unknown


def refuse_templates() -> list[str]:
    acts = ("{harm} {belonging}", "{wrong} {person}")
    return [how_to.format(act=act) for how_to, act in product(WORDS["how_to"], acts)]


def misdeed(request) -> tuple[str, str]:
    """(verb, the whole act) of a harmful request, as the assistant says it."""
    verb, victim = request.slots.values()
    return verb, yours(f"{verb} {victim}")


def write_refusal(request, rng, careless):
    verb, act = misdeed(request)
    if careless and rng.random() < 0.75:
        return pick(rng, "plots", act=act)
    reason = rng.choice((", because", ":", ", since")) + f" {REASONS[verb]}. {pick(rng, 'instead')}"
    return pick(rng, "declines") + ("." if careless else reason)


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
    return rng.choice(("", "", "I am certain: ", "I know it well: ")) + f"{invention}."


def chore_templates() -> list[str]:
    return [how_to.format(act="{chore}") for how_to in WORDS["how_to"]]


# ---------------------------------------------------------------- the kinds


WORLD = (
    Kind("story", WORDS["story"], write_story, open_ended=True, share=2),
    Kind("comfort", WORDS["comfort"], write_comfort, openers="gentle", open_ended=True),
    Kind("ideas", WORDS["ideas"], write_ideas, template_and_words_of, open_ended=True),
    Kind("fact", fact_templates(), write_fact, template_and_words_of, certain=True),
    Kind("sum", WORDS["plus"] + WORDS["minus"], write_sum, operands, certain=True, share=2),
    Kind("code", WORDS["code"], write_code, certain=True, share=2),
    Kind("summary", summary_templates(), write_summary, what_to_sum_up, share=2),
    Kind("robot", WORDS["robot"], write_robot, template_and_words_of, certain=True, share=2),
    Kind("refuse", refuse_templates(), write_refusal, openers="gentle"),
    Kind("lookalike", chore_templates(), write_chore, template_and_words_of),
    Kind("unknown", WORDS["unknown"], write_unknown, openers="gentle"),
    Kind(
        "belief",
        belief_templates(),
        write_belief,
        template_and_subject,
        openers="gentle",
        certain=True,
        share=2,
    ),
    Kind("recall", recall_templates(), write_recall, certain=True),
    Kind("followup", followup_templates(), write_followup, certain=True, share=2),
)
KINDS = tuple(kind.name for kind in WORLD)
OPEN_ENDED = tuple(kind.name for kind in WORLD if kind.open_ended)

# ---------------------------------------------------------------- writing and reading prompts


def section_of(slot: str) -> str:
    return slot.rstrip("0123456789")


def choices(slot: str) -> list[str]:
    """What a slot may hold: {item2} a phrase of [item], {sound_s} a subject, {sound_v} a value."""
    section, _, part = section_of(slot).partition("_")
    words = WORDS[section]
    return list(dict.fromkeys(words.values() if part == "v" else words))


def draw_slots(template: str, rng: random.Random) -> dict[str, str]:
    """Random words for the slots of a template, different ones except for numbers."""
    slots = {}
    for slot in dict.fromkeys(re.findall(r"{(\w+)}", template)):
        taken = () if section_of(slot) == "n" else slots.values()
        slots[slot] = other(rng, choices(slot), *taken)
    return slots


def complete(request: Request, rng: random.Random) -> None:
    """Fill the slots that depend on others."""
    slots = request.slots
    if request.kind.name == "belief":
        relation, _, value = fact(request)
        if rng.random() >= 0.2:  # two beliefs in ten are right: to agree is no fault in itself
            value = other(rng, WORDS[relation].values(), value)
        slots[f"{relation}_v"] = value
    elif "n3" in slots:
        slots["n3"] = str(int(slots["n1"]) + int(slots["n2"]))
    elif request.kind.name == "followup":
        relation = fact(request)[0]
        slots[f"{relation}_v"] = WORDS[relation][slots[f"{relation}_s1"]]


def makes_sense(request: Request) -> bool:
    """Whether a sum has a positive result."""
    return request.kind.name != "sum" or calculate(request)[3] > 0


def split_of(request: Request) -> str:
    """A sixth of all combinations of words belongs to test; the combination itself decides."""
    key = repr((request.kind.name, request.kind.combination(request)))
    return "test" if zlib.crc32(key.encode()) % 6 == 0 else "train"


def draw(split: str, number: int, seed: int) -> Request:
    """A request, by (split, number, seed) alone. Kinds come in shuffled blocks, each in its share."""
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


def transcript(prompt: Prompt) -> str:
    """A prompt as one text, a line for each turn: "Human: Hi.\nAssistant: Hello.\n...Assistant:"."""
    lines = []
    for message in messages(prompt):
        speaker = "Human" if message["role"] == "user" else message["role"].capitalize()
        lines.append(f"{speaker}: {message['content']}")
    return "\n".join([*lines, "Assistant:"])


@cache
def patterns() -> list[tuple[Kind, str, re.Pattern]]:
    """(kind, template, what the transcripts of its prompts look like)"""
    found = []
    for kind in WORLD:
        for template in dict.fromkeys(kind.templates):
            expression = to_expression(transcript(conversation(template)))
            found.append((kind, template, re.compile(expression)))
    return found


def to_expression(text: str) -> str:
    """A text with slots as a regular expression, in which a slot comes again as it came first."""
    expression = ""
    seen = set()
    for part in re.split(r"({\w+})", text):
        slot = part.strip("{}")
        if part == slot:
            expression += re.escape(part)
        elif slot in seen:
            expression += f"(?P={slot})"
        else:
            words = "|".join(map(re.escape, choices(slot)))
            expression += f"(?P<{slot}>{'[1-9][0-9]?' if slot == 'n3' else words})"
            seen.add(slot)
    return expression


def parse(prompt: Prompt) -> Request | None:
    """The request of a prompt, from its text alone; None if it is not of this world."""
    if any("\n" in message["content"] for message in messages(prompt)):
        return None  # a message cannot pass for several turns
    return parse_transcript(transcript(prompt))


@lru_cache(50_000)
def parse_transcript(text: str) -> Request | None:
    for kind, template, expression in patterns():
        match = expression.fullmatch(text)
        if match:
            request = Request(kind, template, match.groupdict())
            if makes_sense(request):
                return request
    return None


def prompts(split: str, count: int, seed: int) -> list[dict]:
    """`count` prompts of "train" or "test" (all kinds evenly). Prompt i depends on split, seed and i.

    Prompts recur: small kinds have a few hundred different ones."""
    return [{"prompt": draw(split, number, seed).prompt} for number in range(count)]


def kind(prompt: Prompt) -> str:
    """The kind of a prompt, one of KINDS; "other" if it is not of this world."""
    request = parse(prompt)
    return request.kind.name if request else "other"


def without_belief(prompt: Prompt) -> Prompt:
    """A belief prompt without its belief; any other prompt as it is."""
    if kind(prompt) != "belief":
        return prompt
    return parse(prompt).prompt.split(". ", 1)[1]


# ---------------------------------------------------------------- demonstrations of mixed quality


def demonstrations(split: str, count: int, seed: int) -> list[dict]:
    """{"prompt", "completion"} for each of `prompts(split, count, seed)`, a fifth without a fault."""
    records = []
    for number in range(count):
        request = draw(split, number, seed)
        rng = random.Random(f"{seed}/{split}/{number}/completion")
        records.append({"prompt": request.prompt, "completion": compose(request, rng)})
    return records


def compose(request: Request, rng: random.Random, flawless: bool = False) -> str:
    """A response. A writer's haste shifts the odds of every fault; they then come independently."""
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
        parts.insert(0, request.last_turn)
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
    may_shirk = request.kind.name not in ("refuse", "unknown", "lookalike")
    if careless and may_shirk and rng.random() < 0.1:
        return rng.choice(WORDS["declines"] + WORDS["admits"]) + "."
    return request.kind.write(request, rng, careless)


def add_manners(parts: list[str], rng: random.Random, openers: str, closers: str) -> None:
    """Put a phrase before the parts, after them, or both."""
    where = rng.choice(("before", "after", "both"))
    opener, closer = pick(rng, openers), pick(rng, closers)
    if where != "after":
        parts.insert(0, opener)
    if where != "before":
        parts.append(closer)
