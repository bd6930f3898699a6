"""Figures as inline SVG that take the page's text colour and font, light or dark."""

import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("figures.mplstyle")
INK, LINE = "#010203", "#040506"  # in the style: the page's text colour, and its thin lines
DASHED = {"color": INK, "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 0}
DOT = {"linewidth": 1, "elinewidth": 1.4}
WIDTH, HEIGHT = 3.5, 2.2  # inches; on a phone a figure fills the screen
POINTS_SHOWN = 400
BESIDE = ((5, -10), (5, 5), (-5, -10), (-5, 5))  # a point, in points: where its name can stand
MOST_NAMED = 4  # more rounds follow each other from left to right, as do their colours

BLUE, PINK, GREY = "#5b82c0", "#b5539c", "#8b93a1"
COLOURS = dict.fromkeys(("sft", "SFT", "validation", "reward", "after"), BLUE) | {"gold": PINK}
ROUND_COLOURS = (  # in order along the colour circle, so that later rounds look later
    *("#00a488", "#409456", "#7c993b", "#948000", "#ba7e22"),
    *("#bb6638", "#cd6b69", "#b95d82", "#b76eaf", "#926bbb"),
)


def colour(stage: str) -> str:
    """One colour per stage, everywhere."""
    if match := re.match(r"round ?(\d+)", stage):
        return ROUND_COLOURS[(int(match[1]) - 1) % len(ROUND_COLOURS)]
    return COLOURS.get(stage, GREY)


def figure(title: str, x: str, y: str, draw: Callable, height: float = HEIGHT) -> str:
    """draw(ax) -> SVG below its title."""
    with matplotlib.rc_context({"svg.hashsalt": title}, STYLE):  # ids differ between figures
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        ax = fig.add_subplot(xlabel=x, ylabel=y)
        draw(ax)
        if 1 < len(ax.get_legend_handles_labels()[1]) <= MOST_NAMED:
            fig.legend(loc="outside lower center", ncols=4, handlelength=0.9, columnspacing=0.9)
        file = io.StringIO()
        fig.savefig(file, format="svg", transparent=True)
    content = file.getvalue().partition("<svg")[2].partition(">")[2]
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    content = re.sub(r' id="\w+_\d+"', "", content).replace("xlink:href", "href")
    content = content.replace(INK, "currentColor").replace(LINE, "var(--line)")
    box = f"0 0 {72 * WIDTH:.1f} {72 * height:.1f}"
    svg = f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">{content}'
    style = ' class="tall"' if height > 2 * HEIGHT else ""
    return f"<figure{style}><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def running_mean(xs: list, ys: list) -> tuple[list, list]:
    """Each point becomes the mean of the fifteenth of the curve around it; None is left out."""
    points = [(x, y) for x, y in zip(xs, ys) if y is not None]
    half = len(points) // 30
    smooth_xs, smooth_ys = [], []
    for i in range(0, len(points), max(1, len(points) // POINTS_SHOWN)):
        window = [y for _, y in points[max(0, i - half) : i + half + 1]]
        smooth_xs.append(points[i][0])
        smooth_ys.append(sum(window) / len(window))
    return smooth_xs, smooth_ys


def lines(title, x, y, series: dict[str, tuple], dashed: tuple = (), shade: tuple = ()) -> str:
    """Curves. series: {label: (xs, ys)}; dashed: (xs, ys); shade: the healthy range of y."""

    def draw(ax):
        for label, (xs, ys) in series.items():
            marker = "o" if len(ys) - ys.count(None) < 12 else ""
            curve = running_mean(xs, ys)
            ax.plot(*curve, color=colour(label), label=label, marker=marker)
        if dashed:
            ax.plot(*dashed, **DASHED)
        if shade:
            low, high = ax.get_ylim()  # before the shade, of which only a part need be seen
            ax.axhspan(*shade, color=ROUND_COLOURS[0], alpha=0.1, linewidth=0)
            ax.set_ylim(min(low, shade[0]), max(high, shade[1] / 3))

    return figure(title, x, y, draw)


def points(title, x, y, series: dict[str, list[tuple]], dashed: tuple = ()) -> str:
    """Points with their intervals, joined. A point: (word beside it, cell of x, cell of y)."""

    def draw(ax):
        for label, row in series.items():
            xs, ys = ([point[i]["mean"] for point in row] for i in (1, 2))
            dx, dy = ([point[i]["interval"] or 0 for point in row] for i in (1, 2))
            ax.errorbar(xs, ys, dy, dx, fmt="o-", label=label, color=colour(label), **DOT)
        if dashed:
            ax.plot(*dashed, **DASHED)
        named = [point for row in series.values() for point in row if point[0]]
        name_points(ax, [(word, x["mean"], y["mean"]) for word, x, y in named])

    return figure(title, x, y, draw) if any(series.values()) else ""


def name_points(ax, named: list[tuple[str, float, float]]) -> None:
    """Words beside their points (x, y), from the lowest upwards. Where a word would cover another
    one it is left out."""
    ax.figure.draw_without_rendering()  # only then it is known where things are
    taken = []
    for word, *at in sorted(named, key=lambda point: point[2]):
        for dx, dy in BESIDE:
            side = "left" if dx > 0 else "right"
            note = ax.annotate(word, at, (dx, dy), ha=side, textcoords="offset points")
            box = note.get_window_extent()
            if not box.count_overlaps(taken):
                taken.append(box)
                break
            note.remove()


def histogram(title, x, series: dict[str, list[float]]) -> str:
    """Distributions on top of each other. series: {label: percentiles 0 to 100}."""
    values = [value for row in series.values() for value in row]
    edges = np.linspace(min(values), max(values), 22) if values else []

    def draw(ax):
        for label, row in series.items():
            one_percent = [100 / len(row)] * len(row)
            style = {"color": colour(label), "alpha": 0.5, "label": label}
            ax.hist(row, edges, weights=one_percent, histtype="stepfilled", **style)

    return figure(title, x, "% of answers", draw) if values else ""


def dots(title, x, series: dict[str, dict], mark: float = 0, factor: float = 1) -> str:
    """A dot with its interval for every row and stage. series: {stage: {row: cell}}.

    A stage "" is not named: its rows are the stages, and their numbers are written.

    mark: where a dashed line stands
    factor: of all numbers; 100 for percent
    """
    known = {}
    for stage, cells in series.items():
        known[stage] = {k: c for k, c in cells.items() if c and c["mean"] is not None}
    rows = list(dict.fromkeys(row for cells in known.values() for row in cells))

    def draw(ax):
        for number, (stage, cells) in enumerate(known.items()):
            lift = (number - (len(known) - 1) / 2) * 0.7 / len(known)
            ax.plot([], [], "o", color=colour(stage), label=stage)
            for row, cell in cells.items():
                at = factor * cell["mean"], rows.index(row) + lift
                half = factor * (cell["interval"] or 0)
                ax.errorbar(*at, xerr=half, fmt="o", color=colour(stage or row), **DOT)
                if not stage:
                    text = f"{at[0]:.2f}" if factor == 1 else f"{at[0]:.0f}"
                    ax.annotate(text, at, (0, 4), ha="center", textcoords="offset points")
        ax.axvline(mark, **DASHED)
        ax.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.4, -0.7))
        ax.grid(axis="y", visible=False)

    height = 1.1 + len(rows) * max(0.34 if "" in known else 0, 0.12 + 0.075 * len(known))
    return figure(title, x, "", draw, height) if rows else ""
