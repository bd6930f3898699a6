"""Values -> JSON text that all readers take: NaN and Infinity, which are no JSON, become null."""

import json
import math
from collections.abc import Iterable
from typing import Any


def to_json(value: Any, **options) -> str:
    """json.dumps with the same options; a number that is not finite is written as null."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # there is such a number
        return json.dumps(finite(value), allow_nan=False, **options)


def to_json_lines(rows: Iterable[Any], **options) -> str:
    return "".join(to_json(row, **options) + "\n" for row in rows)


def finite(value: Any) -> Any:
    """The value with None in the place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return value
