"""A function of the user's own: found in a file, called with what it names, its answers checked."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import ModuleType

from minirlhf import UserError, world
from minirlhf.data import Prompt

LARGEST_SCORE = 1e38  # float32 holds no larger number
RewardFn = Callable[[list[Prompt], list[str]], list[float]]


def arguments(function: Callable, prompts: list[Prompt], responses: list[str]) -> tuple[list, dict]:
    """What a user's function is called with: positional arguments and named ones.

    A field that a record lacks is None. A parameter that no record has keeps its default.
    All are copies, which a function may change.
    """
    names = {name for prompt in prompts for name in prompt.columns}
    columns = {}
    for name in names:
        columns[name] = [deepcopy(prompt.columns.get(name)) for prompt in prompts]
    sources = [deepcopy(prompt.source) for prompt in prompts]
    responses = list(responses)
    values = columns | {"prompts": sources, "responses": responses, "completions": responses}

    parameters = parameters_of(function)
    only_by_place = [p for p in parameters.values() if p.kind is p.POSITIONAL_ONLY]
    positional = []
    if only_by_place or not {"responses", "completions"} & parameters.keys():
        positional = [sources, responses]  # def f(p, r): names of the user's own
    taken = list(parameters)[: len(positional)]
    named = {}
    for parameter in list(parameters.values())[len(positional) :]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = {name: column for name, column in columns.items() if name not in taken}
            named = rest | named
        elif parameter.name in values:
            named[parameter.name] = values[parameter.name]
        elif parameter.default is parameter.empty:
            named[parameter.name] = [None] * len(prompts)
    return positional, named


def parameters_of(function: Callable) -> Mapping[str, inspect.Parameter]:
    """Name -> parameter; none for what is written in C and does not tell, such as max."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def check_scores(scores, responses: list[str], name: str) -> list[float]:
    """What a user's function gave: a finite number for each response, or None, which becomes NaN.
    Else UserError.

    name: the function's in the message
    """
    try:
        values = [] if isinstance(scores, dict | str) else list(scores)
    except TypeError:  # a lone number, None
        values = []
    if len(values) != len(responses):
        raise UserError(
            f"{name} gave {shown(scores)} for {len(responses)} responses: "
            "return a list with one number for each"
        )
    numbers = []
    for value, response in zip(values, responses):
        number = math.nan if value is None else as_number(value)
        if number is None:
            raise UserError(
                f"{name} gave {shown(value)} for the response {response[:80]!r}: "
                "return one finite number for each, below 1e38, or None"
            )
        numbers.append(number)
    return numbers


def as_number(value) -> float | None:
    """A number, also numpy's or a tensor's, that float32 can hold; else None."""
    if isinstance(value, str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if abs(number) < LARGEST_SCORE else None


def shown(value) -> str:
    try:
        return repr(value)[:200]
    except Exception:  # Python writes no number of more than 4300 digits
        return f"a {type(value).__name__} that cannot be written"


def as_reward(function: Callable, name: str) -> RewardFn:
    """A user's function as a RewardFn; what it raises or returns wrongly is a UserError."""

    def call(prompts, responses):
        positional, named = arguments(function, prompts, responses)
        scores = function(*positional, **named)
        return list(scores) if isinstance(scores, Iterator) else scores  # yield runs here

    def reward_fn(prompts: list[Prompt], responses: list[str]) -> list[float]:
        try:
            scores = call(prompts, responses)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            where = first_failure(call, prompts, responses)
            raise UserError(
                f"reward function {name} raised {type(error).__name__}: {error} ({where})"
            ) from error
        return check_scores(scores, responses, f"reward function {name}")

    return reward_fn


def first_failure(call: Callable, prompts: list[Prompt], responses: list[str]) -> str:
    """Names the first response that the function fails on, by trying them one by one."""
    for i, (prompt, response) in enumerate(zip(prompts, responses)):
        try:
            call([prompt], [response])
        except (Exception, SystemExit):
            source = str(prompt.source)[-80:]
            return f"first at response {i} of {len(responses)}: {response[:80]!r} to {source!r}"
    return f"for no response alone, only for the {len(responses)} together"


def file_of(spec: str) -> str:
    """The file of "file.py:function"; "" where a text names no function."""
    file = spec.rpartition(":")[0]
    return file if file.endswith(".py") else ""


def load(spec: str, flag: str = "--reward") -> Callable:
    """file.py:name -> that function."""
    file, _, name = spec.rpartition(":")
    if not Path(file).exists():
        raise UserError(f"{flag} {spec}: {file} does not exist")
    module = world.import_file(file, flag)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{flag} {spec}: {file} has no function {name}; {functions_in(module)}")
    return function


def functions_in(module: ModuleType) -> str:
    """The functions that a file defines, for an error message."""
    functions = inspect.getmembers(module, inspect.isfunction)
    names = [name for name, function in functions if function.__module__ == module.__name__]
    return f"it has {', '.join(names) or 'none'}"
