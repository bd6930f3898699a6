"""One style of figure."""

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.intervals import Estimate, column, estimate, over_seeds, where

COLOURS = (
    "#5b82c0",
    "#1f9e89",
    "#e07b39",
    "#b5539c",
    "#8a6fd1",
    "#b3902f",
    "#4f9fc8",
    "#8b93a1",
)
STYLE = {
    "font.size": 8.5,
    "axes.grid": True,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.markersize": 4,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
}


def new(*panels: tuple[str, str, str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each (title, x label, y label)."""
    matplotlib.rcParams.update(STYLE)
    width = 5.2 if len(panels) == 1 else 3.9 * len(panels)
    fig = Figure(figsize=(width, 3.5), layout="constrained")
    axes = []
    for number, (title, x, y) in enumerate(panels, start=1):
        ax = fig.add_subplot(1, len(panels), number)
        ax.set(title=title, xlabel=x, ylabel=y)
        axes.append(ax)
    return fig, axes


def points(ax: Axes, xs: list, estimates: list[Estimate], label: str, **style):
    """Means with bars of their intervals."""
    means = [e.mean for e in estimates]
    bars = [0 if math.isnan(e.half) else e.half for e in estimates]
    style = {"fmt": "o", "capsize": 2, **style}
    return ax.errorbar(xs, means, yerr=bars, label=label, **style)


def curve(ax: Axes, rows: list[dict], x: str, y: str, label: str, **style) -> None:
    """Means over rows of equal x, joined by a line, and the rows as faint dots."""
    xs = sorted(set(column(rows, x)))
    estimates = [over_seeds(column(where(rows, **{x: value}), y)) for value in xs]
    line = points(ax, xs, estimates, label, fmt="o-", **style)
    ax.plot(column(rows, x), column(rows, y), ".", color=line[0].get_color(), alpha=0.35)


def curves(ax: Axes, rows: list[dict], x: str, y: str, by: str) -> None:
    """A curve for each value of `by`."""
    for value in dict.fromkeys(column(rows, by)):
        curve(ax, where(rows, **{by: value}), x, y, value)


def runs(ax: Axes, rows: list[dict], x: str, y: str, label: str, **style) -> None:
    """A point for each row, with the interval of its y over prompts."""
    estimates = [estimate([row], y) for row in rows]
    points(ax, column(rows, x), estimates, label, **style)
