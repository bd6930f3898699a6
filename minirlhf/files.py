"""JSON, JSON lines, whole files, locks: everything that the project writes passes through here."""

import atexit
import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from minirlhf import UserError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


MAKERS = {  # what a file or folder is called -> the command that makes one of that name
    "sft": "train_sft.py --out",
    "rm": "train_rm.py --out",
    "ppo": "train_ppo.py --out",
    "dpo": "train_dpo.py --out",
    "candidates.jsonl": "sample.py --data toyworld --samples 4 --candidates_out",
    "rankings.jsonl": "label.py --out",
}
PART = re.compile(r".+\.\d+\.partial")  # what `atomically` calls a file that is not whole yet
LARGEST_FILE = 2**25  # bytes; the largest files that are read whole are tokenizers', some 20 MB


def how_to_make(path: str | Path) -> str:
    """The command that makes a stage's result, by its name; "" for any other name."""
    command = MAKERS.get(Path(path).name)
    return f"python {command} {path}" if command else ""


@contextmanager
def atomically(path: str | Path):
    """Give a temporary path that takes the place of `path` when the block ends.

    A reader sees the old file or the new one, never a part, even after a power cut. After an error
    the old file stays and the temporary one is gone. A full disk is an OSError that names `path`.
    Each process has a temporary path of its own: of two that write a file the last one wins.
    A link stays, and what it leads to is replaced. A file that is replaced keeps its mode.
    """
    target = Path(os.path.realpath(path))
    if is_irregular(target):
        raise UserError(f"{path} is no regular file, so it is not replaced: name another file")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # first: the name must not reach the disk before the content
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a full disk
            raise OSError(None, str(error), str(path)) from error
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def is_irregular(path: Path) -> bool:
    """Whether a folder, a pipe, a device, or a link that leads to itself has this name."""
    return os.path.lexists(path) and not path.is_file()


def delete_parts(folder: Path, pattern: str = "*.partial") -> None:
    """Delete what processes left that were killed while they wrote. Nobody else writes here now."""
    for path in folder.glob(pattern):
        if PART.fullmatch(path.name) and path.is_file():
            path.unlink()


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


def read_small(path: Path) -> bytes:
    """A file's content. UserError for a pipe or a device, which may never end, and for a file
    that is larger than any that we read whole."""
    if not path.is_file():
        raise UserError(f"{path} is no regular file: take an intact copy")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise UserError(f"{path} has {size} bytes, too many for such a file: take an intact copy")
    return path.read_bytes()


def read_json(path: str | Path, **kinds) -> dict:
    """{} if the file does not exist. UserError if it is damaged.

    kinds: types of fields, where they are there, as in settings=dict.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        content = json.loads(read_small(path))
    except (ValueError, RecursionError):
        content = None
    check_fields(path, content, kinds)
    return content


def check_fields(path: Path, content, kinds: dict) -> None:
    """UserError unless the content of a file is an object whose fields are of these types."""
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, no JSON object: restore a copy or delete it")
    for name, kind in kinds.items():
        if name in content and not isinstance(content[name], kind):
            raise UserError(f"{path} is damaged at {name!r}: restore a copy or delete it")


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
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        _write_all(file, content, sync)


def _write_all(file: IO[bytes], content: bytes, sync: bool = False) -> None:
    """Append to an unbuffered file. After an error what was written of `content` is cut off again,
    unless somebody else has written behind it."""
    start = written = 0
    try:
        while written < len(content):
            count = file.write(content[written:])
            if written == 0:
                start = file.tell() - count
            written += count
        if sync:
            os.fsync(file.fileno())
    except BaseException:
        if written and file.seek(0, os.SEEK_END) == start + written:
            file.truncate(start)
        raise


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a file, [] if it does not exist. A last line that a crash cut short is left out.

    UserError names the line of anything else that is no JSON object.
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
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}, line {number}: no JSON object: mend it or delete the line")
    return rows


# ---- folders


def make_folder(folder: Path) -> None:
    """With its parents. Those in which nothing was written are gone when the process ends."""
    folder = folder.absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(_remove_empty, made)


def check_target(flag: str, path: str | Path) -> None:
    """Before long work: UserError if its result cannot be written. Makes the file's folder."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file")
    if is_irregular(target):
        raise UserError(f"{flag} {path} is no regular file, so it is not replaced: name another")
    try:
        make_folder(target.parent)
    except OSError as error:
        raise UserError(f"{flag} {path}: no such folder can be made ({error.strerror})") from None
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{flag} {path}: nothing may be written into that folder")


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # it holds something
        for folder in folders:
            folder.rmdir()


# ---- one writer at a time

_locks: dict[Path, IO[bytes]] = {}  # those that this process holds


def lock_of(path: str | Path) -> str:
    """The file that `lock` takes for a file of the user's. All links to it share the lock."""
    return f"{os.path.realpath(path)}.lock"


def lock(path: str | Path, what: str) -> None:
    """Keep other processes from writing `what`, until `unlock` or the end of this process.

    path: a file beside it, which names the process that has the lock. The operating system forgets
    the locks of a process that was killed. Raises UserError if another process has the lock; asking
    again in the same process is no error.
    """
    path = Path(path).resolve()
    if path in _locks:
        return
    file = path.open("a+b", buffering=0)
    if not _take(file):
        file.seek(0)
        owner = file.read(20).decode("ascii", "replace") or "another one"
        raise UserError(
            f"{what} is being written by process {owner}: wait until it has ended, or choose "
            "another --out"
        )
    if os.fstat(file.fileno()).st_nlink == 0:  # its last owner has just deleted it
        file.close()
        return lock(path, what)
    _locks[path] = file
    atexit.register(unlock, path)
    with suppress(OSError):  # on a full disk the lock holds without the number
        file.truncate(0)
        file.write(str(os.getpid()).encode())


def unlock(path: str | Path) -> None:
    file = _locks.pop(Path(path).resolve(), None)
    if file is None:
        return
    with suppress(OSError):  # Windows deletes no open file
        os.unlink(file.name)
    file.close()


def _take(file: IO[bytes]) -> bool:
    """Lock an open file for this process. False if another process has it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(2**20)  # behind the content, which stays readable
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        pass
    return True
