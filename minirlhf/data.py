"""Files of JSON lines -> validated records -> batches.

`--data` is a comma-separated list of files: .jsonl, .json (a list), .txt (one text), each also as .gz, .parquet; of data
sets by name, fetched once: hh-helpful-base, hh-helpful-online, hh-helpful-rejection-sampled, hh-harmless-base, alpaca,
shakespeare, and with --template raw tldr and imdb (prompts: a review's first words); or "toy", the embedded world.
`python -m minirlhf.data FILE [MODEL]` checks a file. Records have TRL's field names:

    demonstration   {"prompt", "completion"} | {"messages"} | {"text"} | a preference pair, for its chosen side
    pair            {"prompt", "chosen", "rejected"}, or as in hh-rlhf whole dialogues in chosen and rejected
    ranking         {"prompt", "responses", "ranks": [1 = best, ties share a number]}, perhaps "preferences" as an AI gives
    good or bad     {"prompt", "response", "label": true or false}, unpaired; "completion" is as good as "response"
    prompt          {"prompt"}, or any of the above

A prompt, completion, chosen or rejected may also be a list of messages. A prompt without "\\n\\nHuman:" and
"\\n\\nAssistant:" becomes a human turn (template "chat") or stays as it is ("raw"). What is malformed is an error at
once; a sound record without use (two identical sides) is skipped, and skips are counted and printed; nothing is cut, and
nothing is mended but lone surrogates, which no file can hold. A marker with a typo ("\\n\\nHumans:") is text like any other.
"""

import functools
import gzip
import hashlib
import itertools
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch

from minirlhf import UserError, hub
from minirlhf.tokenizer import ASSISTANT, HUMAN, PIECE, Segment, Tokenizer, conversation_segments, parse_prompt, response_text

TOY_RECORDS = 2000  # of the toy world, where no count is given
LONGEST_LINE, LONGEST_FILE = 2**26, 2**30  # bytes, unpacked, of a record and of a file that is read whole
BOMB_BYTES, BOMB_RATIO = 2**28, 200  # a .gz that unpacks to more bytes and to more times its size is not data


class _Skip(Exception):
    """A well-formed record without use; the message says why."""


@dataclass
class Ranking:
    prompt: str
    responses: list[str]
    ranks: list[int]  # 1 = best, ties share a number
    where: str  # "file.jsonl, line 17"
    annotator: str = ""  # who ranked, if the record says so
    preferences: list[list[float]] | None = None  # soft: [i][j] the chance that i is better than j; 0 both ways where unknown


def records(data: str, kind: str, *, split="train", count=0, seed=0) -> Iterator[tuple[str, dict]]:
    """("file.jsonl, line 17", record) for each record of `--data`. Files are read whole; kind (demonstrations, rankings,
    prompts), split, count and seed are the toy world's."""
    names = [name.strip() for name in data.split(",")]
    for name in names:
        toy = name in ("toy", "toy+judge")
        files = hub.data_files(name, split) if name in hub.DATA else [name]
        found = _toy_records(name, kind, split, count, seed) if toy else itertools.chain.from_iterable(map(_file_records, files))
        for where, record in found:
            if not isinstance(record, dict):
                raise UserError(f'{where}: a record must be an object {{"prompt": ...}}, not {_type(record)}; mend it')
            if name == "imdb" and kind == "prompts":
                record = {"prompt": " ".join(_field(record, "text", where).split()[:8])}
            if name != "tldr" or (record.get("split") == "train") == (split == "train"):     # its files mix their splits
                yield where, _published(record)


def _published(record: dict) -> dict:
    """Alpaca's instructions and TL;DR's comparisons (Stiennon 2020) in our fields; any other record as it is."""
    match record:
        case {"instruction": str(prompt), "output": str(output)}:
            return {"prompt": f"{prompt}\n\n{record['input']}" if record.get("input") else prompt, "completion": output}
        case {"info": {"post": str(post), **info}, "summaries": [{"text": str(a)}, {"text": str(b)}], "choice": 0 | 1 as best}:
            said = [text if text.startswith(" ") else " " + text for text in (a, b)]
            prompt = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {post}\n\nTL;DR:"
            return {"prompt": prompt, "chosen": said[best], "rejected": said[1 - best]}
    return record


def _toy_records(name: str, kind: str, split: str, count: int, seed: int) -> Iterator[tuple[str, dict]]:
    if kind == "rankings":
        raise UserError("--data toy: the toy world has no rankings of its own; make a file of them with label.py")
    from minirlhf import toyworld  # here, because nothing else in this file needs it

    make = toyworld.prompts if kind == "prompts" else toyworld.demonstrations
    if name == "toy+judge" and kind != "prompts":
        from minirlhf.toyjudge import demonstrations as make
    made = [m if isinstance(m, dict) else {"prompt": m} for m in make(split, count or TOY_RECORDS, seed)]
    yield from ((f"toy world, record {number}", record) for number, record in enumerate(made, 1))


def _file_records(name: str) -> Iterator[tuple[str, Any]]:
    ending, where, unpacked = Path(name.removesuffix(".gz")).suffix, name, 0
    if ending not in (".jsonl", ".json", ".txt", ".parquet"):
        raise UserError(f"--data {name}: files are named .jsonl, .json, .txt or .parquet, the first three also with .gz, and data "
                        f"sets {', '.join(hub.DATA)}; rename this one")
    try:
        if ending == ".parquet":
            try:
                from pyarrow import parquet  # no dependency of ours
            except ImportError:
                raise UserError(f"--data {name}: nothing here reads .parquet; pip install pyarrow, or save it as .jsonl") from None
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in parquet.ParquetFile(name).iter_batches())
            yield from ((f"{name}, record {number}", row) for number, row in enumerate(rows, 1))
            return
        most = LONGEST_LINE if ending == ".jsonl" else LONGEST_FILE
        with (gzip.open if name.endswith(".gz") else open)(name, "rb") as file:
            # Lines of a binary file end at \n alone: a text may hold \r and U+2028.
            pieces = iter(lambda: file.readline(most + 1) if ending == ".jsonl" else file.read(most + 1), b"")
            for number, line in enumerate(pieces, 1):
                where = f"{name}, line {number}" if ending == ".jsonl" else name
                unpacked += len(line)
                if len(line) > most or unpacked > max(BOMB_BYTES, BOMB_RATIO * Path(name).stat().st_size):
                    raise UserError(f"{where}: more than {most} bytes at once, or {BOMB_RATIO} times the packed file's size: "
                                    "divide it, or do not trust it")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if ending == ".txt":
                    yield where, {"text": text}
                elif ending == ".jsonl" and text.strip():
                    yield where, _parsed(text)
                elif ending == ".json":
                    listed = _parsed(text)
                    if not isinstance(listed, list):
                        raise UserError(f"{name} must hold a list of records; name it .jsonl if it has one a line")
                    yield from ((f"{name}, record {n}", record) for n, record in enumerate(listed, 1))
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, of Parquet
        at = f"{error.msg} at {error.doc[error.pos :][:20]!r}" if isinstance(error, json.JSONDecodeError) else error
        remedy = "take an intact file" if ending == ".parquet" else "put one object on each line, in UTF-8"
        raise UserError(f"{where}: not valid {'Parquet' if ending == '.parquet' else 'JSON'} ({at}); {remedy}") from None
    except (OSError, EOFError, zlib.error) as error:  # absent, or not an intact gzip file
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--data {name}: {why}; give intact files, divided by commas, or toy") from None


def _parsed(text: str) -> Any:
    def mended(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if isinstance(value, list):
            return [mended(x) for x in value]
        return {mended(k): mended(x) for k, x in value.items()} if isinstance(value, dict) else value

    value = json.loads(text)
    return mended(value) if "\\ud" in text.lower() else value  # "\ud800": half of a character, written as an escape


def _read(data: str, kind: str, convert: Callable[[dict, str], Any], places: list[str] | None = None, **which) -> list:
    """convert(record, where) of each record; what is skipped is counted and printed. places: takes where each kept one was."""
    kept, flawed = [], {}
    for where, record in records(data, kind, **which):
        try:
            kept.append(convert(record, where))
            if places is not None:
                places.append(where)
        except _Skip as skip:
            flawed.setdefault(str(skip), []).append(where)
    if not kept and not flawed:
        raise UserError(f"--data {data} holds no record; give a file with one JSON object on each line")
    if not kept:
        flaw, places = next(iter(flawed.items()))
        raise UserError(f"{places[0]}: {flaw}, and no other record is usable; mend them or give another file")
    if flawed:
        reasons = "; ".join(f"{len(places)} with {flaw} (first: {places[0]})" for flaw, places in flawed.items())
        skipped = sum(map(len, flawed.values()))
        print(f"data: {skipped} of {skipped + len(kept)} records skipped: {reasons}")
    return kept


def read_demonstrations(data: str, *, template="chat", **which) -> list[list[Segment]]:
    """Every assistant turn is supervised, those inside a prompt too; a plain text is, from end to end."""

    def convert(record: dict, where: str) -> list[Segment]:
        if "text" in record and not record.keys() & {"prompt", "completion", "messages", "chosen"}:
            return [(_filled(record, "text", where), True)]
        if "messages" in record and "completion" not in record:
            segments = _messages(record, "messages", where)
            if not any(by_assistant for _, by_assistant in segments):
                raise _Skip("no assistant turn in 'messages'")
            return segments
        field = "chosen" if "chosen" in record and "completion" not in record else "completion"
        prompt, response = _turn(record, field, where, template)
        _filled({field: response}, field, where)
        return [*(parse_prompt(prompt) if prompt else ()), (response_text(prompt, response), True)]

    return _read(data, "demonstrations", convert, **which)


def read_rankings(data: str, *, template="chat", **which) -> list[Ranking]:
    """Rankings and preference pairs. An empty response can be ranked (a policy may say nothing), but not in a pair."""

    return _read(data, "rankings", lambda record, where: _ranking(record, where, template), **which)


def read_labelled(data: str, *, template="chat") -> list[tuple[str, str, bool]]:
    """(prompt, response, is it good), unpaired; from rankings and pairs too. UserError unless there are good and bad ones."""

    def convert(record: dict, where: str) -> list[tuple[str, str, bool]]:
        if "label" in record:
            if type(record["label"]) is not bool:
                raise UserError(f"{where}: field 'label' holds {record['label']!r}; write true for good, false for bad")
            prompt = _prompt(record, where, template)
            field = "completion" if "completion" in record and "response" not in record else "response"
            return [(prompt, _response(record, field, where, prompt), record["label"])]
        r = _ranking(record, where, template)
        return [(r.prompt, response, good) for response, good in good_and_bad(r.responses, r.ranks)]

    found = [x for xs in _read(data, "rankings", convert) for x in xs]
    good = sum(label for *_, label in found)
    if not 0 < good < len(found):
        raise UserError(f"--data {data} holds {good} good and {len(found) - good} bad responses; KTO needs both, add the others")
    return found


def distinct(responses: list, ranks: list[int]) -> tuple[list, list[float]]:
    """Each response once, with the mean of its ranks: what was ranked twice is not compared with itself."""
    found = {}
    for response, rank in zip(responses, ranks):
        found.setdefault(tuple(response), (response, []))[1].append(rank)
    return [response for response, _ in found.values()], [sum(given) / len(given) for _, given in found.values()]


def good_and_bad(responses: list, ranks: list[float]) -> list[tuple[Any, bool]]:
    """(response, True) for those that beat more of the others than they lose to, False if fewer; each once."""
    responses, ranks = distinct(responses, ranks)
    wins = [sum((i < j) - (i > j) for j in ranks) for i in ranks]
    return [(response, won > 0) for response, won in zip(responses, wins) if won]


def read_prompts(data: str, *, template="chat", **which) -> list[str]:
    """Prompts, each once, in the order of the files; if `places` is asked for, as often as they are there."""

    def convert(record: dict, where: str) -> str:
        if "prompt" in record or not record.keys() & {"messages", "chosen"}:
            return _prompt(record, where, template)
        if "chosen" in record:
            return _turn(record, "chosen", where, template)[0]
        segments = _messages(record, "messages", where)
        return "".join(text for text, _ in (segments[:-1] if segments[-1][1] else segments))

    found = _read(data, "prompts", convert, **which)
    return found if "places" in which else list(dict.fromkeys(found))


def _ranking(record: dict, where: str, template: str) -> Ranking:
    if "label" in record and not record.keys() & {"responses", "ranks", "chosen"}:
        raise UserError(f"{where}: a record with 'label' is one response without another to compare it with; only "
                        "train_dpo.py --loss kto learns from such: give pairs or rankings, or take that loss")
    if "responses" in record or "ranks" in record:
        prompt = _prompt(record, where, template)
        responses, ranks = (_field(record, field, where, list) for field in ("responses", "ranks"))
        named = {f"responses[{i}]": text for i, text in enumerate(responses)}
        responses = [_response(named, name, where, prompt) for name in named]
        if not 1 < len(named) == len(ranks):
            raise UserError(f"{where}: {len(named)} 'responses', {len(ranks)} 'ranks'; give 2 or more, all ranked")
        if wrong := [rank for rank in ranks if type(rank) is not int or abs(rank) > 10**9]:
            raise UserError(f"{where}: field 'ranks' holds {wrong[0]!r:.40}; a rank is a whole number, 1 for the best")
        preferences = _preferences(record, len(ranks), where) if record.get("preferences") is not None else None
        if record.get("repeat") is True:  # a prompt is one element of a batch, however often it was ranked
            raise _Skip("'repeat' (they measure an annotator's agreement with themselves)")
        if len(set(distinct(responses, ranks)[1])) == 1:
            raise _Skip("all 'ranks' tied" if len(set(ranks)) == 1 else "'responses' of which only equal ones differ in rank")
    else:
        prompt, chosen = _turn(record, "chosen", where, template)
        other, rejected = _turn(record, "rejected", where, template)
        responses, ranks, preferences = [chosen, rejected], [1, 2], None
        if prompt != other:
            raise _Skip("'chosen' and 'rejected' that differ before the last assistant turn")
        if chosen == rejected or not (chosen.strip() and rejected.strip()):
            raise _Skip("'chosen' that equals 'rejected'" if chosen == rejected else "empty 'chosen' or 'rejected'")
    return Ranking(prompt, responses, ranks, where, str(record.get("annotator", "")), preferences)


def _preferences(record: dict, K: int, where: str) -> list[list[float]]:
    """(K, K) with 0 for null. UserError unless [i][j] and [j][i] are chances that add up to 1, or both null."""
    given = _field(record, "preferences", where, list)
    if len(given) != K or any(not isinstance(row, list) or len(row) != K for row in given):
        raise UserError(f"{where}: field 'preferences' must be {K} lists of {K}, one for each response; mend it or take it out")
    for i, j in itertools.combinations(range(K), 2):
        p, q = given[i][j], given[j][i]
        if (p, q) != (None, None) and not (isinstance(p, float | int) and isinstance(q, float | int) and min(p, q) >= 0
                                           and abs(p + q - 1) < 1e-3):
            raise UserError(f"{where}: 'preferences' between responses {i} and {j} are {p!r} and {q!r}; give two chances with "
                            "sum 1, or null twice")
    return [[0.0 if i == j or x is None else float(x) for j, x in enumerate(row)] for i, row in enumerate(given)]


def _prompt(record: dict, where: str, template: str) -> str:
    if isinstance(record.get("prompt"), list):
        segments = _messages(record, "prompt", where)
        if segments[-1][1]:
            raise UserError(f"{where}: field 'prompt' ends with a message of the assistant's; end it with the user's")
        return "".join(text for text, _ in segments)
    if template not in ("chat", "raw"):
        raise UserError(f"--template {template} is unknown; use chat or raw")
    if template == "raw":
        return _field(record, "prompt", where)
    prompt = _filled(record, "prompt", where)
    if HUMAN not in prompt and ASSISTANT not in prompt:
        return f"{HUMAN} {prompt}{ASSISTANT}"
    if prompt.rfind(HUMAN) > prompt.rfind(ASSISTANT):  # the person spoke last: now it is the assistant's turn
        return prompt + ASSISTANT
    return prompt.rstrip() if prompt.rstrip().endswith(ASSISTANT) else prompt


def _response(record: dict, field: str, where: str, prompt: str) -> str:
    """The bare text: in a conversation the space behind "Assistant:" is not the response's."""
    if isinstance(record.get(field), list):
        segments = _messages(record, field, where)
        if len(segments) != 2 or segments[0][0] != ASSISTANT:
            raise UserError(f"{where}: field {field!r} must be a text, or a list of one message, of the assistant's")
        return segments[1][0].removeprefix(" ")
    response = _field(record, field, where)
    return response.removeprefix(" ") if prompt.endswith(ASSISTANT) else response


def _turn(record: dict, field: str, where: str, template: str) -> tuple[str, str]:
    """(prompt, response); without a prompt the field is a whole dialogue, to be cut before its last assistant turn."""
    if "prompt" in record or field == "completion":
        prompt = _prompt(record, where, template)
        return prompt, _response(record, field, where, prompt)
    listed = isinstance(record.get(field), list)
    dialogue = "".join(t for t, _ in _messages(record, field, where)) if listed else _filled(record, field, where)
    before, marker, response = dialogue.rpartition(ASSISTANT)
    if not marker:
        raise UserError(f"{where}: field {field!r} is no dialogue with {ASSISTANT!r}; add a field 'prompt'")
    return before + marker, response.removeprefix(" ")


def _messages(record: dict, field: str, where: str) -> list[Segment]:
    messages = _field(record, field, where, list)
    try:
        return conversation_segments(messages or [{}])  # an empty list is as wrong as an empty message
    except UserError as error:
        raise UserError(f"{where}: field {field!r}: {error}") from None


def _field(record: dict, field: str, where: str, kind: type = str) -> Any:
    if field not in record:
        raise UserError(f"{where}: field {field!r} is missing, there are {list(record)}; add it, or rename one "
                        "(minirlhf/data.py begins with the kinds of records)")
    if not isinstance(record[field], kind):
        raise UserError(f"{where}: field {field!r} must be {_type(kind())}, not {_type(record[field])}; mend it")
    return record[field]


def _filled(record: dict, field: str, where: str) -> str:
    if not _field(record, field, where).strip():
        raise _Skip(f"empty {field!r}")
    return record[field]


def _type(value: Any) -> str:
    return {str: "a text", list: "a list", dict: "an object", type(None): "null"}.get(type(value), "a number or bool")


def held_out(items: list, key: Callable[[Any], Hashable], fraction=0.1, seed=0) -> tuple[list, list]:
    """(train, validation), in order. A hash of key(item), the prompt, decides, so that no prompt is on both sides. With
    two prompts or more neither side is empty, unless the fraction is 0; one alone is trained on."""
    salted = {k: f"{seed}\n{k}".encode("utf-8", "surrogatepass") for k in map(key, items)}
    drawn = {k: int(hashlib.sha256(salt).hexdigest()[:12], 16) / 16**12 for k, salt in salted.items()}
    size = sum(value < fraction for value in drawn.values())
    if fraction > 0 and drawn:
        size = min(max(size, 1), len(drawn) - 1)
    chosen = set(sorted(drawn, key=drawn.get)[:size])
    return [item for item in items if key(item) not in chosen], [item for item in items if key(item) in chosen]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Step's part (they count from 0) of an endless stream of epochs, each a fresh permutation."""
    first = step * batch_size
    return [_permutation(n, seed, at // n)[at % n] for at in range(first, first + batch_size)]


def micro_batches(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Indices of all rows, sorted by length and cut so that rows * longest <= token_budget, or one row alone: where
    padding is least, if a micro-batch is taken to cost as much as budget / 64 tokens of it."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], []  # of the first j rows; where the last of their micro-batches begins
    for end, i in enumerate(order, 1):
        first = max(0, end - max(1, token_budget // max(1, lengths[i])))
        cost, start = min((costs[s] + (end - s) * lengths[i], s) for s in range(first, end))
        costs.append(cost + token_budget // 64)
        starts.append(start)
    batches = []
    while order:
        batches.append(order[starts[len(order) - 1] :])
        del order[starts[len(order) - 1] :]
    return batches


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) right-padded with 0, and the lengths (B,), which alone tell what is padding."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(row) for row in rows])


def fit(rows: list, limit: int, what: str, length: Callable[[Any], int] = len, needed: bool = True) -> list:
    """The rows of at most `limit` tokens; how many others there are is printed. what: "demonstrations". UserError if none
    is left and some are needed."""
    kept = [row for row in rows if length(row) <= limit]
    if rows and not kept and needed:
        raise UserError(f"none of the {what} fits the model's context of {limit} tokens: the shortest has "
                        f"{min(map(length, rows))}; shorten them or take a model with a longer context")
    if over := len(rows) - len(kept):
        print(f"data: {over} of {len(rows)} {what} skipped: longer than the model's context of {limit} tokens")
    return kept


def check(data: str, model: str = "") -> str:
    """What the files hold, for a person to read: counts, lengths, longest, duplicates, whether chosen is longer, examples.
    Lengths are tokens of `model` (a folder, or gpt2), or without one pieces: words, numbers, punctuation."""
    _, first = next(records(data, "demonstrations"), ("", {}))
    places, has = [], first.keys()
    if has & {"chosen", "responses"}:
        kind, read = "rankings", read_rankings(data, places=places)
        texts = [[r.prompt, *r.responses] for r in read]
    elif has & {"completion", "messages", "text"}:
        kind, read = "demonstrations", read_demonstrations(data, places=places)
        texts = [["".join(text for text, _ in segments[:-1]), segments[-1][0]] for segments in read]
    else:
        kind, texts = "prompts", [[prompt, ""] for prompt in read_prompts(data, places=places)]
    encode = Tokenizer.from_pretrained(hub.model_folder(model)).encode if model else regex.compile(PIECE).findall
    sizes = [[len(encode(text)) for text in row] for row in texts]
    lengths = [row[0] + max(row[1:]) for row in sizes]
    count = Counter(max(1, n - 1).bit_length() for n in lengths)
    lines = [f"{data}: {len(texts)} {kind} of {len({row[0] for row in texts})} prompts, {len(texts) - len(set(map(tuple, texts)))} "
             f"duplicates; {'tokens' if model else 'pieces (words, numbers, marks)'} of prompt and longest response:"]
    lines += [f"  up to {2**b:>6} {count[b]:>7} {'#' * round(50 * count[b] / max(count.values()))}" for b in sorted(count)]
    longest = sorted(range(len(texts)), key=lengths.__getitem__)[:-4:-1]
    lines.append("longest: " + "; ".join(f"{lengths[i]} ({places[i]})" for i in longest))
    if kind == "rankings":
        pairs = [(size[i], size[j]) for size, r in zip(([row[1:] for row in sizes]), read)
                 for i, a in enumerate(r.ranks) for j, b in enumerate(r.ranks) if a < b and size[i] != size[j]]
        lines.append(f"the better response is the longer one in {sum(a > b for a, b in pairs) / max(1, len(pairs)):.1%} of "
                     f"{len(pairs)} comparisons of unequal length: a reward model that only counts would be as right")
    for i in sorted({0, len(texts) // 2, len(texts) - 1}):
        lines += [f"\n--- {places[i]}", texts[i][0], *(f">>> {text}" for text in texts[i][1:])]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(check(*sys.argv[1:3]) if len(sys.argv) > 1 else "python -m minirlhf.data FILE [MODEL]: checks a file")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
