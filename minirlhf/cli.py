"""A dataclass of settings is a script's command line: a flag per field, its comment the help."""

import argparse
import difflib
import inspect
import io
import os
import re
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal

from minirlhf import UserError

LARGEST_INT = 2**53
SMALLEST, LARGEST = 1e-30, 1e30  # what float32 computes with, and room for products
# Control characters but for line breaks and tabs; what reorders a line; halves of characters
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HEADING = re.compile(r"\s+# (.+)")
FIELD = re.compile(r"\s+(\w+): [^#]*#\s*(.*)")
OUT_OF_MEMORY = re.compile("out of memory|allocate memory|not enough memory")
LESS_MEMORY = ("token_budget", "checkpointing", "max_tokens", "dtype", "init")


def printable(text: str) -> str:
    """A text from a model, a file or a server, for the terminal, which it can no longer steer."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str, width: int = 0) -> str:
    """A printable text on one line, cut to `width` columns unless that is 0."""
    text = printable(" ".join(text.split()))
    return text[: width - 1] + "…" if 0 < width < len(text) else text


def terminal_width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def wrapped(text: str, indent: int = 0) -> str:
    """A text in lines that the terminal need not break; all but the first are indented."""
    return textwrap.fill(text, terminal_width(), subsequent_indent=" " * indent)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def comments(settings_class: type) -> dict[str, tuple[str, str]]:
    """Field -> (heading above it, comment after it), both read from the source."""
    heading = "options"
    notes = {}
    for line in inspect.getsource(settings_class).splitlines():
        if match := HEADING.fullmatch(line):
            heading = match[1]
        elif match := FIELD.fullmatch(line):
            notes[match[1]] = heading, match[2]
    return notes


def _make_parser(settings_class: type) -> _Parser:
    parser = _Parser(
        usage="python %(prog)s [--flag value ...]",
        description=sys.modules[settings_class.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    types = typing.get_type_hints(settings_class)
    notes = comments(settings_class)
    groups = {}
    for field in fields(settings_class):
        heading, note = notes.get(field.name, ("options", ""))
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        kind = types[field.name]
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif typing.get_origin(kind) is Literal:
            options = {"choices": typing.get_args(kind)}
        else:
            options = {"type": kind, "metavar": kind.__name__.upper()}
        text = f"{note} (default: {field.default!r})".replace("%", "%%")
        groups[heading].add_argument(f"--{field.name}", default=field.default, help=text, **options)
    return parser


def parse(settings_class: type, argv: list[str] | None = None) -> Any:
    """Command line -> settings. UserError for an unknown flag and for a value that cannot be.

    Booleans are --flag and --no-flag. Numbers are not negative unless the default is.
    """
    values, unknown = _make_parser(settings_class).parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [
            f"{sign}{field.name}" for sign in ("--", "--no-") for field in fields(settings_class)
        ]
        similar = difflib.get_close_matches(flag, known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "see --help"
        raise UserError(f"{flag}: no such flag; {hint}")
    settings = settings_class(**vars(values))
    for field in fields(settings_class):
        _check_number(field.name, getattr(settings, field.name), field.default)
    return settings


def _check_number(name: str, value: Any, default: Any) -> None:
    if isinstance(value, float) and value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        raise UserError(f"--{name} {value}: must be 0, or from {SMALLEST:g} to {LARGEST:g} in size")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise UserError(f"--{name} {value}: must be at most {LARGEST_INT}")
    if isinstance(value, int | float) and value < 0 <= default:
        raise UserError(f"--{name} {value}: must be 0 or more")


def at_least(minimum: float, settings: Any, *names: str) -> None:
    """UserError if one of these settings is below the minimum."""
    for name in names:
        value = getattr(settings, name)
        if value < minimum:
            raise UserError(f"--{name} {value}: must be {minimum} or more")


def numbers(text: str) -> list[float]:
    """Those of "0.7,0.3"; [] if it holds anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def command(script: str, settings: Any) -> str:
    """The command line that starts a script with these settings; defaults are left out."""
    words = ["python", script]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        if value is True:
            words.append(f"--{field.name}")
        elif value is False:
            words.append(f"--no-{field.name}")
        else:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)


def _explain(error: Exception, settings: Any) -> str:
    """What to tell the user; "" for a bug, whose traceback is wanted."""
    if isinstance(error, OSError):
        place = error.filename or getattr(settings, "out", "the output")
        remedy = "make room there or choose another folder"
        if isinstance(error, FileNotFoundError):
            remedy = "check the name"
        message = f"{place}: {error.strerror or error}: {remedy}"
    elif isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):  # torch has no class
        flags = [f"--{name}" for name in LESS_MEMORY if hasattr(settings, name)]
        first_line = str(error).partition("\n")[0]
        message = f"out of memory; use less with {', '.join(flags)} ({first_line})"
    elif "overflow" in str(error):
        message = f"a number that was given is too large ({str(error)[:99]})"
    else:
        return ""
    if hasattr(settings, "resume"):
        message += "; your last checkpoint is safe, --resume continues from it"
    return message


@contextmanager
def exit_codes() -> Iterator[None]:
    """Around a script's work: 2 and one sentence for what the user can mend, 130 for Ctrl-C.

    Output into head, which closes it when it has seen enough, is no error.
    """
    prepare_streams()
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        drop_output()
        sys.exit(0)
    except (UserError, OSError) as error:
        message = str(error) if isinstance(error, UserError) else _explain(error, None)
        line = printable(message).replace("\n", "\\n")
        print(f"error: {line}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it goes to the full disk
            drop_output()
        sys.exit(2)


def drop_output() -> None:
    """What is still to be printed goes nowhere, and is no error when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prepare_streams() -> None:
    """So that no letter, and no stream that the shell has closed, stops a script."""
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BytesIO())
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # some consoles lack a sample's letters
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a stray byte is no reason to stop


def start(
    main: Callable, settings_class: type, then: Callable[[Any], list[str]] | None = None
) -> None:
    """Run main(settings) as a script, with the exit codes of `exit_codes`.

    then: settings -> the words of a command that goes on from there; it is printed at the end.
    """
    settings = None
    with exit_codes():
        try:
            settings = parse(settings_class)
            main(settings)
        except UserError:
            raise
        except BrokenPipeError:
            if hasattr(settings, "resume"):
                drop_output()
                raise UserError("nobody reads the output: --resume goes on") from None
            raise
        except Exception as error:
            if message := _explain(error, settings):
                raise UserError(message) from error
            raise
        if then and not settings.show_batch:
            print(f"next: {shlex.join(then(settings))}")
