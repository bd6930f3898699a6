"""What moves in the terminal while something takes long; a log file gets none of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

SOON = 1.5  # seconds: what takes less shows nothing
SHAPE = "{desc}{percentage:3.0f} % |{bar}| {n}/{total} {unit} in {elapsed}, {remaining} left"
BAR = {
    "bar_format": SHAPE,
    "smoothing": 0,  # the time left follows from the mean speed
    "leave": False,
    "disable": None,  # where standard error is no terminal
}


@contextmanager
def waiting(what: str, total: int | None = None, unit: str = "") -> Iterator[tqdm]:
    """A line that is gone at the end. update(n) counts; its clock goes on by itself."""
    options = dict(BAR, desc=what, total=total, unit=unit, delay=SOON)
    if not total:
        options["bar_format"] = "{desc}: {elapsed}"
    bar = tqdm(**options)
    over = threading.Event()

    def tick() -> None:
        over.wait(SOON)
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
        bar.close()
