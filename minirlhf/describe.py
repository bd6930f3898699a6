"""What data files hold, for a person to read: `python -m minirlhf.data FILE...`."""

import argparse
import os
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

from minirlhf import UserError, checkpoint, hub
from minirlhf.data import (
    Ranking,
    read_demonstrations,
    read_labelled,
    read_prompts,
    read_rankings,
    records,
    transcript,
)
from minirlhf.model import Config
from minirlhf.tokenizer import Tokenizer

WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


def check(data: str, model: str = "") -> str:
    """What the files hold: counts, lengths, duplicates, whether longer is better, examples.

    Lengths are tokens of `model` (a folder), or without one words, numbers and punctuation marks.
    """
    kind, rows, places, rankings = read_any(data)
    encode = WORD_OR_MARK.findall
    unit = "words and marks"
    if model:
        folder = hub.model_folder(model)
        encode = Tokenizer.from_pretrained(folder).encode
        unit = "tokens"
    sizes = [[len(encode(text)) for text in row] for row in rows]
    lengths = [row[0] + max(row[1:]) for row in sizes]

    unique_prompts = len({row[0] for row in rows})
    duplicates = len(rows) - len({tuple(row) for row in rows})
    lines = [
        f"{data}: {len(rows)} {kind} of {unique_prompts} prompts, {duplicates} duplicates",
        f"{unit} of prompt and longest response:",
        *histogram(lengths),
    ]
    longest = sorted(range(len(rows)), key=lambda i: -lengths[i])[:3]
    lines.append("longest: " + "; ".join(f"{lengths[i]} ({places[i]})" for i in longest))
    if model and Path(folder, "config.json").exists():
        context = checkpoint.read_config(folder, Config, {})[0].n_positions
        too_long = sum(length > context for length in lengths)
        lines.append(f"longer than the model's context of {context} tokens: {too_long}")
    if rankings:
        lines.append(ties(rankings))
        lines.append(length_bias(rankings, [row[1:] for row in sizes]))
    lines += overlaps(rows, places)
    for i in sorted({0, len(rows) // 2, len(rows) - 1}):
        lines += [f"\n--- {places[i]}", printable(rows[i][0])]
        lines += [f">>> {printable(text)}" for text in rows[i][1:]]
    return "\n".join(lines)


def read_any(data: str) -> tuple[str, list[list[str]], list[str], list[Ranking]]:
    """Kind, [prompt, response, ...] of each record, its place, and the rankings if it has any."""
    _, first = next(records(data, "demonstrations"), ("", {}))
    places: list[str] = []
    if first.keys() & {"chosen", "responses"}:
        rankings = read_rankings(data, places=places)
        rows = [[transcript(r.prompt.turns), *r.responses] for r in rankings]
        return "rankings", rows, places, rankings
    if "label" in first and first.keys() & {"completion", "response"}:
        labelled = read_labelled(data, places=places)
        good = sum(label for _, _, label in labelled)
        kind = f"labelled responses ({good} good, {len(labelled) - good} bad)"
        return kind, [[transcript(p.turns), text] for p, text, _ in labelled], places, []
    if first.keys() & {"completion", "messages", "text"}:
        conversations = read_demonstrations(data, places=places)
        rows = [[transcript(turns[:-1]), turns[-1][1]] for turns in conversations]
        return "demonstrations", rows, places, []
    prompts = read_prompts(data, places=places)
    return "prompts", [[transcript(prompt.turns), ""] for prompt in prompts], places, []


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


def overlaps(rows: list[list[str]], places: list[str]) -> list[str]:
    """Prompts that two files share: what is trained on must not be in the file to test with."""
    prompts: dict[str, set[str]] = {}
    for row, place in zip(rows, places):
        file = place.rpartition(",")[0] or place  # without ", line 17"
        prompts.setdefault(file, set()).add(row[0])
    lines = []
    for (name, of_file), (other, of_other) in combinations(prompts.items(), 2):
        shared = len(of_file & of_other)
        lines.append(f"{shared} of {len(of_file)} prompts of {name} are also in {other}")
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
    return (
        f"the better response is the longer one in {longer / max(1, total):.1%} of {total} "
        "comparisons: a reward model that only counts would be as right"
    )


def printable(text: str) -> str:
    """Without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m minirlhf.data", description="What files hold.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders, patterns, -")
    parser.add_argument("--model", default="", help="count this model's tokens")
    chosen = parser.parse_args(arguments)
    try:
        print(check(",".join(chosen.files), chosen.model), flush=True)
    except BrokenPipeError:  # piped into head, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
