"""Candidates become rankings: the record, the file that holds them, simulated annotators.

Whoever ranked, the record looks the same to everything downstream:

    {"id", "prompt", "responses": [K texts], "ranks": [1 is best, ties share a number],
     "annotator", "time"}

A person's record also has "seconds" and, where it applies, "harmful": [indices of responses],
"all_bad": true, "skipped": true (all tied), "repeat": true (the prompt came a second time),
"replaces": true (the answer was taken back and given again: earlier records of the same id,
annotator and repeat do not count). Reward models learn from neither skipped nor repeated ones.
What an AI's record has besides stands in judge.py.
"""

import math
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from minirlhf import UserError
from minirlhf.data import Prompt, list_field, prompt_of
from minirlhf.files import append_jsonl, check_target, lock, lock_of, unlock
from minirlhf.readers import lines_of_json
from minirlhf.records import last_answers, read
from minirlhf.user_function import check_scores

BEGINNING = b'{"id": '  # of every record here
TEXT = re.compile(rb'"([^"\\]|\\.)*"?')  # in JSON; at a line's end perhaps without its own end


@dataclass
class Candidate:
    """A prompt and the responses to rank."""

    id: str | int
    prompt: Prompt
    responses: list[str]


def rank_by(utilities: Sequence[float], noise=0.0, rng: random.Random | None = None) -> list[int]:
    """Utilities -> ranks, 1 is best. Without noise equal utilities tie.

    noise: scale of the Gumbel noise on each utility. Response i comes before j with probability
    sigmoid((u_i - u_j) / noise), as in the Bradley-Terry model behind every reward model.
    """
    if noise:  # 1 - random() is never 0
        utilities = [u - noise * math.log(-math.log(1 - rng.random())) for u in utilities]
    best_first = sorted(range(len(utilities)), key=utilities.__getitem__, reverse=True)
    ranks = [1] * len(utilities)
    for better, worse in pairwise(best_first):
        tied = utilities[better] - utilities[worse] <= 1e-9
        ranks[worse] = ranks[better] if tied else ranks[better] + 1
    return ranks


def parse_bias(text: str) -> dict[str, float]:
    """'length=0.3,agreement=0.5' -> {"length": 0.3, "agreement": 0.5}"""
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = math.nan
        if not math.isfinite(weights[name.strip()]):
            raise UserError(f"--bias {part!r}: write feature=weight, as in length=0.3")
    return weights


def simulated_annotator(
    module: ModuleType, noise: float = 0.2, bias: str = "", seed: int = 0
) -> Callable[[str | list, list[str]], list[int]]:
    """(prompt as in the file, responses) -> ranks, by a world's `annotate`, a bias and noise.

    bias: weights on the world's `features`. The noise depends on (seed, prompt) alone, not on the
    order in which prompts come.
    """
    weights = parse_bias(bias)
    if weights:
        known = module.features("", "")
        unknown = ", ".join(weights.keys() - known.keys())
        if unknown:
            raise UserError(f"--bias {unknown}: the features are {', '.join(known)}")

    def annotate(prompt: str | list, responses: list[str]) -> list[int]:
        texts = list(dict.fromkeys(responses))  # equal ones tie
        utilities = utilities_of(module, prompt, texts)
        for name, weight in weights.items():
            for i, text in enumerate(texts):
                utilities[i] += weight * module.features(prompt, text)[name]
        ranks = rank_by(utilities, noise, random.Random(f"{seed}/{prompt}"))
        rank_of = dict(zip(texts, ranks))
        return [rank_of[response] for response in responses]

    return annotate


def utilities_of(module: ModuleType, prompt: str | list, responses: list[str]) -> list[float]:
    """How much a world's annotator likes each response; UserError if that is no finite number."""
    name = f"{module.__name__}.annotate"
    try:
        given = module.annotate(prompt, list(responses))
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{name} raised {type(error).__name__}: {error} (for {str(prompt)[-80:]!r})"
        ) from error
    utilities = check_scores(given, responses, name)
    if any(map(math.isnan, utilities)):
        raise UserError(f"{name} gave None for one of {responses}: give each response a number")
    return utilities


def read_candidates(path: str, template: str = "chat") -> list[Candidate]:
    """What sample.py --candidates_out wrote. UserError names file, line and field."""
    candidates = {}

    def add(record: dict, where: str) -> None:
        responses = list_field(record, "responses")
        if len(responses) < 2 or not all(isinstance(text, str) for text in responses):
            raise UserError("field 'responses' must hold two texts or more")
        key = record.get("id", str(len(candidates)))
        if not isinstance(key, str | int) or key in candidates:
            raise UserError(f"field 'id' holds {key!r}; give each record its own text or number")
        candidates[key] = Candidate(key, prompt_of(record, template), responses)

    read(path, "candidates", add)
    return list(candidates.values())


def open_rankings(path: str | Path, candidates: list[Candidate] | None = None) -> list[dict]:
    """The rankings in the file so far; none where there is no file yet.

    candidates: what the rankings must be of; None: anything.
    No other process writes to it until `close_rankings` or the end of this one.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"--out {path}: a file of rankings is named .jsonl")
    check_target("--out", path)
    lock(lock_of(path), str(path))
    if not path.exists():
        return []
    content, torn = _without_torn_line(path.read_bytes())
    if content.lstrip().startswith(b"["):
        raise UserError(f"{path}, line 1: a list, not a record a line: choose another --out")
    texts = {c.id: (c.prompt.source, c.responses) for c in candidates or ()}
    rankings = []
    for where, record in last_answers(lines_of_json(BytesIO(content), str(path))):
        if not isinstance(record, dict):
            raise UserError(f"{where}: no JSON object: mend it or choose another --out")
        record = {name: value for name, value in record.items() if value is not None}
        if candidates is not None and not is_ranking(record):
            raise UserError(f"{where}: this is no ranking that label.py wrote: mend it")
        ranked = record.get("prompt"), record.get("responses")
        if candidates is not None and texts.get(record["id"]) != ranked:
            raise UserError(f"{where}: a ranking of other candidates: choose another --out")
        rankings.append(record)
    if torn:
        _put_aside(torn, path, len(content))
    return rankings


def close_rankings(path: str | Path) -> None:
    unlock(lock_of(path))


def _without_torn_line(content: bytes) -> tuple[bytes, bytes]:
    """A file's whole lines, and the beginning of a record that a crash cut short, or b"".

    A crash leaves no other last line: anything else is the user's.
    """
    whole, newline, last_line = content.rpartition(b"\n")
    if last_line and BEGINNING.startswith(last_line[: len(BEGINNING)]) and is_open(last_line):
        return whole + newline, last_line
    return content, b""


def is_open(line: bytes) -> bool:
    """Whether the JSON object with which a line begins has no end in it."""
    depth = 0
    for brace in re.findall(rb"[{}]", TEXT.sub(b"", line)):
        depth += 1 if brace == b"{" else -1
        if depth == 0:
            return False
    return True


def _put_aside(torn: bytes, path: Path, size: int) -> None:
    """Cut a torn line off; it was never confirmed to anybody. size: of the file without it"""
    aside = path.with_name(f"{path.name}.torn")
    with aside.open("ab") as file:
        file.write(torn + b"\n")
    os.truncate(path, size)
    print(f"{path}: the last line was cut short while being written; it is in {aside} now")


def append_ranking(
    path: str | Path,
    candidate: Candidate,
    ranks: list[int],
    annotator: str,
    sync: bool = True,
    **more,
) -> dict:
    """Append one ranking and return its record. sync: it is on the disk before this returns."""
    record = {
        "id": candidate.id,
        "prompt": candidate.prompt.source,
        "responses": candidate.responses,
        "ranks": ranks,
        "annotator": annotator,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record |= more
    append_jsonl(path, [record], sync=sync)
    return record


def is_ranking(record: dict) -> bool:
    """Whether a record has the fields that a summary needs, with values that they can have."""
    ranks, responses = record.get("ranks"), record.get("responses")
    asked, policies = record.get("asked", []), record.get("policies", responses)
    if not all(isinstance(value, list) for value in (ranks, responses, asked, policies)):
        return False
    if not all(isinstance(question, list) and len(question) == 4 for question in asked):
        return False
    numbers = [record.get("seconds", 0), *ranks]
    for *_, once, swapped in asked:
        numbers += [preference for preference in (once, swapped) if preference is not None]
    return (
        isinstance(record.get("id"), str | int)
        and isinstance(record.get("annotator"), str)
        and isinstance(record.get("prompt"), str | list)
        and len(ranks) == len(responses) == len(policies)
        and all(isinstance(text, str) for text in (*responses, *policies))
        and all(isinstance(number, int | float) and abs(number) < 1e9 for number in numbers)
    )
