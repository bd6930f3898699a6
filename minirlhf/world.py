"""Find a world: a module that writes data and judges answers, such as toyworld/ or a user's own.

A world is named like a data file or a model folder: `--data toyworld`, `--reward my_world.py`. It
has any of these functions; examples/my_world.py is a small one.

    demonstrations(split, count, seed)   records to learn from: [{"prompt", "completion"}, ...]
    prompts(split, count, seed)          requests: [{"prompt"}, ...]
    reward(prompts, responses)           a number for each response
    annotate(prompt, responses)          how much a simulated annotator likes each response
    kind(prompt), features(prompt, response), gold_parts(prompt, response), without_belief(prompt),
    KINDS, OPEN_ENDED, PRINCIPLES        more to look at, where a world has it
"""

import importlib
import importlib.util
import sys
import traceback
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

from minirlhf import UserError

SHORT_NAMES = {"toy": "toyworld"}
FUNCTIONS = ("demonstrations", "prompts", "reward", "annotate")
ROOT = Path(__file__).resolve().parents[1]


def find(name: str) -> ModuleType | None:
    """The module of that name, or None where the name means something else (a file, a folder)."""
    name = SHORT_NAMES.get(name, name)
    if name.endswith(".py"):
        return import_file(name) if Path(name).is_file() else None
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    if is_model_folder(name):
        return None
    return import_by_name(name)


def load(name: str, flag: str, *needed: str) -> ModuleType:
    """The same, with all the `needed` attributes; UserError names the flag that asked for it."""
    module = find(name)
    if module is None:
        raise UserError(f"{flag} {name}: there is no module of that name, and no file")
    for attribute in needed:
        if not hasattr(module, attribute):
            raise UserError(f"{flag} {name}: the module has no {attribute}; see minirlhf/world.py")
    return module


def import_file(path: str, flag: str = "--data") -> ModuleType:
    """A Python file as a module. It may import its neighbours."""
    file = Path(path).resolve()
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    if loaded is None:
        sys.modules[file.stem] = module  # dataclasses and pickle look a module up by its name
    try:
        with importing(f"{flag} {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        if loaded is None:
            sys.modules.pop(file.stem, None)
        raise
    return module


def import_by_name(name: str) -> ModuleType | None:
    """A module beside the scripts or in the current folder that defines something of a world."""
    folders = (Path.cwd(), ROOT)
    if not any(holds_module(folder, name) for folder in folders):
        return None
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)
    with importing(f"the module {name}"):
        module = importlib.import_module(name)
    if not any(hasattr(module, function) for function in (*FUNCTIONS, "PRINCIPLES")):
        return None
    return module


def holds_module(folder: Path, name: str) -> bool:
    path = folder.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@contextmanager
def importing(what: str):
    """A module's own prints go to standard error; what stops its import is a UserError."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        message = f"{what} cannot be imported: {type(error).__name__}: {error}"
        if not isinstance(error, SyntaxError):  # which names its place itself
            place = traceback.extract_tb(error.__traceback__)[-1]
            message += f" ({place.filename}, line {place.lineno})"
        raise UserError(message) from error


def is_model_folder(name: str) -> bool:
    return (Path(name) / "config.json").exists()
