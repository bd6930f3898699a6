"""What a run shows: tables of numbers and samples, and in a terminal what moves meanwhile."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from minirlhf.cli import one_line, terminal_width, wrapped

SOON = 1.5  # seconds: what takes less shows nothing
LATER = 10  # the same for a wait within another, whose clock moves already
SHAPE = "{desc} {percentage:3.0f} % |{bar}| {n}/{total} {unit} in {elapsed}, {remaining} left"
_open: list[tqdm] = []


@contextmanager
def waiting(
    what: str, total: int | None = None, unit: str = "", initial: int = 0
) -> Iterator[tqdm]:
    """A line that is gone at the end. update(n) counts; its clock goes on by itself."""
    soon = LATER if _open else SOON
    bar = tqdm(
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        ncols=terminal_width() - 2,  # room for a ^C
        bar_format=SHAPE if total else "{desc}: {elapsed}",
        smoothing=0,  # the time left follows from the mean speed
        delay=soon,
        leave=False,
        disable=None,  # where standard error is no terminal
    )
    _open.append(bar)
    over = threading.Event()

    def tick() -> None:
        over.wait(soon)
        while not over.wait(1):
            bar.refresh()
            bar.last_print_t = time.time()  # so that closing it clears the line

    clock = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        clock.start()
    try:
        yield bar
    finally:
        over.set()
        if not bar.disable:
            clock.join()
        _open.remove(bar)
        bar.close()


def say(text: str) -> None:
    """print, above the lines that move."""
    tqdm.write(wrapped(text, 4))


def short(number: float) -> str:
    """Three digits or a whole number, in seven columns: 0.693, 17,433, 0.00097."""
    if 1000 <= abs(number) < 1e7:
        return format(number, ",.0f")
    return format(number, ".3g" if abs(number) >= 0.001 else ".2g")


class Table:
    """Numbers below their names, which stand again where they change or samples came between."""

    def __init__(self):
        self.columns: list[str] = []

    def add(self, step: str, row: dict, names: tuple[str, ...], left: str) -> None:
        """A line with those of the row's values that are numbers."""
        cells = {}
        for name in names:
            value = row.get(name)
            if isinstance(value, int | float) or name in self.columns:
                cells[name] = "" if value is None else short(value)
        titles = [title.replace("_per_second", "/s") for title in ("step", *cells, "left")]
        titles = [title.replace("validation_", "val_") for title in titles]
        lines = [[step, *cells.values(), left]]
        if list(cells) != self.columns:
            self.columns = list(cells)
            lines.insert(0, titles)
        widths = [8, *(max(7, len(title)) for title in titles[1:-1]), 5]
        for line in lines:
            tqdm.write("  ".join(text.rjust(width) for text, width in zip(line, widths)))

    def add_samples(self, rows: list[dict]) -> None:
        """A line for each: score and KL, as far as they are known, request and answer."""
        self.columns = []
        numbers = [name for name in ("score", "kl") if name in rows[0]]
        room = terminal_width() - 7 * len(numbers) - 5
        left, right = int(0.4 * room), int(0.6 * room)

        def add(cells: list[str], request: str, answer: str) -> None:
            line = "".join(cell.rjust(7) for cell in cells)
            tqdm.write(f" {line}  {one_line(request, left):{left}}  {one_line(answer, right)}")

        add(numbers, "request", "answer")
        for row in rows:
            prompt = row["prompt"]
            if isinstance(prompt, list):  # messages
                prompt = prompt[-1]["content"]
            add([f"{row[name]:.2f}" for name in numbers], prompt, row["response"])
