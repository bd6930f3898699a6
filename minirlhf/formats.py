"""Other people's records in our fields. To read one more kind, add a function to FORMATS.

A function gets a record without null fields. Where it knows the record's kind, it takes fields out
and puts those in that minirlhf/data.py knows. Fields that it leaves are named as not used.
"""

import json
from typing import Any

from minirlhf import UserError
from minirlhf.chat import USER_HEADER
from minirlhf.parsing import role_of

RENAMED = {
    "response": "completion",
    "system_prompt": "system",
    "kto_tag": "label",
    "conversations": "messages",
    "conversation": "messages",
}
REQUESTS = ("instruction", "question", "query", "input")
ANSWERS = ("output", "answer")
LISTS = ("messages", "responses", "ranks", "scores", "history")
RESPONSES = {"completion", "chosen", "responses"}


class Record(dict):
    """A record in our fields. It knows which of them were read, and the fields of the file."""

    def __init__(self, record: dict, fields: dict):
        super().__init__(record)
        self.fields = fields
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        return super().get(name, default)


def adapt(fields: dict) -> Record:
    record = {name: value for name, value in fields.items() if value is not None}
    for read in FORMATS:
        read(record)
    return Record(record, fields)


def other_names(record: dict) -> None:
    for name, ours in RENAMED.items():
        if name in record and ours not in record:
            record[ours] = record.pop(name)


def lists_as_text(record: dict) -> None:
    """Tables hold lists as JSON."""
    for name in LISTS:
        if isinstance(record.get(name), str) and record[name].startswith("["):
            try:
                record[name] = json.loads(record[name])
            except (ValueError, RecursionError):
                raise UserError(
                    f"field {name!r} is no list in JSON; write it with json.dumps"
                ) from None


def request(record: dict) -> None:
    """Alpaca's {"instruction", "input", "output"} (Taori 2023), Dolly's with "context" and
    "response", {"question", "answer"}; with "chosen" and "rejected" in place of an answer.

    "history" holds earlier exchanges.
    """
    name = next((name for name in REQUESTS if isinstance(record.get(name), str)), "")
    if not name or "prompt" in record or "messages" in record:
        return
    texts = [record.pop(name)]
    for more in ("question", "input", "context"):
        if more in record:
            texts.append(text_of(record, more))
    record["prompt"] = "\n\n".join(text for text in texts if text)
    if history := record.pop("history", None):
        asked = {"role": "user", "content": record["prompt"]}
        record["prompt"] = [*messages_of(history), asked]
    for name in ANSWERS:
        if isinstance(record.get(name), str) and not record.keys() & RESPONSES:
            record["completion"] = record.pop(name)


def text_of(record: dict, name: str) -> str:
    if not isinstance(record[name], str):
        raise UserError(f"field {name!r} holds {record[name]!r:.60}; write a text")
    return record.pop(name)


def messages_of(history: Any) -> list[dict]:
    messages = []
    for exchange in history if isinstance(history, list) else [history]:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise UserError(
                f"field 'history' holds {exchange!r:.60}; write [request, answer] pairs"
            )
        messages.append({"role": "user", "content": exchange[0]})
        messages.append({"role": "assistant", "content": exchange[1]})
    return messages


def messages_and_answer(record: dict) -> None:
    """Messages up to a request, with a response or a pair beside; or a whole labelled dialogue."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return
    is_answered = role_of(messages[-1]) == "assistant"
    if messages == record.get("chosen"):  # UltraFeedback (Tunstall 2023): the same once more
        del record["messages"]
    elif "prompt" in record:
        return
    elif record.keys() & RESPONSES and not is_answered:
        record["prompt"] = record.pop("messages")
    elif "label" in record and is_answered:
        record["prompt"] = messages[:-1]
        record["completion"] = messages[-1:]
        del record["messages"]


def scored(record: dict) -> None:
    """{"responses", "scores"}, where more is better -> ranks."""
    responses, scores = record.get("responses"), record.get("scores")
    if "ranks" in record or not isinstance(responses, list) or not isinstance(scores, list):
        return
    if len(scores) != len(responses):
        raise UserError(f"{len(responses)} 'responses' with {len(scores)} 'scores'; give one each")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
            raise UserError(f"field 'scores' holds {score!r:.40}; write numbers")
    record["ranks"] = [1 + sum(other > score for other in scores) for score in scores]
    del record["scores"]


def tldr_comparison(record: dict) -> None:
    """OpenAI's comparisons of summaries of Reddit posts (Stiennon 2020); use --template raw."""
    try:
        info = record["info"]
        post = info["post"]
        summaries = [summary["text"] for summary in record["summaries"]]
        choice = record["choice"]
    except (KeyError, TypeError):
        return
    are_texts = all(isinstance(text, str) for text in summaries)
    if not are_texts or len(summaries) != 2 or choice not in (0, 1):
        return
    choice = int(choice)
    sides = [text if text.startswith(" ") else " " + text for text in summaries]
    title = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}"
    for name in ("info", "summaries", "choice"):
        del record[name]
    record["prompt"] = f"{title}\n\nPOST: {post}\n\nTL;DR:"
    record["chosen"] = sides[choice]
    record["rejected"] = sides[1 - choice]


def system_beside(record: dict) -> None:
    """A "system" text becomes the first turn of all that begins a dialogue."""
    if not isinstance(record.get("system"), str):
        return
    begins = [name for name in ("prompt", "messages") if name in record] or ["chosen", "rejected"]
    if not any(name in record for name in begins):
        return
    system = record.pop("system")
    for name in begins:
        if system and name in record:
            record[name] = behind_system(system, record[name])


def behind_system(system: str, dialogue: Any) -> Any:
    first = {"role": "system", "content": system}
    if isinstance(dialogue, str) and USER_HEADER in dialogue:
        return system + dialogue
    if isinstance(dialogue, str):
        return [first, {"role": "user", "content": dialogue}]
    if not isinstance(dialogue, list):
        return dialogue  # whoever reads it says what is wrong
    begin = dialogue[0] if dialogue and isinstance(dialogue[0], dict) else {}
    if role_of(begin) == "system" and system in begin.values():
        return dialogue
    return [first, *dialogue]


FORMATS = (
    other_names,
    lists_as_text,
    request,
    messages_and_answer,
    scored,
    tldr_comparison,
    system_beside,
)
