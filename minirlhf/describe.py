"""What data files hold, for a person to read: `python -m minirlhf.data FILE...`."""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from minirlhf import checkpoint, hub
from minirlhf.chat import Turns
from minirlhf.cli import exit_codes, printable
from minirlhf.data import (
    Ranking,
    read_demonstrations,
    read_labelled,
    read_prompts,
    read_rankings,
    transcript,
)
from minirlhf.model import Config
from minirlhf.records import records
from minirlhf.tokenizer import Tokenizer

WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
SHOWN = 800  # characters of a text


@dataclass
class Row:
    """A record: a prompt with its responses, of which there may be none."""

    prompt: Turns
    responses: list[str]
    place: str  # "file.jsonl, line 17"

    def key(self) -> tuple:
        return self.prompt, *self.responses


def check(data: str, model: str = "") -> str:
    """What the files hold: counts, lengths, duplicates, whether longer is better, examples.

    Lengths are tokens of `model` (a folder), or without one words, numbers and punctuation marks.
    """
    kind, rows, rankings = read_any(data)
    count, unit, context = counter(model)
    sizes = [count(row) for row in rows]  # of the prompt, then of each response
    lengths = [prompt + max(responses, default=0) for prompt, *responses in sizes]

    unique_prompts = len({row.prompt for row in rows})
    duplicates = len(rows) - len({row.key() for row in rows})
    lines = [
        f"{data}: {len(rows)} {kind} of {unique_prompts} prompts, {duplicates} duplicates",
        f"{unit} of prompt and longest response:",
        *histogram(lengths),
    ]
    longest = sorted(range(len(rows)), key=lambda i: -lengths[i])[:3]
    lines.append("longest: " + "; ".join(f"{lengths[i]} ({rows[i].place})" for i in longest))
    if context:
        too_long = sum(length > context for length in lengths)
        lines.append(f"longer than the model's context of {context} tokens: {too_long}")
    if rankings:
        lines.append(ties(rankings))
        lines.append(length_bias(rankings, [responses for _, *responses in sizes]))
    lines += overlaps(rows)
    for i in sorted({0, len(rows) // 2, len(rows) - 1}):
        lines += [f"\n--- {rows[i].place}", shown(transcript(rows[i].prompt))]
        lines += [f">>> {shown(text)}" for text in rows[i].responses]
    return printable("\n".join(lines))


def read_any(data: str) -> tuple[str, list[Row], list[Ranking]]:
    """What kind the first record is of, all records read as that, and the rankings if they are."""
    _, first = next(records(data, "demonstrations"), ("", {}))
    places: list[str] = []
    rankings = []
    if first.keys() & {"chosen", "responses"}:
        kind = "rankings"
        rankings = read_rankings(data, places=places)
        read = [(ranking.prompt.turns, ranking.responses) for ranking in rankings]
    elif {"label", "completion"} <= first.keys():
        items = read_labelled(data, places=places)
        good = sum(is_good for _, _, is_good in items)
        kind = f"labelled responses ({good} good, {len(items) - good} bad)"
        read = [(prompt.turns, [response]) for prompt, response, _ in items]
    elif first.keys() & {"completion", "messages", "text"}:
        kind = "demonstrations"
        conversations = read_demonstrations(data, places=places)
        read = [(turns[:-1], [turns[-1][1]]) for turns in conversations]
    else:
        kind = "prompts"
        read = [(prompt.turns, []) for prompt in read_prompts(data, places=places)]
    rows = [Row(*row, place) for row, place in zip(read, places, strict=True)]
    return kind, rows, rankings


def counter(model: str) -> tuple[Callable[[Row], list[int]], str, int]:
    """A function that counts a row's prompt and responses, in which unit, and the context."""
    if not model:

        def count(row: Row) -> list[int]:
            texts = [transcript(row.prompt), *row.responses]
            return [len(WORD_OR_MARK.findall(text)) for text in texts]

        return count, "words and marks", 0

    folder = hub.model_folder(model)
    tokenizer = Tokenizer.from_pretrained(folder)
    context = 0
    if Path(folder, "config.json").exists():
        context = checkpoint.read_config(folder, Config, {})[0].n_positions

    def count_tokens(row: Row) -> list[int]:
        responses = [len(tokenizer.encode_response(row.prompt, text)) for text in row.responses]
        return [len(tokenizer.encode_prompt(row.prompt)), *responses]

    return count_tokens, "tokens", context


def histogram(lengths: list[int]) -> list[str]:
    """A line for each power of two."""
    counts = Counter(max(1, length - 1).bit_length() for length in lengths)
    lines = []
    for bits in sorted(counts):
        bar = "#" * round(50 * counts[bits] / max(counts.values()))
        lines.append(f"  up to {2**bits:>6} {counts[bits]:>7} {bar}")
    return lines


def ties(rankings: list[Ranking]) -> str:
    """How many responses are ranked, and how many comparisons are ties."""
    sizes = Counter(len(ranking.ranks) for ranking in rankings)
    tied = sum(a == b for ranking in rankings for a, b in combinations(ranking.ranks, 2))
    total = sum(size * (size - 1) // 2 * count for size, count in sizes.items())
    numbers = ", ".join(f"{count} of {size} responses" for size, count in sorted(sizes.items()))
    return f"rankings: {numbers}; {tied} of {total} comparisons are ties"


def overlaps(rows: list[Row]) -> list[str]:
    """What two files share: what is trained on must not be in the file to test with."""
    files: dict[str, set] = {}
    for row in rows:
        is_text = row.prompt == (("text", ""),)
        key = row.key() if is_text else row.prompt
        file = re.split(r", (?:line|record) \d", row.place)[0]
        files.setdefault(file, set()).add(key)
    lines = []
    for (name, prompts), (other, other_prompts) in combinations(files.items(), 2):
        if shared := len(prompts & other_prompts):
            lines.append(f"{shared} of {len(prompts)} prompts of {name} are also in {other}")
    if len(files) > 1 and not lines:
        lines = ["no prompt is in two files"]
    return lines


def length_bias(rankings: list[Ranking], sizes: list[list[int]]) -> str:
    """How often the better response is the longer one."""
    longer = 0
    total = 0
    for ranked, lengths in zip(rankings, sizes):
        for i, j in combinations(range(len(lengths)), 2):
            if lengths[i] == lengths[j] or ranked.ranks[i] == ranked.ranks[j]:
                continue
            total += 1
            longer += (lengths[i] > lengths[j]) == (ranked.ranks[i] < ranked.ranks[j])
    if not total:
        return "the responses that are compared are equally long"
    return (
        f"the better response is the longer one in {longer / total:.1%} of {total} comparisons: a "
        "reward model that only counts would be as right"
    )


def shown(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}... ({len(text)} characters)"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m minirlhf.data", description="What files hold.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders, patterns, -")
    parser.add_argument("--model", default="", help="count this model's tokens")
    settings = parser.parse_args(arguments)
    with exit_codes():
        print(check(",".join(settings.files), settings.model))
