"""Statistics over seeds, with 95 % intervals, and rows by their values."""

import math
import statistics
from typing import NamedTuple

from torch import Tensor

from minirlhf import stats

T95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31)  # by degrees of freedom


class Estimate(NamedTuple):
    """A mean and half the width of its 95 % interval, NaN where that is unknown.

    f"{estimate:+.2f}" is "+0.61 ± 0.02", or "+0.61" without an interval.
    """

    mean: float
    half: float

    @property
    def sure(self) -> bool:
        """Whether 0 lies outside the interval; True of a single value, False of none."""
        return not (math.isnan(self.mean) or abs(self.mean) < self.half)

    def __format__(self, style: str) -> str:
        style = style or ".2f"
        if math.isnan(self.mean):
            return "unknown"
        if math.isnan(self.half):
            return f"{self.mean:{style}}"
        return f"{self.mean:{style}} ± {self.half:{style.lstrip('+')}}"


def t95(degrees_of_freedom: int) -> float:
    return T95[min(degrees_of_freedom, len(T95) - 1)]


def over_seeds(values: list[float]) -> Estimate:
    """Mean with Student's interval; without one for a single value. NaN are left out."""
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan)
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, math.nan)
    return Estimate(mean, t95(n - 1) * statistics.stdev(values) / math.sqrt(n))


def estimate(rows: list[dict], name: str, minus: list[dict] | None = None) -> Estimate:
    """Of `name` over seeds; of one row alone over prompts, where it has "NAME_interval".

    minus: rows of the same seeds in the same order, whose values are subtracted.
    """
    minus = minus or []
    values = column(rows, name)
    if minus:
        values = [a - b for a, b in zip(values, column(minus, name), strict=True)]
    interval = f"{name}_interval"
    if len(values) > 1 or interval not in rows[0]:
        return over_seeds(values)
    return Estimate(values[0], math.hypot(*column(rows + minus, interval)))


def mean_between(row: dict, name: str, along: str, low: float, high: float = math.inf) -> float:
    """The mean of path `name` where path `along` lies in [low, high]; NaN if it never does."""
    inside = [y for x, y in zip(row[along], row[name]) if low <= x <= high]
    return statistics.mean(inside) if inside else math.nan


def means(**tables: Tensor) -> dict[str, float]:
    """(P,) or (P, S) tensors -> {name: mean over prompts, name_interval: half its interval}."""
    result = {}
    for name, table in tables.items():
        cell = stats.mean_of(table)
        result[name] = cell["mean"]
        result[f"{name}_interval"] = cell["interval"]
    return result


def slope(xs: list[float], ys: list[float]) -> Estimate:
    """Of a line by least squares; its interval needs three points."""
    n = len(xs)
    b, a = statistics.linear_regression(xs, ys)
    if n < 3:
        return Estimate(b, math.nan)
    mean = sum(xs) / n
    spread = sum((x - mean) ** 2 for x in xs)
    residual = sum((y - a - b * x) ** 2 for x, y in zip(xs, ys))
    return Estimate(b, t95(n - 2) * math.sqrt(residual / (n - 2) / spread))


def where(rows: list[dict], **values) -> list[dict]:
    """The rows that have all these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def column(rows: list[dict], name: str) -> list:
    """The rows' values; NaN for null, as JSON files have it."""
    return [math.nan if row[name] is None else row[name] for row in rows]


def table(rows: list[dict], variants: list[dict], *names: str) -> list[str]:
    """A line for each variant with the estimates of `names`, for a summary."""
    lines = []
    for variant in variants:
        same = where(rows, **variant)
        cells = ", ".join(f"{name} {estimate(same, name)}" for name in names)
        lines.append(f"{describe(variant)}: {cells}")
    return lines


def describe(variant: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in variant.items())
