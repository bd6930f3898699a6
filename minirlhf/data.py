"""Records -> conversations. `--data` is a comma-separated list of files, published sets or worlds.

A record is a JSON object with TRL's field names:

    demonstration   {"prompt", "completion"} | {"messages"} | {"text"} | a pair, for its chosen side
    pair            {"prompt", "chosen", "rejected"}, or whole dialogues in chosen and rejected
    ranking         {"prompt", "responses", "ranks": [1 = best, ties share a number]}
    good or bad     {"prompt", "response" or "completion", "label": true or false}
    prompt          {"prompt"}, or any of the above

A prompt or a side is a text or a list of messages {"role", "content"}. A text is parsed here, once:
with hh-rlhf's markers ("\\n\\nHuman:", "\\n\\nAssistant:") it is a dialogue, without them one user
turn, with --template raw a text that the model continues. Everything behind this file works on
turns. A record that cannot be used is an error with its place, or a skip that is counted.
Files are opened in readers.py; records with other fields are turned into these in formats.py.

    python -m minirlhf.data FILE... [--model FOLDER]     what files hold
"""

import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from minirlhf import UserError, formats, hub, readers, world
from minirlhf.chat import ASSISTANT_HEADER, PLAIN, USER_HEADER, Turns, is_raw

WORLD_RECORDS = 2000  # how many records a world writes where no count is given
SHORTEST_REPEATED = 12  # characters: a shorter prompt is not taken for repeated by its responses
ROLES = {"user": "user", "human": "user", "assistant": "assistant"}
ROLES |= {"system": "system", "developer": "system"}
TOOLS = {"tool", "function", "function_call", "observation"}
# What records of rankings hold besides; nobody needs to be told that training does not read it.
NOTES = {
    "id",
    "time",
    "annotator",
    "seconds",
    "harmful",
    "all_bad",
    "skipped",
    "repeat",
    "replaces",
}
NAMES = {
    "user": "Human",
    "assistant": "Assistant",
    "system": "System",
    "text": "Text",
    "context": "Assistant",
}


class Skip(UserError):
    """Raised to skip a well-formed record without use; `read` counts it under this message."""


@dataclass(frozen=True)
class Prompt:
    """What the model is asked. Two prompts with the same turns are equal."""

    turns: Turns
    source: str | list = field(compare=False)  # as the record had it
    columns: dict = field(compare=False, default_factory=dict)  # the record's other fields

    @classmethod
    def of(cls, source: str | list, template: str = "chat", **columns) -> "Prompt":
        """From a text or a list of messages. UserError if it is neither, or is answered already."""
        turns = parse(source, template)
        if not turns:
            raise UserError("an empty prompt; write a request")
        if turns[-1] == ("assistant", ""):  # a text that ends with the open header "\n\nAssistant:"
            turns = turns[:-1]
        if turns[-1][0] == "assistant":
            raise UserError("the prompt ends with the assistant's turn; end it with the user's")
        return cls(turns, source, columns)

    def last_request(self) -> str:
        return self.turns[-1][1]

    def text(self) -> str:
        """In the plain format: a key that belongs to this prompt alone."""
        return PLAIN.prompt_text(self.turns)


@dataclass
class Ranking:
    """Responses to one prompt, ranked: 1 = best, ties share a number."""

    prompt: Prompt
    responses: list[str]
    ranks: list[float]
    where: str  # "file.jsonl, line 17"
    annotator: str = ""
    preferences: list[list[float]] | None = None  # [i][j]: the chance that i is better than j


# ---------------------------------------------------------------------- texts and messages -> turns


def parse(source: Any, template: str = "chat") -> Turns:
    if isinstance(source, list):
        return parse_messages(source)
    if not isinstance(source, str):
        raise UserError(f"must be a text or a list of messages, not {kind_of(source)}")
    if template == "raw":
        return (("text", source),)
    if template != "chat":
        raise UserError(f"--template {template}: choose from chat, raw")
    if USER_HEADER in source or ASSISTANT_HEADER in source:
        return parse_dialogue(source)
    if not source.strip():
        raise Skip("an empty text")
    return (("user", source),)


def parse_dialogue(text: str) -> Turns:
    """hh-rlhf's form -> turns. A text before the first marker is a system text."""
    before, *pieces = re.split(f"({USER_HEADER}|{ASSISTANT_HEADER})", text)
    turns = [("system", before)] if before else []
    for header, content in zip(pieces[::2], pieces[1::2]):
        role = "user" if header == USER_HEADER else "assistant"
        turns.append((role, content.removeprefix(" ")))
    return tuple(turns)


def parse_messages(source: list) -> Turns:
    turns = []
    for number, message in enumerate(source, 1):
        if not isinstance(message, dict):
            raise UserError(f"message {number} must be an object with 'role' and 'content'")
        name = message.get("role")
        if name in TOOLS or message.get("tool_calls") or message.get("function_call"):
            raise Skip("tool calls, which no chat format here has")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise UserError(f"message {number} has role {name!r:.40}; use system, user, assistant")
        text = message_text(message.get("content"), number)
        if role == "system" and turns:
            if len(turns) > 1 or turns[0][0] != "system":
                raise Skip("a system message behind the first turn")
            turns = [("system", turns[0][1] + "\n\n" + text)]
        elif role == "assistant" and 0 in (message.get("weight"), message.get("loss_mask")):
            turns.append(("context", text))
        else:
            turns.append((role, text))
    if not turns:
        raise UserError("an empty list of messages")
    return tuple(turns)


def message_text(content: Any, number: int) -> str:
    """A message's text; OpenAI's format also has lists of parts."""
    if content is None:
        raise Skip("a message without content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"message {number}: 'content' must be a text, not {kind_of(content)}")
    text = ""
    for part in content:
        if isinstance(part, dict):
            if part.get("type", "text") != "text":
                raise Skip(f"a message with a part of type {part['type']!r:.40}")
            part = part.get("text")
        if not isinstance(part, str):
            raise UserError(f"message {number}: a part of 'content' has no text")
        text += part
    return text


def messages(turns: Turns) -> list[dict]:
    """Turns as other libraries and chat endpoints take them."""
    names = {"text": "user", "context": "assistant"}
    return [{"role": names.get(role, role), "content": text} for role, text in turns]


def transcript(turns: Turns) -> str:
    """For people and judges. A single turn is its text."""
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{NAMES[role]}: {text}" for role, text in turns)


def kind_of(value: Any) -> str:
    names = {str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number or bool")


# ---------------------------------------------------------------------- records


def records(data: str, kind: str, *, split="train", count=0, seed=0) -> Iterator[tuple[str, dict]]:
    """("file.jsonl, line 17", record) for each record of `--data`, without null fields.

    kind is "demonstrations", "rankings" or "prompts"; with split, count and seed it matters to
    worlds, which write their records when asked.
    """
    for name in data.split(","):
        name = name.strip()
        module = None
        if name in hub.DATA:
            source = (
                item for file in hub.data_files(name, split) for item in readers.read(str(file))
            )
        elif module := world.find(name):
            source = world_records(module, kind, split, count or WORLD_RECORDS, seed)
        elif kind == "rankings":
            source = last_answers(readers.read(name))
        else:
            source = readers.read(name)
        for place, record in source:
            if not isinstance(record, dict):
                raise UserError(
                    f'{place}: a record must be an object such as {{"prompt": ...}}, '
                    f"not {kind_of(record)}"
                )
            record = {key: value for key, value in record.items() if value is not None}
            try:
                record = formats.adapt(record)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            if kind != "demonstrations":
                forget_weights(record)
            if name == "tldr" and (record.get("split") == "train") != (split == "train"):
                continue  # its files mix their splits
            if name == "imdb" and kind == "prompts":
                record = {"prompt": " ".join(str(record.get("text")).split()[:8])}
            yield place, record


def forget_weights(record: dict) -> None:
    """Only SFT learns from some of a conversation's answers and not from others."""
    for value in record.values():
        for message in value if isinstance(value, list) else []:
            if isinstance(message, dict):
                message.pop("weight", None)
                message.pop("loss_mask", None)


def last_answers(source: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Without answers that were taken back in label.py: a later record of the same question says
    "replaces"."""
    source = list(source)
    last = {}  # question -> number of the last record that replaces others
    for number, (_, record) in enumerate(source):
        if isinstance(record, dict) and record.get("replaces") is True:
            last[question_of(record)] = number
    for number, (place, record) in enumerate(source):
        if not last or not isinstance(record, dict) or number >= last.get(question_of(record), 0):
            yield place, record


def question_of(record: dict) -> str:
    return repr([record.get(name) for name in ("id", "annotator", "repeat")])


def world_records(module, kind: str, split: str, count: int, seed: int):
    write = getattr(module, kind, None)
    if write is None:
        raise UserError(f"--data {module.__name__}: the module has no function {kind}")
    try:
        written = list(write(split, count, seed))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--data {module.__name__}: its function {kind} raised {type(error).__name__}: {error}"
        ) from error
    for number, record in enumerate(written, 1):
        if isinstance(record, str | list):
            record = {"prompt": record}
        yield f"{module.__name__}, record {number}", record


def read(data: str, kind: str, convert: Callable, places: list | None = None, **which) -> list:
    """convert(record, place) of each record. Skips are counted and printed with their reasons.

    places: a list to which the place of each record that was kept is added.
    """
    kept = []
    skipped: dict[str, list[str]] = {}
    unused: dict[str, None] = {}
    for place, record in records(data, kind, **which):
        try:
            kept.append(convert(record, place))
            unused |= dict.fromkeys(name for name in record if name not in record.used | NOTES)
        except Skip as reason:
            skipped.setdefault(str(reason), []).append(place)
        except UserError as error:
            if str(error).startswith(place):
                raise
            raise UserError(f"{place}: {error}") from None
        else:
            if places is not None:
                places.append(place)
    if not kept and not skipped:
        raise UserError(f"--data {data}: no record; give a file with one JSON object on each line")
    reasons = [f"{len(where)}: {reason} (first: {where[0]})" for reason, where in skipped.items()]
    if not kept:
        raise UserError(f"--data {data}: no record is usable; skipped {'; '.join(reasons)}")
    if skipped:
        total = sum(len(where) for where in skipped.values())
        print(f"data: {total} of {total + len(kept)} records skipped; {'; '.join(reasons)}")
    if unused and kind != "prompts":  # with prompts they go to rewards that ask for them
        print(f"data: fields not used: {', '.join(unused)}")
    return kept


def read_demonstrations(data: str, *, template: str = "chat", **which) -> list[Turns]:
    """Conversations to learn from. Every assistant turn is supervised."""

    def convert(record: dict, place: str) -> Turns:
        if "label" in record and not is_good(record):
            raise Skip("label is false")
        if "text" in record and not record.keys() & {"prompt", "messages", "chosen"}:
            return (("text", ""), ("assistant", text_field(record, "text")))
        if "messages" in record and "completion" not in record:
            return until_last_answer(parse_field(record, "messages"))
        if "chosen" in record and "completion" not in record:
            prompt, chosen, _ = pair(record, template)
            return (*prompt.turns, ("assistant", chosen))
        prompt = prompt_of(record, template)
        name = "completion"
        if name not in record and "response" in record:
            name = "response"
        answer = completion(record, name, prompt)
        if not any(text.strip() for role, text in answer if role == "assistant"):
            raise Skip(f"empty {name!r}")
        return (*prompt.turns, *answer)

    return read(data, "demonstrations", convert, **which)


def read_prompts(data: str, *, template: str = "chat", **which) -> list[Prompt]:
    """Prompts in the order of the files, each once; with `places`, as often as they occur."""

    def convert(record: dict, place: str) -> Prompt:
        if "prompt" not in record and "chosen" in record:
            return pair_prompt(record)
        if "prompt" not in record and "messages" in record:
            turns = until_last_request(parse_field(record, "messages"))
            return Prompt(turns, messages(turns), other_fields(record, "messages"))
        return prompt_of(record, template)

    prompts = read(data, "prompts", convert, **which)
    return prompts if "places" in which else list(dict.fromkeys(prompts))


def read_rankings(data: str, *, template: str = "chat", **which) -> list[Ranking]:
    """Rankings and pairs. A ranking may hold an empty response (a policy can say nothing)."""

    def convert(record: dict, place: str) -> Ranking:
        return ranking(record, place, template)

    return read(data, "rankings", convert, **which)


def holds_rankings(data: str) -> bool:
    """Whether the first record is a pair or a ranking."""
    _, first = next(records(data, "prompts", count=1), ("", {}))
    return bool(first.keys() & {"chosen", "ranks"})


def mixed(read: Callable, data: str, weights: str, seed: int, **which) -> list:
    """read(data, ...), one of the readers above, with files in given shares.

    weights: "0.3,0.7", one for each of the files; empty: all records of all files. The whole stays
    as large; a file that has too few records for its share repeats them, one that has more than its
    share gives some of them, chosen by the seed.
    """
    if not weights:
        return read(data, seed=seed, **which)
    names = data.split(",")
    try:
        shares = [float(weight) for weight in weights.split(",")]
    except ValueError:
        shares = []
    usable = len(shares) == len(names) and all(0 < share < 1e9 for share in shares)
    if not usable:
        raise UserError(
            f"--data_weights {weights}: give a positive number for each of the {len(names)} "
            "names in --data"
        )
    parts = [read(name, seed=seed, **which) for name in names]
    total = sum(map(len, parts))
    mixture = []
    for part, share in zip(parts, shares):
        count = max(1, round(total * share / sum(shares)))
        dice = random.Random(seed)
        while count > 0:
            mixture += dice.sample(part, min(count, len(part)))
            count -= len(part)
    return mixture


def read_labelled(
    data: str, *, template: str = "chat", places: list | None = None, seed: int = 0
) -> list[tuple[Prompt, str, bool]]:
    """(prompt, response, is it good); rankings and pairs give good and bad responses too."""

    def convert(record: dict, place: str) -> list[tuple[Prompt, str, bool]]:
        if "label" not in record:
            if not record.keys() & {"chosen", "responses"}:
                require(record, "label")
            ranked = ranking(record, place, template)
            labels = good_and_bad(ranked.responses, ranked.ranks)
            return [(ranked.prompt, response, good) for response, good in labels]
        good = is_good(record)
        prompt = prompt_of(record, template)
        name = "response" if "response" in record else "completion"
        return [(prompt, last_text(completion(record, name, prompt), name), good)]

    labelled = [item for items in read(data, "rankings", convert, places) for item in items]
    good = sum(label for _, _, label in labelled)
    if not 0 < good < len(labelled):
        raise UserError(
            f"--data {data}: {good} good and {len(labelled) - good} bad responses; KTO needs both"
        )
    return labelled


# ---------------------------------------------------------------------- fields


def require(record: dict, name: str) -> Any:
    if name not in record:
        raise UserError(
            f"field {name!r} is missing, there are {list(record)}; add it or rename one"
        )
    return record[name]


def is_good(record: dict) -> bool:
    """The label of a response. 1 and 0 and the texts "true" and "false" count as well."""
    label = record["label"]
    if isinstance(label, str):
        label = {"true": True, "false": False, "1": True, "0": False}.get(label.lower(), label)
    if label not in (True, False):
        raise UserError(f"field 'label' holds {label!r}; write true for good, false for bad")
    return bool(label)


def text_field(record: dict, name: str) -> str:
    value = require(record, name)
    if not isinstance(value, str):
        raise UserError(f"field {name!r} must be a text, not {kind_of(value)}")
    if not value.strip():
        raise Skip(f"empty {name!r}")
    return value


def list_field(record: dict, name: str) -> list:
    value = require(record, name)
    if not isinstance(value, list):
        raise UserError(f"field {name!r} must be a list, not {kind_of(value)}")
    return value


def parse_field(record: dict, name: str, template: str = "chat") -> Turns:
    try:
        return parse(require(record, name), template)
    except Skip as reason:
        raise Skip(f"{name!r}: {reason}") from None
    except UserError as error:
        raise UserError(f"field {name!r}: {error}") from None


def other_fields(record: dict, *names: str) -> dict:
    return {name: value for name, value in record.items() if name not in names}


def prompt_of(record: dict, template: str) -> Prompt:
    try:
        prompt = Prompt.of(require(record, "prompt"), template)
    except Skip as reason:
        raise Skip(f"'prompt': {reason}") from None
    except UserError as error:
        if "'prompt' is missing" in str(error) or str(error).startswith("--template"):
            raise
        raise UserError(f"field 'prompt': {error}") from None
    return Prompt(prompt.turns, prompt.source, other_fields(record, "prompt"))


def completion(record: dict, name: str, prompt: Prompt) -> Turns:
    """What follows the prompt: a response as text, or messages that end with the assistant's."""
    value = require(record, name)
    if isinstance(value, str):
        if not is_raw(prompt.turns):
            value = value.removeprefix(" ")  # some files keep the space behind "Assistant:"
        return (("assistant", value),)
    turns = parse_field(record, name)
    if turns[: len(prompt.turns)] == prompt.turns:  # the messages repeat the prompt
        turns = turns[len(prompt.turns) :]
    if not turns or turns[-1][0] != "assistant":
        raise UserError(f"field {name!r} must end with a message of the assistant's")
    return turns


def last_text(turns: Turns, name: str) -> str:
    if len(turns) != 1:
        raise UserError(f"field {name!r} must be a text, or one message of the assistant's")
    return turns[0][1]


def is_hh_text(source: str | list) -> bool:
    return isinstance(source, str) and (USER_HEADER in source or ASSISTANT_HEADER in source)


def until_last_answer(turns: Turns) -> Turns:
    """Without the turns behind the assistant's last one: nothing there is supervised."""
    for end in range(len(turns), 0, -1):
        if turns[end - 1][0] == "assistant":
            return turns[:end]
    raise Skip("no assistant turn in 'messages'")


def until_last_request(turns: Turns) -> Turns:
    """Without the assistant's answer to the last request."""
    for end in range(len(turns), 0, -1):
        if turns[end - 1][0] != "assistant":
            return turns[:end]
    raise Skip("no user turn in 'messages'")


# ---------------------------------------------------------------------- pairs and rankings


def pair(record: dict, template: str) -> tuple[Prompt, str, str]:
    """Prompt, chosen and rejected text. What both sides share belongs to the prompt."""
    if "prompt" in record:
        prompt = prompt_of(record, template)
        sides = without_prompt([require(record, "chosen"), require(record, "rejected")], prompt)
        chosen = (*prompt.turns, *completion({"chosen": sides[0]}, "chosen", prompt))
        rejected = (*prompt.turns, *completion({"rejected": sides[1]}, "rejected", prompt))
    else:
        prompt = pair_prompt(record)
        chosen = dialogue(record, "chosen")
        rejected = dialogue(record, "rejected")
    *shared, (_, chosen_text) = chosen
    *shared_by_rejected, (_, rejected_text) = rejected
    if shared != shared_by_rejected:
        raise Skip("'chosen' and 'rejected' differ before the last assistant turn")
    if len(shared) > len(prompt.turns):
        prompt = Prompt(tuple(shared), messages(shared), prompt.columns)
    return prompt, chosen_text, rejected_text


def without_prompt(sides: list, prompt: Prompt) -> list:
    """Sides that repeat the prompt's text lose it."""
    if not all(isinstance(side, str) for side in sides):
        return sides
    if is_hh_text(sides[0]) and is_hh_text(sides[1]):
        parsed = [parse_dialogue(side) for side in sides]
        if all(turns[:-1] == prompt.turns for turns in parsed):
            return [turns[-1][1] for turns in parsed]
    source = prompt.source
    long_text = isinstance(source, str) and len(source) >= SHORTEST_REPEATED
    if long_text and all(side.startswith(source) for side in sides):
        return [side[len(source) :].removeprefix(" ") for side in sides]
    return sides


def pair_prompt(record: dict) -> Prompt:
    """What chosen shares with rejected: all turns but the last."""
    turns = dialogue(record, "chosen")[:-1]
    source = record["chosen"]
    if isinstance(source, str):
        source = source[: source.rindex(ASSISTANT_HEADER) + len(ASSISTANT_HEADER)]
    else:
        source = messages(turns)
    return Prompt(turns, source, other_fields(record, "chosen", "rejected"))


def dialogue(record: dict, name: str) -> Turns:
    """A whole dialogue, which ends with the assistant's turn."""
    turns = parse_field(record, name)
    if len(turns) == 1:
        raise UserError(f"field {name!r} has no turn before the assistant's; add a field 'prompt'")
    if turns[-1][0] != "assistant":
        raise Skip(f"{name!r} ends with the user's turn")
    return turns


def ranking(record: dict, place: str, template: str) -> Ranking:
    if "label" in record and not record.keys() & {"responses", "chosen"}:
        raise UserError(
            "a record with 'label' is one response without another to compare it with; use "
            "train_dpo.py --loss kto, or give pairs or rankings"
        )
    annotator = str(record.get("annotator", ""))
    if "responses" not in record and "ranks" not in record:
        prompt, chosen, rejected = pair(record, template)
        if chosen == rejected:
            raise Skip("'chosen' equals 'rejected'")
        if not chosen.strip() or not rejected.strip():
            raise Skip("empty 'chosen' or 'rejected'")
        return Ranking(prompt, [chosen, rejected], [1, 2], place, annotator)

    prompt = prompt_of(record, template)
    responses = []
    for number, response in enumerate(list_field(record, "responses")):
        name = f"responses[{number}]"
        if not isinstance(response, str):  # label.py's are texts, which stay as they are
            response = last_text(completion({name: response}, name, prompt), name)
        responses.append(response)
    ranks = list_field(record, "ranks")
    if len(responses) < 2 or len(responses) != len(ranks):
        raise UserError(
            f"{len(responses)} 'responses', {len(ranks)} 'ranks'; give 2 or more of both"
        )
    for rank in ranks:
        whole = type(rank) is int or (isinstance(rank, float) and rank.is_integer())
        if not whole or abs(rank) > 10**9:
            raise UserError(f"field 'ranks' holds {rank!r:.40}; use whole numbers, 1 for the best")
    preferences = None
    if "preferences" in record:
        preferences = read_preferences(record, len(ranks))
    if record.get("repeat") is True:
        raise Skip("'repeat' (it measures an annotator's agreement with themselves)")
    if len(set(distinct(responses, ranks)[1])) == 1:
        raise Skip("all 'ranks' are tied")
    return Ranking(prompt, responses, ranks, place, annotator, preferences)


def read_preferences(record: dict, size: int) -> list[list[float]]:
    """(K, K) chances; 0 both ways where two responses were not compared (null in the file)."""
    table = list_field(record, "preferences")
    if len(table) != size or any(not isinstance(row, list) or len(row) != size for row in table):
        raise UserError(f"field 'preferences' must be {size} lists of {size} chances")
    chances = [[0.0] * size for _ in range(size)]
    for i, j in combinations(range(size), 2):
        forth, back = table[i][j], table[j][i]
        if forth is None and back is None:
            continue
        numbers = all(isinstance(x, float | int) and x >= 0 for x in (forth, back))
        if not numbers or abs(forth + back - 1) > 1e-3:
            raise UserError(
                f"'preferences' between responses {i} and {j} are {forth!r} and {back!r}; give two "
                "chances with sum 1, or null twice"
            )
        chances[i][j], chances[j][i] = float(forth), float(back)
    return chances


def distinct(responses: list, ranks: list[float]) -> tuple[list, list[float]]:
    """Each response once, with the mean of its ranks."""
    ranks_of: dict[Any, list[float]] = {}
    first = {}
    for response, rank in zip(responses, ranks):
        key = tuple(response)
        first.setdefault(key, response)
        ranks_of.setdefault(key, []).append(rank)
    means = [sum(given) / len(given) for given in ranks_of.values()]
    return list(first.values()), means


def good_and_bad(responses: list, ranks: list[float]) -> list[tuple[Any, bool]]:
    """(response, True) if it beats more of the others than beat it, False if fewer; each once."""
    responses, ranks = distinct(responses, ranks)
    labels = []
    for response, rank in zip(responses, ranks):
        wins = sum(rank < other for other in ranks)
        losses = sum(rank > other for other in ranks)
        if wins != losses:
            labels.append((response, wins > losses))
    return labels


if __name__ == "__main__":
    from minirlhf import describe  # it reads files with this module's functions

    describe.main(sys.argv[1:])
