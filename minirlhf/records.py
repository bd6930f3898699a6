"""What is behind `--data` -> records, one after another; what is skipped or unused is told.

A record that cannot be used is an error with its place, or a skip that is counted. Files are opened
in readers.py, and other people's fields turned into ours in formats.py.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from minirlhf import UserError, formats, hub, readers, world
from minirlhf.console import waiting
from minirlhf.formats import Record
from minirlhf.parsing import LEARNT, MESSAGE_FIELDS, Skip, kind_of

WORLD_RECORDS = 2000  # how many records a world writes where no count is given
# fields of rankings that only some of their readers use
NOTES = {"id", "time", "annotator", "seconds", "harmful", "all_bad", "skipped", "repeat"}
NOTES |= {"replaces", "subset", "policies", "picked", "talk"}
NEEDS = {
    "demonstrations": "prompt and completion, or messages, or text",
    "prompts": "prompt, or messages",
    "rankings": "prompt, chosen and rejected, or prompt, responses and ranks",
    "labelled": "prompt, completion and label",
}
OURS = {"prompt", "messages", "completion", "text", "chosen", "rejected"}
OURS |= {"responses", "ranks", "label"}


class Missing(UserError):
    """A record lacks a field, whose name this is; `read` says which fields it has and needs."""


def records(
    data: str, kind: str, *, split="train", count=0, seed=0
) -> Iterator[tuple[str, Record]]:
    """("file.jsonl, line 17", record) for each record of `--data`, in our fields.

    kind is one of NEEDS, or what else a world has a function for; with split, count and seed it
    matters to worlds, which write their records when asked.
    """
    for name in readers.names(data):
        if name in hub.DATA:
            files = hub.data_files(name, split)
            source = (item for file in files for item in readers.read(str(file)))
        elif module := world.find(name):
            source = world_records(module, kind, split, count or WORLD_RECORDS, seed)
        else:
            source = readers.read(name)
            if kind in ("rankings", "labelled"):
                source = last_answers(source)
        for place, record in source:
            if not isinstance(record, dict):
                raise UserError(
                    f'{place}: a record must be an object such as {{"prompt": ...}}, '
                    f"not {kind_of(record)}"
                )
            if name in hub.DATA and not hub.is_of_split(name, record, split):
                continue
            if name == "imdb" and kind == "prompts":  # a review's beginning, to go on from
                record = {"prompt": " ".join(str(record.get("text")).split()[:8])}
            try:
                record = formats.adapt(record)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            if kind != "demonstrations":
                forget_weights(record)
            yield place, record


def forget_weights(record: dict) -> None:
    """Only SFT learns from some of a conversation's answers and not from others."""
    for value in record.values():
        for message in value if isinstance(value, list) else []:
            if isinstance(message, dict):
                for name in LEARNT:
                    message.pop(name, None)


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
    kind = "rankings" if kind == "labelled" else kind
    write = getattr(module, kind, None)
    if write is None:
        raise UserError(f"--data {module.__name__}: the module has no function {kind}")
    try:
        with waiting(f"{module.__name__} writes {kind}"):
            written = list(write(split, count, seed))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--data {module.__name__}: its function {kind} raised {type(error).__name__}: {error}"
        ) from error
    for number, record in enumerate(written, 1):
        if isinstance(record, str | list):
            record = {"prompt": record}
        yield f"{module.__name__}, record {number}", record


def read(
    data: str,
    kind: str,
    convert: Callable,
    places: list | None = None,
    columns: Collection[str] | None = (),
    **which,
) -> list:
    """convert(record, place) of each record. Skips are counted and printed with their reasons.

    places: a list to which the place of each record that was kept is added.
    columns: further fields that are used; None: all
    """
    kept = []
    skipped: dict[str, list[str]] = {}
    unused: dict[str, None] = {}
    for place, record in records(data, kind, **which):
        try:
            kept.append(convert(record, place))
        except Skip as reason:
            skipped.setdefault(str(reason), []).append(place)
            continue
        except Missing as name:
            raise UserError(f"{place}: {missing(name, record, kind)}") from None
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        unused |= dict.fromkeys(unused_fields(record, kind))
        if places is not None:
            places.append(place)
    if not kept and not skipped:
        raise UserError(f"{data}: no record in it; write one JSON object on each line")
    reasons = [f"{len(where)}: {reason} (first: {where[0]})" for reason, where in skipped.items()]
    if not kept:
        raise UserError(f"{data}: no record is usable; skipped {'; '.join(reasons)}")
    if skipped:
        total = sum(len(where) for where in skipped.values())
        print(f"data: {total} of {total + len(kept)} records skipped; {'; '.join(reasons)}")
    if columns is not None:
        say_unused([name for name in unused if name not in columns], kind)
    return kept


def missing(name: Missing, record: Record, kind: str) -> str:
    has = listing(name for name, value in record.fields.items() if value is not None)
    needs = NEEDS.get(kind, name)
    return f"field '{name}' is missing; there are {has or 'none'}; name the fields {needs}"


def unused_fields(record: Record, kind: str) -> list[str]:
    """Fields of the file that nothing read, and those of messages as "message.name"."""
    known = set(record.used)
    if kind == "prompts":
        known |= OURS
    if kind in ("rankings", "labelled"):
        known |= NOTES
    names = [name for name in record if name in record.fields and name not in known]
    for name in record.used & record.keys():
        names += message_fields(record[name])
    return names


def message_fields(value: Any) -> list[str]:
    """Fields of messages that nothing reads."""
    names = []
    for message in value if isinstance(value, list) else []:
        if isinstance(message, dict):
            rest = [name for name in message if name not in MESSAGE_FIELDS and message[name]]
            names += [f"message.{name}" for name in rest]
    return names


def say_unused(names: list[str], kind: str) -> None:
    if not names:
        return
    hint = "; a reward function gets those that it names" if kind == "prompts" else ""
    print(f"data: fields not used: {listing(names)}{hint}")


def listing(names: Iterable[str]) -> str:
    """Names from a file, which could hold a line break, or steer a terminal."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names)[:999]
