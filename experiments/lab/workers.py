"""Several arms at a time: small models gain little from a CPU's second thread."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch
from tqdm import tqdm

from minirlhf import UserError


def compute(lab, function: Callable, keys: list[dict]) -> Iterator[dict]:
    """Compute lab.arm(function, **key) of all keys; give each key as its arm ends."""
    if min(lab.workers, len(keys)) > 1:
        yield from compute_in_workers(lab, function, keys)
        return
    for key in keys:
        lab.arm(function, **key)
        yield key


def compute_in_workers(lab, function: Callable, keys: list[dict]) -> Iterator[dict]:
    threads = max(1, (os.cpu_count() or 1) // lab.workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(lab.workers, context, prepare_worker, (threads,)) as pool:
        futures = {pool.submit(work, lab, function, key): key for key in keys}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except KeyboardInterrupt:  # the workers hear of it as well
            print("stopped; the same command goes on from here", flush=True)
            raise
        except BrokenProcessPool:
            raise UserError(
                "a worker was killed, for want of memory perhaps: use --workers 1; finished arms "
                "are kept"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prepare_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed worker leaves behind
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  no progress bars
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def work(lab, function: Callable, key: dict) -> None:
    try:
        lab.arm(function, **key)
    except KeyboardInterrupt:  # its last checkpoint is written: begin no other arm
        os._exit(130)
