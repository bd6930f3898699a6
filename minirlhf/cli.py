"""A dataclass of settings is a script's command line: one flag per field, its comment the help, its default the default."""
import argparse
import inspect
import math
import re
import shlex
import sys
from dataclasses import fields
from typing import Any

from minirlhf import UserError


def comments(settings_class: type) -> dict[str, str]:
    """Field name -> the comment behind it in the source."""
    found = {}
    for line in inspect.getsource(settings_class).splitlines():
        if match := re.match(r"\s+(\w+): [^#]*#\s*(.*)", line):
            found[match[1]] = match[2]
    return found


def parse(settings_class: type, argv: list[str] | None = None) -> Any:
    """Command line -> settings. Booleans are --flag and --no-flag. A whole number may be 0 only where that is the default or its
    comment says what 0 means; else, and for a float that is none, UserError."""
    module = sys.modules[settings_class.__module__]
    about = (module.__doc__ or "").strip()
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_texts = comments(settings_class)
    for field in fields(settings_class):
        text = f"{help_texts.get(field.name, '')} (default: {field.default!r})".replace("%", "%%")
        if field.type in (bool, "bool"):
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            kind = {"int": int, "float": float}.get(getattr(field.type, "__name__", field.type), str)
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, metavar=kind.__name__.upper(), help=text)
    settings = settings_class(**vars(parser.parse_args(argv)))
    for field in fields(settings_class):
        value, default, says = getattr(settings, field.name), field.default, help_texts.get(field.name, "")
        if type(value) is int and field.name != "seed" and value < (0 if default == 0 or re.search(r"\b0\b", says) else 1):
            raise UserError(f"--{field.name} {value}: too small ({says})")
        if type(value) is float and not (math.isfinite(value) and (value >= 0 or default < 0)):
            raise UserError(f"--{field.name} {value}: must be a number{'' if default < 0 else ', 0 or more'} ({says})")
    return settings


def command(script: str, settings: Any) -> str:
    """The command line that would start `script` with these settings: what differs from the defaults."""
    words = ["python", script]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            words += [f"--{'' if value else 'no-'}{field.name}"] if isinstance(value, bool) else [f"--{field.name}", str(value)]
    return shlex.join(words)


def start(main, settings_class: type) -> None:
    """Runs main(settings) as a script: a UserError, no memory, no room on the disk: one sentence, exit code 2; Ctrl-C: 130."""
    for stream in (sys.stdout, sys.stderr):                    # a console that has no sign for a sample's letter stops no run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main(settings := parse(settings_class))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:                                   # a full disk, a folder that is read-only
        where = error.filename or getattr(settings, "out", "a file")
        print(f"error: {where}: {error.strerror or error}: make room on that disk, or choose a place that you may write; what was "
              "whole is whole, and the same command" + " with --resume" * hasattr(settings, "resume") + " goes on", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:               # torch's own are RuntimeErrors
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory|not enough memory", str(error)):
            raise
        lower = {"token_budget": "half the --token_budget", "checkpointing": "--checkpointing", "max_tokens": "fewer --max_tokens",
                 "dtype": "--dtype bfloat16", "init": "a smaller --init", "resume": "--resume to go on from the last checkpoint"}
        advice = ", ".join(words for name, words in lower.items() if hasattr(settings, name))
        print(f"error: out of memory ({' '.join(str(error).split())[:120]}): take {advice}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
