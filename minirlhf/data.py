"""Records -> conversations. `--data` is a comma-separated list of files, published sets or worlds.

A record is a JSON object with TRL's field names:

    demonstration   {"prompt", "completion"} | {"messages"} | {"text"} | a pair, for its chosen side
    pair            {"prompt", "chosen", "rejected"}, or whole dialogues in chosen and rejected
    ranking         {"prompt", "responses", "ranks": [1 = best, ties share a number]}
    good or bad     {"prompt", "response" or "completion", "label": true or false}
    prompt          {"prompt"}, or any of the above

A prompt or a side is a text or a list of messages {"role", "content"}. Everything behind this file
works on turns. records.py gives the records, parsing.py makes turns of texts and messages.

    python -m minirlhf.data FILE... [--model FOLDER]     what files hold
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from minirlhf import UserError, cli, readers
from minirlhf.chat import ASSISTANT_HEADER, PLAIN, USER_HEADER, Turns, is_raw
from minirlhf.formats import Record
from minirlhf.parsing import Skip, has_markers, kind_of, messages, parse, parse_dialogue
from minirlhf.records import Missing, read, records

SHORTEST_REPEATED = 12  # characters: a shorter prompt is not taken for repeated by its responses
DIFFER = "prompt and responses differ before the last assistant turn"
NAMES = {
    "user": "Human",
    "assistant": "Assistant",
    "system": "System",
    "text": "Text",
    "context": "Assistant",
}


@dataclass(frozen=True)
class Prompt:
    """What the model is asked. Two prompts with the same turns are equal."""

    turns: Turns
    source: str | list = field(compare=False)  # as the record had it
    columns: dict = field(compare=False, default_factory=dict)  # the record's other fields

    @classmethod
    def of(cls, source: str | list, template: str = "chat", **columns) -> "Prompt":
        """From a text or a list of messages. UserError if it is neither, Skip if it is answered."""
        turns = parse(source, template)
        if turns[-1] == ("assistant", ""):  # a text that ends with the open header "\n\nAssistant:"
            turns = turns[:-1]
        check_request(turns)
        return cls(turns, source, columns)

    def first_request(self) -> str:
        """What the conversation begins with. Not a system text, which all prompts may share."""
        return next(text for role, text in self.turns if role in ("user", "text"))

    def last_request(self) -> str:
        return self.turns[-1][1]

    def text(self) -> str:
        """In the plain format: a key by which prompts are told apart."""
        return PLAIN.prompt_text(self.turns)


def check_request(turns: Turns) -> None:
    """An answer follows the user's turn, and not another answer."""
    if not turns or turns[-1][0] not in ("user", "text"):
        raise Skip("the prompt must end with the user's turn")


def transcript(turns: Turns) -> str:
    """For people and judges. A single turn is its text."""
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{NAMES[role]}: {text}" for role, text in turns)


@dataclass
class Ranking:
    """Different responses to one prompt, ranked: 1 = best, ties share a number."""

    prompt: Prompt
    responses: list[str]
    ranks: list[float]
    where: str  # "file.jsonl, line 17"
    annotator: str = ""
    preferences: list[list[float]] | None = None  # [i][j]: the chance that i is better than j


# ---------------------------------------------------------------------- what scripts read


def read_demonstrations(data: str, *, template: str = "chat", **which) -> list[Turns]:
    """Conversations to learn from. Every assistant turn is supervised."""

    def convert(record: Record, place: str) -> Turns:
        if "text" in record and not record.keys() & {"prompt", "messages", "chosen"}:
            return (("text", ""), ("assistant", text_field(record, "text")))
        if "completion" in record and "label" in record and not is_good(record):
            raise Skip("label is false")
        if "completion" in record or not record.keys() & {"messages", "chosen"}:
            prompt = prompt_of(record, template)
            turns = dialogue(require(record, "completion"), "completion", prompt.turns)
        elif "messages" in record:
            turns = in_field("messages", parse, list_field(record, "messages"))
        else:
            prompt, responses = pair(record, template)
            turns = (*prompt.turns, ("assistant", responses[0]))
        turns = until_last_answer(turns)
        if not any(role == "assistant" and text.strip() for role, text in turns):
            raise Skip("an empty answer")
        return turns

    return read(data, "demonstrations", convert, **which)


def read_prompts(data: str, *, template: str = "chat", **which) -> list[Prompt]:
    """Prompts in the order of the files, each once; with `places`, as often as they occur."""

    def convert(record: Record, place: str) -> Prompt:
        if "prompt" not in record and "chosen" in record:
            prompt = pair_prompt(record)
            check_request(prompt.turns)
            return prompt
        if "prompt" not in record and "messages" in record:
            turns = in_field("messages", parse, list_field(record, "messages"))
            turns = until_last_request(turns)
            check_request(turns)
            return Prompt(turns, messages(turns), columns_of(record))
        return prompt_of(record, template)

    prompts = read(data, "prompts", convert, **which)
    return prompts if "places" in which else list(dict.fromkeys(prompts))


def read_rankings(data: str, *, template: str = "chat", **which) -> list[Ranking]:
    """Rankings and pairs. A ranking may hold an empty response (a policy can say nothing)."""

    def convert(record: Record, place: str) -> Ranking:
        return ranking(record, place, template)

    return read(data, "rankings", convert, **which)


def read_labelled(
    data: str, *, template: str = "chat", places: list | None = None, **which
) -> list[tuple[Prompt, str, bool]]:
    """(prompt, response, is it good); rankings and pairs give good and bad responses too.

    places: as in `read`, one for each response
    """

    def convert(record: Record, place: str) -> list[tuple[Prompt, str, bool]]:
        if record.keys() & {"chosen", "responses"}:
            ranked = ranking(record, place, template)
            labels = good_and_bad(ranked.responses, ranked.ranks)
            return [(ranked.prompt, response, good) for response, good in labels]
        require(record, "label")
        good = is_good(record)
        completion = {"completion": require(record, "completion")}
        prompt, (response,) = answered(prompt_of(record, template), completion)
        return [(prompt, response, good)]

    record_places: list[str] = []
    groups = read(data, "labelled", convert, record_places, **which)
    if places is not None:
        for group, place in zip(groups, record_places):
            places += [place] * len(group)
    return [item for group in groups for item in group]


def holds_rankings(data: str) -> bool:
    """Whether the first record is a pair or a ranking."""
    _, first = next(records(data, "prompts", count=1), ("", {}))
    return bool(first.keys() & {"chosen", "ranks"})


def mixed(reader: Callable, data: str, weights: str, seed: int, **which) -> list:
    """reader(data, ...), one of the functions above, with files in given shares.

    weights: "0.3,0.7", one for each of the files; empty: all records of all files. The result has
    as many records as the files together; a file that has too few records for its share repeats
    them, one that has more than its share gives some of them, chosen by the seed.
    """
    if not weights:
        return reader(data, seed=seed, **which)
    names = readers.names(data)
    shares = cli.numbers(weights)
    usable = len(shares) == len(names) and all(0 < share < 1e9 for share in shares)
    if not usable:
        raise UserError(
            f"--data_weights {weights}: give a positive number for each of the {len(names)} "
            "names in --data"
        )
    parts = [reader(name, seed=seed, **which) for name in names]
    total = sum(map(len, parts))
    mixture = []
    for part, share in zip(parts, shares):
        count = max(1, round(total * share / sum(shares)))
        dice = random.Random(seed)
        while count > 0:
            mixture += dice.sample(part, min(count, len(part)))
            count -= len(part)
    return mixture


# ---------------------------------------------------------------------- fields


def require(record: Record, name: str) -> Any:
    if name in record:
        return record[name]
    if name in record.fields:  # as null, or as a table's empty cell
        raise Skip(f"{name!r} is missing")
    raise Missing(name)


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


def in_field(name: str, convert: Callable, *arguments) -> Any:
    """convert(*arguments); what is wrong is said of this field."""
    try:
        return convert(*arguments)
    except Skip as reason:
        raise Skip(f"{name!r}: {reason}") from None
    except UserError as error:
        raise UserError(f"field {name!r}: {error}") from None


def prompt_of(record: Record, template: str) -> Prompt:
    source = require(record, "prompt")
    turns = in_field("prompt", Prompt.of, source, template).turns
    return Prompt(turns, source, columns_of(record))


def columns_of(record: Record) -> dict:
    """The file's own fields but for the prompt."""
    return {name: value for name, value in record.fields.items() if name != "prompt"}


def until_last_answer(turns: Turns) -> Turns:
    """Without the turns behind the assistant's last one: nothing there is supervised."""
    for end in range(len(turns), 0, -1):
        if turns[end - 1][0] == "assistant":
            return turns[:end]
    raise Skip("no assistant turn to learn")


def until_last_request(turns: Turns) -> Turns:
    """Without the assistant's answer to the last request."""
    for end in range(len(turns), 0, -1):
        if turns[end - 1][0] != "assistant":
            return turns[:end]
    raise Skip("no user turn in 'messages'")


# ---------------------------------------------------------------------- prompts and responses


def dialogue(value: Any, name: str, prompt: Turns) -> Turns:
    """The prompt and what `value` adds: a text, or messages that go on from it or repeat it."""
    if is_response(value, prompt):
        if not (prompt and is_raw(prompt)):
            value = value.removeprefix(" ")  # some files keep the space behind "Assistant:"
        return (*prompt, ("assistant", value))
    turns = in_field(name, parse, value)
    if turns[-1][0] not in ("assistant", "context"):
        raise Skip(f"{name!r} ends with the user's turn")
    if turns[0][0] in ("assistant", "context"):
        return (*prompt, *turns)
    system, asked = split_system(prompt)
    other_system, turns = split_system(turns)
    if not begins_with(turns, asked) or (system and other_system and system != other_system):
        raise Skip(DIFFER)
    return (*(system or other_system), *asked, *turns[len(asked) :])


def is_response(value: Any, prompt: Turns) -> bool:
    """Whether this is a response's text, which may quote markers, and no dialogue."""
    if not isinstance(value, str):
        return False
    if not has_markers(value) or (prompt and is_raw(prompt)):
        return True
    if value.startswith(USER_HEADER):
        return False
    _, turns = split_system(parse_dialogue(value))
    _, asked = split_system(prompt)
    return not begins_with(turns, asked)


def begins_with(turns: Turns, asked: Turns) -> bool:
    """Blanks around a text do not count."""

    def stripped(some: Turns) -> list[tuple[str, str]]:
        return [(message["role"], message["content"].strip()) for message in messages(some)]

    return stripped(turns[: len(asked)]) == stripped(asked)


def split_system(turns: Turns) -> tuple[Turns, Turns]:
    if turns and turns[0][0] == "system":
        return turns[:1], turns[1:]
    return (), turns


def answered(prompt: Prompt, values: dict[str, Any]) -> tuple[Prompt, list[str]]:
    """The prompt with all that the responses share, and the text that each of them adds.

    values: field -> response
    """
    dialogues = [dialogue(value, name, prompt.turns) for name, value in values.items()]
    shared = dialogues[0][:-1]
    if any(turns[:-1] != shared for turns in dialogues):
        raise Skip(DIFFER)
    check_request(shared)
    if shared != prompt.turns:
        prompt = Prompt(shared, messages(shared), prompt.columns)
    return prompt, [turns[-1][1] for turns in dialogues]


def pair(record: dict, template: str) -> tuple[Prompt, list[str]]:
    """The prompt, [chosen, rejected]."""
    prompt = prompt_of(record, template) if "prompt" in record else pair_prompt(record)
    sides = {name: require(record, name) for name in ("chosen", "rejected")}
    source = prompt.source
    is_text = prompt.turns[-1][1] == source and len(source) >= SHORTEST_REPEATED
    if is_text and all(isinstance(x, str) and x.startswith(source) for x in sides.values()):
        sides = {name: text.removeprefix(source) for name, text in sides.items()}
    return answered(prompt, sides)


def pair_prompt(record: dict) -> Prompt:
    """The prompt of whole dialogues: all turns of the chosen one but the last."""
    source = require(record, "chosen")
    turns = dialogue(source, "chosen", ())[:-1]
    if not turns:
        require(record, "prompt")
    if isinstance(source, str):
        source = source[: source.rindex(ASSISTANT_HEADER) + len(ASSISTANT_HEADER)]
    else:
        source = messages(turns)
    return Prompt(turns, source, columns_of(record))


def ranking(record: dict, place: str, template: str) -> Ranking:
    if "label" in record and not record.keys() & {"responses", "chosen"}:
        raise UserError(
            "a record with 'label' is one response without another to compare it with; use "
            "train_dpo.py --loss kto, or give pairs or rankings"
        )
    annotator = str(record.get("annotator", ""))
    if "responses" not in record and "ranks" not in record:
        prompt, responses = pair(record, template)
        if responses[0] == responses[1]:
            raise Skip("'chosen' equals 'rejected'")
        if not all(response.strip() for response in responses):
            raise Skip("empty 'chosen' or 'rejected'")
        return Ranking(prompt, responses, [1, 2], place, annotator)

    prompt = prompt_of(record, template)
    responses = list_field(record, "responses")
    if not all(is_response(response, prompt.turns) for response in responses):
        names = [f"responses[{number}]" for number in range(len(responses))]
        prompt, responses = answered(prompt, dict(zip(names, responses)))
    ranks = list_field(record, "ranks")
    check_ranks(responses, ranks)
    preferences = None
    if "preferences" in record:
        preferences = read_preferences(record, len(ranks))
    if record.get("repeat") is True:
        raise Skip("'repeat' (it measures an annotator's agreement with themselves)")
    kept, ranks = distinct(responses, ranks)
    if len(set(ranks)) == 1:
        raise Skip("all 'ranks' are tied, or all 'responses' are one")
    responses = [responses[i] for i in kept]
    if preferences:
        preferences = [[preferences[i][j] for j in kept] for i in kept]
    return Ranking(prompt, responses, ranks, place, annotator, preferences)


def check_ranks(responses: list, ranks: list) -> None:
    if len(responses) < 2 or len(responses) != len(ranks):
        raise UserError(
            f"{len(responses)} 'responses', {len(ranks)} 'ranks'; give 2 or more of both"
        )
    for rank in ranks:
        whole = type(rank) is int or (isinstance(rank, float) and rank.is_integer())
        if not whole or abs(rank) > 10**9:
            raise UserError(f"field 'ranks' holds {rank!r:.40}; use whole numbers, 1 for the best")


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


def distinct(responses: list, ranks: list[float]) -> tuple[list[int], list[float]]:
    """Where each different response first stands, and the mean of its ranks.

    Nothing is learnt from a comparison of a text with itself.
    """
    first: dict[Any, int] = {}
    ranks_of: dict[Any, list[float]] = {}
    for i, (response, rank) in enumerate(zip(responses, ranks)):
        key = tuple(response)
        first.setdefault(key, i)
        ranks_of.setdefault(key, []).append(rank)
    means = [sum(given) / len(given) for given in ranks_of.values()]
    return list(first.values()), means


def good_and_bad(responses: list, ranks: list[float]) -> list[tuple[Any, bool]]:
    """(response, True) if it beats more of the others than beat it, False if fewer."""
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
