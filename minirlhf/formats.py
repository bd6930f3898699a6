"""Other people's records in our fields. Add a function to FORMATS to read one more kind.

A function gets a record without null fields, and returns it in the fields that minirlhf/data.py
knows, or None where the record is not of its kind.
"""

from minirlhf import UserError


def alpaca(record: dict) -> dict | None:
    """{"instruction", "input", "output"} (Taori 2023), perhaps with "system" and "history" """
    instruction, output = record.get("instruction"), record.get("output")
    if not isinstance(instruction, str) or not isinstance(output, str):
        return None
    prompt = instruction
    if record.get("input"):
        prompt = f"{instruction}\n\n{record['input']}"
    messages = []
    if record.get("system"):
        messages.append({"role": "system", "content": record["system"]})
    for exchange in record.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise UserError(
                f"field 'history' holds {exchange!r:.60}; write [request, answer] pairs"
            )
        messages.append({"role": "user", "content": exchange[0]})
        messages.append({"role": "assistant", "content": exchange[1]})
    if messages:
        prompt = [*messages, {"role": "user", "content": prompt}]
    return {"prompt": prompt, "completion": output}


def tldr_comparison(record: dict) -> dict | None:
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
        "split": record.get("split"),
    }


FORMATS = (alpaca, tldr_comparison)


def adapt(record: dict) -> dict:
    for read in FORMATS:
        adapted = read(record)
        if adapted is not None:
            return adapted
    return record
