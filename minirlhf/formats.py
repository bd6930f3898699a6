"""Other people's records in our fields. Add a function to FORMATS to read one more kind.

A function gets a record without null fields, and returns it in the fields that minirlhf/data.py
knows, or None where the record is not of its kind. Fields that it does not look at stay.
"""

from typing import Any

from minirlhf import UserError
from minirlhf.chat import USER_HEADER

SPEAKERS = {"human": "user", "prompter": "user", "question": "user"}
SPEAKERS |= dict.fromkeys(["gpt", "chatgpt", "bot", "model", "answer", "bing", "bard"], "assistant")


class Record(dict):
    """A record that knows which of its fields were asked for."""

    def __init__(self, fields: dict, used: set | frozenset = frozenset()):
        super().__init__(fields)
        self.used = set(used)

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]


def sharegpt(record: Record) -> dict | None:
    """{"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]}"""
    for name in ("conversations", "conversation"):
        turns = record.get(name)
        if isinstance(turns, list):
            break
    else:
        return None
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise UserError(f"field {name!r}: turn {number} must be an object")
        speaker = turn.get("from", turn.get("role"))
        content = turn.get("value", turn.get("content"))
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append(rest | {"role": SPEAKERS.get(speaker, speaker), "content": content})
    return {"messages": messages}


def instruction(record: Record) -> dict | None:
    """Alpaca's {"instruction", "input", "output"} (Taori 2023) and Dolly's "context", "response".

    Perhaps with "history", earlier exchanges; or with "chosen" and "rejected" instead of an output.
    """
    if not isinstance(record.get("instruction"), str):
        return None
    prompt = record["instruction"]
    for name in ("input", "context"):
        if record.get(name):
            prompt = f"{prompt}\n\n{record[name]}"
    messages = []
    for exchange in record.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise UserError(
                f"field 'history' holds {exchange!r:.60}; write [request, answer] pairs"
            )
        messages.append({"role": "user", "content": exchange[0]})
        messages.append({"role": "assistant", "content": exchange[1]})
    if messages:
        prompt = [*messages, {"role": "user", "content": prompt}]
    if isinstance(record.get("output"), str):
        return {"prompt": prompt, "completion": record["output"]}
    return {"prompt": prompt}


def question(record: Record) -> dict | None:
    """{"question", "answer"}; a reward function also gets the answer."""
    if not isinstance(record.get("question"), str) or "prompt" in record:
        return None
    adapted = {"prompt": record["question"]}
    if isinstance(record.get("answer"), str) and not record.keys() & {"completion", "response"}:
        adapted |= {"completion": record["answer"], "answer": record["answer"]}
    return adapted


def scored(record: Record) -> dict | None:
    """{"responses", "scores"}, where more is better -> ranks."""
    scores = record.get("scores")
    if "responses" not in record or "ranks" in record or not isinstance(scores, list):
        return None
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
            raise UserError(f"field 'scores' holds {score!r:.40}; use numbers")
    ranks = []
    for score in scores:
        ranks.append(1 + sum(other > score for other in scores))
    return {"ranks": ranks}


def tldr_comparison(record: Record) -> dict | None:
    """OpenAI's comparisons of summaries of Reddit posts (Stiennon 2020); use --template raw."""
    try:
        info = record["info"]
        post = info["post"]
        summaries = [summary["text"] for summary in record["summaries"]]
        choice = record["choice"]
    except (KeyError, TypeError):
        return None
    if len(summaries) != 2 or choice not in (0, 1):
        return None
    sides = [text if text.startswith(" ") else " " + text for text in summaries]
    title = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}"
    return {
        "prompt": f"{title}\n\nPOST: {post}\n\nTL;DR:",
        "chosen": sides[choice],
        "rejected": sides[1 - choice],
    }


def system_beside(record: Record) -> dict | None:
    """A "system" text beside a prompt or messages."""
    system = record.get("system")
    if not isinstance(system, str):
        return None
    first = {"role": "system", "content": system}
    for name in ("messages", "prompt"):
        turns = record.get(name)
        if isinstance(turns, str) and USER_HEADER in turns:
            return {name: system + turns}
        if isinstance(turns, str):
            turns = [{"role": "user", "content": turns}]
        if isinstance(turns, list):
            return {name: [first, *turns] if system else turns}
    return None


FORMATS = (sharegpt, instruction, question, scored, tldr_comparison, system_beside)


def adapt(fields: dict) -> Record:
    """A record in our fields, by every function of the table that knows it."""
    record = Record(fields)
    for read in FORMATS:
        seen = Record(record)
        adapted = read(seen)
        if adapted is not None:
            rest = {name: value for name, value in record.items() if name not in seen.used}
            record = Record(rest | adapted, record.used | seen.used)
    return record
