"""What moves in the terminal while something takes long; a log file gets none of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from minirlhf.cli import terminal_width

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
