"""Files -> raw records with the places they came from.

JSON lines, JSON lists, tables (.csv, .tsv), plain text (.txt) and .parquet, also packed as .gz,
.bz2 or .xz. A name is a file, a folder, a pattern such as "data/*.jsonl", or - for standard input.
"""

import bz2
import csv
import functools
import glob
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from minirlhf import UserError

Place = str  # "file.jsonl, line 17"

UNPACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_LINE = 2**26  # bytes of one record
LONGEST_FILE = 2**30  # bytes of a file that is read whole
# A packed file that unpacks to more bytes than this, and to more times its own size, is no data.
BOMB_BYTES, BOMB_RATIO = 2**28, 200
WRAPPERS = ("data", "train", "records", "rows", "examples")  # fields that hold a list of records
LISTS = ("messages", "conversations", "responses", "ranks", "scores", "history")  # in a table
HEADERS = {"prompt", "completion", "chosen", "rejected", "response", "label", "text", "instruction"}
HEADERS |= {"output", "input", "question", "answer", "responses", "ranks", "messages"}


def read(name: str) -> Iterator[tuple[Place, Any]]:
    """Records of a file, or of all files of a folder or a pattern, in the order of their names."""
    for path in files(name):
        yield from read_file(path)


def files(name: str) -> list[str]:
    path = Path(name)
    if any(sign in name for sign in "*?[") and not path.exists():
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            raise UserError(f"--data {name}: no file has such a name")
        return found
    if not path.is_dir():
        return [name]
    inside = sorted(path.iterdir())
    if any(file.suffix == ".arrow" or file.name == "dataset_dict.json" for file in inside):
        raise UserError(
            f"--data {name}: a folder of datasets' save_to_disk; convert it: "
            + convert_line(f"load_from_disk({name!r})", path.name)
        )
    if Path(path, "config.json").exists():
        raise UserError(f"--data {name}: a model's folder, not data")
    found = [str(file) for file in inside if ending_of(file.name) in READERS]
    if not found:
        raise UserError(f"--data {name}: no file in it ends with one of {', '.join(READERS)}")
    return found


def convert_line(load: str, name: str) -> str:
    """The command that writes what Hugging Face's datasets library loads as JSON lines."""
    return f"python -c \"from datasets import *; {load}.to_json('{name}.jsonl')\""


def ending_of(name: str) -> str:
    """Of the file inside, where it is packed."""
    path = Path(name)
    if path.suffix in UNPACK:
        path = path.with_suffix("")
    return path.suffix


def read_file(name: str) -> Iterator[tuple[Place, Any]]:
    """Records of one file. UserError says which file and line cannot be read, and what to do."""
    reader = read_json if name == "-" else READERS.get(ending_of(name))
    if reader is None:
        raise UserError(f"--data {name}: {remedy(name)}")
    try:
        yield from reader(name)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # missing, or not intact
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--data {name}: {reason}; check the file's name and content") from None


def remedy(name: str) -> str:
    """What to do with a name that none of READERS takes."""
    path = Path(name)
    if path.suffix == ".zst":
        return f"unpack it first: zstd -d {name}"
    if path.suffix == ".arrow":
        return "convert it: " + convert_line(f"Dataset.from_file({name!r})", path.stem)
    if name.count("/") == 1 and not path.suffix and not path.parent.exists():
        return (
            "no such file; if it is a data set of the Hugging Face hub, convert it: "
            + convert_line(f"load_dataset({name!r}, split='train')", path.name)
        )
    return (
        f"use a file named {', '.join(READERS)} (or packed: {', '.join(UNPACK)}), a world such as "
        "toyworld, or a published data set's name (see minirlhf/hub.py)"
    )


# ---------------------------------------------------------------------- JSON


def read_json(name: str) -> Iterator[tuple[Place, Any]]:
    """A record a line, or one list of records, whichever the file holds."""
    with open_binary(name) as file:
        first = next((line for line in lines(file, name) if line.strip()), b"")
    if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        return read_list(name)
    try:
        json.loads(first.decode("utf-8-sig"))
    except json.JSONDecodeError:  # perhaps one object over several lines
        if first.rstrip().endswith((b"{", b",")):
            return read_list(name)
    except (ValueError, RecursionError):
        pass  # read_lines says what is wrong
    return read_lines(name)


def lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines end at \\n alone: a text may hold \\r and U+2028."""
    unpacked = 0
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        unpacked += len(line)
        check_size(name, f"{name}, line {number}", len(line), unpacked, LONGEST_LINE)
        yield line


def read_lines(name: str) -> Iterator[tuple[Place, Any]]:
    with open_binary(name) as file:
        for number, line in enumerate(lines(file, name), 1):
            place = f"{name}, line {number}"
            text = decode(line, place)
            if not text.strip():
                continue
            record = parse_json(text, place)
            yield from unwrap(record, place) or [(place, record)]


def read_list(name: str) -> Iterator[tuple[Place, Any]]:
    value = parse_json(read_whole(name), name)
    if isinstance(value, list):
        value = {"data": value}
    yield from unwrap(value, name) or [(name, value)]


def unwrap(value: Any, place: Place) -> list[tuple[Place, Any]] | None:
    """Records of a list inside an object, such as {"version": 1, "data": [...]}; None: no such."""
    if not isinstance(value, dict):
        return None
    for field in WRAPPERS:
        if isinstance(value.get(field), list):
            records = value[field]
            return [(f"{place}, record {i}", record) for i, record in enumerate(records, 1)]
    return None


def parse_json(text: str, place: Place) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        near = error.doc[error.pos :][:20]
        raise UserError(
            f"{place}: not valid JSON ({error.msg} at {near!r}); a file holds one object on each "
            "line, or one list of objects"
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


# ---------------------------------------------------------------------- tables and texts


def read_table(name: str) -> Iterator[tuple[Place, Any]]:
    """Rows of comma- or tab-separated values under a header, as RFC 4180 has them."""
    text = read_whole(name)
    first = text.partition("\n")[0]
    delimiter = max(",\t;", key=first.count)
    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = []
    try:
        for row in rows:
            place = f"{name}, line {rows.line_num}"
            if not row:
                continue
            if not header:
                header = [cell.strip() for cell in row]
                if len(set(header)) < len(header):
                    raise UserError(f"{place}: two columns have one name; rename one")
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{place}: {len(row)} cells under {len(header)} column names; put texts with "
                    f"{delimiter!r} or line breaks into double quotes"
                )
            yield place, {field: from_cell(field, cell) for field, cell in zip(header, row)}
    except csv.Error as error:
        raise UserError(f"{name}, line {rows.line_num}: {error}; mend the quotes") from None


def from_cell(field: str, cell: str) -> Any:
    """A list that was written into a table as JSON is a list again."""
    if field in LISTS or cell.startswith('[{"'):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, list) else cell
    return cell


def read_text(name: str) -> Iterator[tuple[Place, Any]]:
    """One text. Records that are only named .txt are read as what they are."""
    text = read_whole(name)
    first = text.lstrip().partition("\n")[0]
    if first.startswith('{"') and first.rstrip().endswith("}"):
        return read_json(name)
    columns = {cell.strip() for cell in first.replace("\t", ",").split(",")}
    if len(columns) > 1 and columns & HEADERS and all(map(str.isidentifier, columns)):
        return read_table(name)
    return iter([(name, {"text": text})])


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


READERS = {
    ".jsonl": read_json,
    ".json": read_json,
    ".ndjson": read_json,
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_text,
    ".parquet": read_parquet,
}


# ---------------------------------------------------------------------- bytes


def open_binary(name: str) -> IO[bytes]:
    if name == "-":
        return io.BytesIO(standard_input())
    return UNPACK.get(Path(name).suffix, open)(name, "rb")


@functools.cache
def standard_input() -> bytes:
    return sys.stdin.buffer.read(LONGEST_FILE + 1)


def read_whole(name: str) -> str:
    with open_binary(name) as file:
        content = file.read(LONGEST_FILE + 1)
    check_size(name, name, len(content), len(content), LONGEST_FILE)
    return decode(content, name)


def check_size(name: str, place: Place, size: int, unpacked: int, most: int) -> None:
    if size > most:
        raise UserError(f"{place}: more than {most} bytes at once; divide it")
    packed = Path(name).suffix in UNPACK
    if packed and unpacked > max(BOMB_BYTES, BOMB_RATIO * Path(name).stat().st_size):
        raise UserError(f"{place}: unpacks to {BOMB_RATIO} times the file's size; do not trust it")


def decode(content: bytes, place: Place) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "another encoding"
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "UTF-16"
        raise UserError(
            f"{place}: not UTF-8 but {encoding} ({error.reason}); save the file as UTF-8"
        ) from None
