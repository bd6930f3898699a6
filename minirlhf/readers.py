"""Files -> raw records with the places they came from.

JSON lines, JSON lists, tables (.csv, .tsv), plain text (.txt) and .parquet, also packed as .gz,
.bz2 or .xz. A name is a file, a folder, a pattern such as "data/*.jsonl", or - for standard input.
JSON and tables are known by their first line, whatever their name.
"""

import bz2
import csv
import functools
import glob
import gzip
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from minirlhf import UserError
from minirlhf.files import how_to_make

Place = str  # "file.jsonl, line 17"

UNPACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_LINE = 2**26  # bytes of one record
LONGEST_FILE = 2**30  # bytes of a file that is read whole
# A packed file that unpacks to more bytes than this, and to more times its own size, is no data.
BOMB_BYTES, BOMB_RATIO = 2**28, 200
WRAPPERS = ("data", "train", "records", "rows", "examples")  # fields that hold a list of records
HEADERS = {"prompt", "completion", "chosen", "rejected", "response", "label", "text", "instruction"}
HEADERS |= {"output", "input", "question", "answer", "responses", "ranks", "messages"}
HEADERS |= {"conversations", "scores"}
DELIMITERS = ",\t;"
COLUMN = re.compile(r"[\w.-]*")  # a column's name
MESSAGES = re.compile(r"""\[\s*{\s*['"](role|content|from|value)['"]\s*:""")  # how a list begins
NOT_DATA = ("README", "LICENSE", "DATASET_INFO")  # files of a folder
OTHER_ENDINGS = (".zst", ".arrow", ".zip")  # of data that is refused, never passed over


def names(data: str) -> list[str]:
    """What --data names. A path that exists is one name, even with a comma in it."""
    if os.path.exists(data):
        return [data]
    return [name.strip() for name in data.split(",")]


def read(name: str) -> Iterator[tuple[Place, Any]]:
    """Records of a file, or of all files of a folder or a pattern, in the order of their names."""
    for path in files(name):
        yield from read_file(path)


def files(name: str) -> list[str]:
    path = Path(name)
    if any(sign in name for sign in "*?[") and not path.exists():
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            raise UserError(f"{name}: no file has such a name")
        return found
    if not path.is_dir():
        return [name]
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    kinds = {file.name for file in inside} | {file.suffix for file in inside}
    if "dataset_dict.json" in kinds:
        load = f"load_from_disk({name!r})['train']"
        raise UserError(f"{name}: {saved(load, path.name)}")
    if ".arrow" in kinds:
        raise UserError(f"{name}: {saved(f'load_from_disk({name!r})', path.name)}")
    if "config.json" in kinds:
        raise UserError(f"{name}: a model's folder, not data")
    endings = (*READERS, *OTHER_ENDINGS)
    found = [str(file) for file in inside if ending_of(file.name) in endings]
    found = [file for file in found if not Path(file).stem.upper().startswith(NOT_DATA)]
    if not found:
        raise UserError(f"{name}: no file in it ends with one of {', '.join(READERS)}")
    return found


def saved(load: str, name: str) -> str:
    return f"a folder of datasets' save_to_disk; convert it: {convert_line(load, name)}"


def convert_line(load: str, name: str) -> str:
    """The command that writes what Hugging Face's datasets library loads as JSON lines."""
    return f"python -c \"from datasets import *; {load}.to_json('{name}.jsonl')\""


def ending_of(name: str) -> str:
    """Of the file inside, where it is packed."""
    path = Path(name.lower())
    if path.suffix in UNPACK:
        path = path.with_suffix("")
    return path.suffix


def read_file(name: str) -> Iterator[tuple[Place, Any]]:
    """Records of one file. UserError says which file and line cannot be read, and what to do."""
    reader = read_json if name == "-" else READERS.get(ending_of(name))
    if reader is None:
        raise UserError(f"{name}: {remedy(name)}")
    if os.path.exists(name) and not os.path.isfile(name):  # a pipe can be read once only
        raise UserError(f"{name}: no regular file; give standard input the data, as -")
    try:
        if reader is not read_parquet:
            reader = reader_for(first_line(name), name, reader)
        yield from reader(name)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # missing, or not intact
        reason = getattr(error, "strerror", None) or error
        advice = "check the file's name and content"
        if isinstance(error, FileNotFoundError) and (command := how_to_make(name)):
            advice = f"`{command}` makes it"
        raise UserError(f"{name}: {reason}; {advice}") from None


def reader_for(first: str, name: str, reader: Callable) -> Callable:
    """The reader for a file with this first line; `reader`, if that does not decide it."""
    may_be_json = reader is not read_json and first.startswith(("{", "["))
    if may_be_json and (is_json(first) or is_json(read_whole(name))):
        return read_json
    for delimiter in DELIMITERS:
        columns = {cell.strip(' "') for cell in first.split(delimiter)}
        if len(columns) > 1 and columns & HEADERS and all(map(COLUMN.fullmatch, columns)):
            return read_table
    return reader


def is_json(text: str) -> bool:
    """Whether it is an object, or a list of objects."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or is_list_of_objects(value)


def is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def first_line(name: str) -> str:
    """The first line with something in it, without the blanks around it."""
    with open_binary(name) as file:
        while line := file.readline(LONGEST_LINE):
            if line.strip():
                return line.decode("utf-8-sig", "replace").strip()
    return ""


def remedy(name: str) -> str:
    """What to do with a name that none of READERS takes."""
    path = Path(name)
    if path.suffix == ".zst":
        return f"unpack it first: zstd -d {name}"
    if path.suffix == ".zip":
        return f"unpack it first: unzip {name}"
    if path.suffix == ".arrow":
        return "convert it: " + convert_line(f"Dataset.from_file({name!r})", path.stem)
    if name.count("/") == 1 and not path.parent.exists():
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
    """A record a line, or one value over all lines, whichever the file holds."""
    first = first_line(name)
    over_lines = first.endswith(("{", "[", ",")) and not is_json(first)
    if first.startswith("[") or over_lines:
        return read_value(name)
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
        yield from lines_of_json(file, name)


def lines_of_json(file: IO[bytes], name: str) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(lines(file, name), 1):
        place = f"{name}, line {number}"
        text = decode(line, name, number)
        if not text.strip():
            continue
        record = parse_json(text, place)
        yield from unwrap(record, place) or [(place, record)]


def read_value(name: str) -> Iterator[tuple[Place, Any]]:
    value = parse_json(read_whole(name), name)
    if isinstance(value, list):
        return numbered(value, name)
    return unwrap(value, name) or iter([(name, value)])


def numbered(records: list, place: Place) -> Iterator[tuple[Place, Any]]:
    for number, record in enumerate(records, 1):
        yield f"{place}, record {number}", record


def unwrap(value: Any, place: Place) -> Iterator[tuple[Place, Any]] | None:
    """Records of a list inside an object, such as {"version": 1, "data": [...]}; None: no such."""
    if not isinstance(value, dict) or value.keys() & HEADERS:
        return None
    found = [field for field in WRAPPERS if is_list_of_objects(value.get(field))]
    if len(found) > 1:
        raise UserError(f"{place}: records in {' and '.join(found)}; keep one list in a file")
    return numbered(value[found[0]], place) if found else None


def parse_json(text: str, place: Place) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=without_repeats)
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


def without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in an object")
    return record


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
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = []
    begin = 1  # of the row that is read
    try:
        for row in rows:
            place = f"{name}, line {begin}"
            begin = rows.line_num + 1
            if not row:
                continue
            if not header:
                header = [cell.strip() or f"column {i}" for i, cell in enumerate(row, 1)]
                if len(set(header)) < len(header):
                    raise UserError(f"{place}: two columns have one name; rename one")
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{place}: {len(row)} cells under {len(header)} column names; put texts with "
                    f"{delimiter!r} or line breaks into double quotes"
                )
            yield place, {field: from_cell(cell, place) for field, cell in zip(header, row)}
    except csv.Error as error:
        raise UserError(f"{name}, line {begin}: {error}; mend the quotes") from None


def from_cell(cell: str, place: Place) -> Any:
    """An empty cell is null; messages that were written as JSON are messages again."""
    if not cell:
        return None
    if not MESSAGES.match(cell):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise UserError(
            f"{place}: messages that are no JSON, {cell!r:.40}; write them with json.dumps"
        ) from None


def read_text(name: str) -> Iterator[tuple[Place, Any]]:
    return iter([(name, {"text": read_whole(name)})])


def read_parquet(name: str) -> Iterator[tuple[Place, Any]]:
    try:
        from pyarrow import lib, parquet  # not a dependency of this project
    except ImportError:
        raise UserError(
            f"{name}: reading .parquet needs pyarrow: pip install pyarrow, or save as .jsonl"
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
    return UNPACK.get(Path(name.lower()).suffix, open)(name, "rb")


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
    if unpacked <= BOMB_BYTES or Path(name.lower()).suffix not in UNPACK:
        return
    if unpacked > BOMB_RATIO * Path(name).stat().st_size:
        raise UserError(f"{place}: unpacks to {BOMB_RATIO} times the file's size; do not trust it")


def decode(content: bytes, name: str, line: int = 1) -> str:
    """line: the number of the content's first line"""
    is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:2]
    encoding = "UTF-16" if is_wide else "another encoding, perhaps Latin-1"
    try:
        if not is_wide:
            return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
    raise UserError(f"{name}, line {line}: not UTF-8 but {encoding}; save the file as UTF-8")
