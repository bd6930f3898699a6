"""One style of figure."""

import math
from statistics import mean

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


def by_name(ax: Axes, names: list[str], series: dict[str, list[Estimate]], colour=0) -> None:
    """A place on the x axis for each name, and there a point of each series.

    colour: the number of the first one's
    """
    for i, (label, cells) in enumerate(series.items()):
        xs = [x + 0.15 * i for x in range(len(cells))]
        points(ax, xs, cells, label, color=f"C{colour + i}")
    ax.set_xticks(range(len(names)), names, rotation=15)


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


def beside_control(
    axes: list[Axes],
    columns: list[str],
    x: str,
    rows: list[dict],
    control: list[dict],
    labels: tuple[str, str],
) -> None:
    """In each panel the curve of a column, and the null control at its place.

    labels: of the rows and of the control
    """
    for ax, name in zip(axes, columns):
        curve(ax, rows, x, name, labels[0])
        points(ax, [control[0][x]], [estimate(control, name)], labels[1], fmt="s", color="C2")


def runs(ax: Axes, rows: list[dict], x: str, y: str, label: str, **style) -> None:
    """A point for each row, with the interval of its y over prompts."""
    estimates = [estimate([row], y) for row in rows]
    points(ax, column(rows, x), estimates, label, **style)


def paths(ax: Axes, rows: list[dict], x: str, y: str, label: str | None, **style) -> None:
    """A line for each row, whose x and y are lists; one entry in the legend."""
    for row in rows:
        ax.plot(row[x], row[y], label=label, **style)
        label = None


def calibration(ax: Axes, rows: list[dict], label: str) -> None:
    """Claimed and real accuracy, as means over seeds of the rows' "calibration"."""
    parts = list(zip(*column(rows, "calibration")))  # of each part, a dict for each seed
    claimed = [mean(column(part, "predicted")) for part in parts]
    accuracy = [mean(column(part, "accuracy")) for part in parts]
    ax.plot([0.5, 1], [0.5, 1], "--", color="grey", linewidth=0.8)
    ax.plot(claimed, accuracy, "o-", label=label)
