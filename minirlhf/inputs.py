"""What a run was made from: its settings, and what the files and folders that they name hold.

`--resume` compares both. An input is known by its content, not by its name, place or age, so that
folders may be moved and copied.

    pairs.jsonl, pairs/  whole files; "-": standard input
    out/sft              config.json, the tokenizer's files, samples of the weights
    my.py:score, my.py   the file, but not what it imports
    toyworld             the module, with the other files of its package
    gpt2, owner/name     a model on the Hugging Face hub: its files in the cache
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from minirlhf import UserError, checkpoint, hub, readers, tokenizer_files, user_function, world

# settings that name what is read; commas separate several
INPUTS = (
    "init",
    "reference",
    "normalize_on",
    "policies",
    "baseline",
    "reward",
    "gold",
    "watch",
    "judge",
    "data",
    "ptx_data",
    "candidates",
    "annotator",
    "constitution",
)
WORDS = ("person", "ai", "auto", "gold", "reward")  # values of settings that name no file
MODEL_FILES = ("config.json", "generation_config.json", *tokenizer_files.NAMES)
PIECE = 2**18  # bytes
PIECES = 64  # of a file of weights; the first one holds the checksum of those that we wrote


def parts(value: str) -> list[str]:
    """What a setting names."""
    return [name for name in readers.names(value) if name]


def fingerprints(settings: Any) -> dict[str, str]:
    """Flag -> fingerprint of its content, for the inputs among the settings."""
    flags = [flag for flag in INPUTS if getattr(settings, flag, "")]
    return {flag: fingerprint(getattr(settings, flag)) for flag in flags}


def fingerprint(value: str) -> str:
    """16 hexadecimal digits that change with the content. What has no files here (a URL, a
    published data set, the word "person") is known by its name.
    """
    digest = hashlib.sha256()
    for name in parts(value):
        try:
            contents = [content_digest(path) for path in files_of(name)]
        except UserError:  # whoever opens it says what is wrong
            contents = []
        if name == "-":
            contents = [readers.standard_input()]
        if not contents:
            contents = [name.encode("utf-8", "surrogateescape")]
        digest.update(f"{len(contents)} files".encode())
        for content in contents:
            digest.update(content)
    return digest.hexdigest()[:16]


def files_of(name: str) -> list[Path]:
    """The files behind a name in a setting, [] if there are none."""
    if name in WORDS or name in hub.DATA:
        return []
    if source := user_function.file_of(name):
        return existing([source])
    if module := world.find(name):
        file = Path(module.__file__)
        return existing(sorted(file.parent.glob("[!.]*"))) if module.__package__ else [file]
    folder = Path(name)
    is_here = os.path.exists(folder.parent)
    if name in hub.GPT2 or (hub.REPOSITORY.fullmatch(name) and not is_here):
        folder = hub.model_folder(name)
    if os.path.exists(folder / "config.json"):
        model_files = existing(folder / file for file in MODEL_FILES)
        return model_files + existing(checkpoint.weight_files(folder))
    return existing(readers.files(name))


def check_output(flag: str, path: str | Path, settings: Any) -> None:
    """Before `path` is written, as --flag says: UserError if a setting reads that file."""
    for setting in INPUTS:
        for name in parts(getattr(settings, setting, "")):
            try:
                read = [Path(file).resolve() for file in readers.files(name)]
            except UserError:  # whoever opens it says what is wrong
                continue
            if Path(path).resolve() in read:
                raise UserError(
                    f"--{flag}: {path} is read as --{setting} and would be replaced: choose "
                    "another name"
                )


def existing(paths: Iterable[str | Path]) -> list[Path]:
    return [Path(path) for path in paths if os.path.isfile(path)]


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file; of more than 16 MiB of weights, of their size and evenly spread pieces."""
    size = path.stat().st_size
    stride = PIECE
    if path.suffix == ".safetensors":
        stride = max(PIECE, size // PIECES)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, stride):
            file.seek(start)
            digest.update(file.read(PIECE))
    return digest.digest()


def changes(
    before: dict, settings: Any, inputs: dict[str, str], may_change: Iterable[str]
) -> list[str]:
    """What differs from an earlier run, in words; [] if nothing does.

    before: its "settings" and "inputs", as JSON. A setting that it did not know had its default;
        inputs whose content it did not note are compared by name.
    inputs: fingerprints(settings)
    """
    old_settings, old_inputs = before.get("settings", {}), before.get("inputs", {})
    differences = []
    for field in fields(settings):
        flag = field.name
        if flag in may_change:
            continue
        old, new = old_settings.get(flag, field.default), getattr(settings, flag)
        is_same = old == new
        if flag in inputs and flag in old_inputs:
            is_same = inputs[flag] == old_inputs[flag]
        if is_same:
            continue
        if old == new:
            differences.append(f"what --{flag} {new} holds has changed")
        else:
            differences.append(f"--{flag} was {old or repr(old)}, now it is {new or repr(new)}")
    return differences
