"""JSON, JSON lines and whole files: everything that the project writes passes through here."""

import json
import math
import os
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from minirlhf import UserError


@contextmanager
def atomically(path: str | Path):
    """Give a temporary path that takes the place of `path` when the block ends.

    A reader sees the old file or the new one, never a part, even after a power cut. After an error
    the old file stays and the temporary one is gone. A full disk is an OSError that names `path`.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # first: the name must not reach the disk before the content
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a full disk
            raise OSError(None, str(error), str(path)) from error
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_atomically(path: str | Path, content: bytes) -> None:
    with atomically(path) as temporary:
        temporary.write_bytes(content)


def _without_nan(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def to_json(value, **options) -> str:
    """JSON that every reader accepts: NaN and infinity become null, lone surrogates are escaped.

    options: those of json.dumps.
    """
    text = json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, **options)
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(path: str | Path, value) -> None:
    write_atomically(path, to_json(value, indent=1).encode())


def read_json(path: str | Path) -> dict:
    """{} if the file does not exist, UserError if it is damaged."""
    path = Path(path)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, no JSON object: restore a copy or delete it")
    return content


def _lines(rows: Iterable[dict]) -> bytes:
    return "".join(to_json(row) + "\n" for row in rows).encode()


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    write_atomically(path, _lines(rows))


def append_jsonl(path: str | Path, rows: Iterable[dict], sync: bool = False) -> None:
    """Add rows at the end of a file: all of them or, on a full disk (OSError), none.

    Bytes that are there already are never touched: where the last line has no end, it gets one.
    sync: return when the rows are on the disk.
    """
    content = _lines(rows)
    with Path(path).open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        try:
            while content:
                written = file.write(content)
                content = content[written:]
            if sync:
                os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a file, [] if it does not exist. A last line that a crash cut short is left out.

    UserError names the line of anything else that is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not JSON ({error}): mend it") from None
    return rows
