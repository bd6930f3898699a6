"""Files -> raw records with the places they came from: .jsonl, .json, .txt (also .gz), .parquet."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from minirlhf import UserError

Place = str  # "file.jsonl, line 17"

ENDINGS = (".jsonl", ".json", ".txt", ".parquet")
LONGEST_LINE = 2**26  # bytes of one record
LONGEST_FILE = 2**30  # bytes of a file that is read whole
# A .gz file that unpacks to more bytes than this, and to more times its own size, is no data.
BOMB_BYTES, BOMB_RATIO = 2**28, 200


def read_file(name: str) -> Iterator[tuple[Place, Any]]:
    """Records of one file. UserError says which file and line cannot be read, and what to do."""
    ending = Path(name.removesuffix(".gz")).suffix
    try:
        if ending == ".parquet":
            yield from read_parquet(name)
        elif ending == ".jsonl":
            yield from read_lines(name)
        elif ending == ".json":
            yield from read_list(name)
        elif ending == ".txt":
            yield name, {"text": read_whole(name)}
        else:
            raise UserError(
                f"--data {name}: use a file named {', '.join(ENDINGS)} (or .gz of these), a "
                "world such as toyworld, or a published data set's name (see minirlhf/hub.py)"
            )
    except (OSError, EOFError, zlib.error) as error:  # missing, or not an intact gzip file
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--data {name}: {reason}; check the file's name and content") from None


def read_lines(name: str) -> Iterator[tuple[Place, Any]]:
    """A record a line. Lines end at \\n alone: a text may hold \\r and U+2028."""
    unpacked = 0
    with open_binary(name) as file:
        for number in range(1, 2**62):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            place = f"{name}, line {number}"
            unpacked += len(line)
            check_size(name, place, len(line), unpacked, LONGEST_LINE)
            text = decode(line, place)
            if text.strip():
                yield place, parse_json(text, place)


def read_list(name: str) -> Iterator[tuple[Place, Any]]:
    """One JSON list of records."""
    records = parse_json(read_whole(name), name)
    if not isinstance(records, list):
        raise UserError(f"{name} must hold a list of records; name it .jsonl if it has one a line")
    for number, record in enumerate(records, 1):
        yield f"{name}, record {number}", record


def read_parquet(name: str) -> Iterator[tuple[Place, Any]]:
    try:
        from pyarrow import lib, parquet  # not a dependency of this project
    except ImportError:
        raise UserError(
            f"--data {name}: reading .parquet needs pyarrow: pip install pyarrow, or save as .jsonl"
        ) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(name).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{name}, record {number}", record
    except (lib.ArrowException, ValueError) as error:
        raise UserError(f"{name}: not a valid Parquet file ({error}); use an intact copy") from None


def open_binary(name: str) -> IO[bytes]:
    return gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb")


def read_whole(name: str) -> str:
    with open_binary(name) as file:
        content = file.read(LONGEST_FILE + 1)
    check_size(name, name, len(content), len(content), LONGEST_FILE)
    return decode(content, name)


def check_size(name: str, place: Place, size: int, unpacked: int, most: int) -> None:
    if size > most:
        raise UserError(f"{place}: more than {most} bytes at once; divide it")
    if unpacked > max(BOMB_BYTES, BOMB_RATIO * Path(name).stat().st_size):
        raise UserError(f"{place}: unpacks to {BOMB_RATIO} times the file's size; do not trust it")


def decode(content: bytes, place: Place) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise UserError(
            f"{place}: not UTF-8 but {encoding} ({error.reason}); save the file as UTF-8"
        ) from None


def parse_json(text: str, place: Place) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        near = error.doc[error.pos :][:20]
        raise UserError(
            f"{place}: not valid JSON ({error.msg} at {near!r}); a .jsonl file has one object on "
            "each line, a .json file is one list of objects"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5 000 digits, very deep nesting
        raise UserError(f"{place}: not valid JSON ({error}); mend it") from None
    if "\\ud" in text.lower():  # perhaps half of a character, written as an escape
        return without_surrogates(value)
    return value


def without_surrogates(value: Any) -> Any:
    """Lone surrogates, which no UTF-8 file can hold, become U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(k): without_surrogates(v) for k, v in value.items()}
    return value
