"""minirlhf: the whole of RLHF on one GPU, or on a laptop without one."""
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


class UserError(Exception):
    """An input that its user can mend: the message says what is wrong, where, and what to do. Scripts exit with code 2."""


@contextmanager
def atomically(path: Path):
    """Gives the name of a file to write, which then becomes `path`: a reader sees the old file or the new one, never half of
    either, also after a power cut. Where that fails nothing is left behind."""
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        with temporary.open("r+b") as f:
            os.fsync(f.fileno())                      # before the renaming: the name may reach the disk before the content
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):      # a full disk's names no file, safetensors' own is no OSError
            raise OSError(getattr(error, "errno", None), getattr(error, "strerror", None) or str(error), str(path)) from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    with atomically(path) as temporary:
        temporary.write_bytes(content)
