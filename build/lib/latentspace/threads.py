"""Rows of a computation divided among threads, for chains of many short operations."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch

__all__ = ["on_all_cores"]


def on_all_cores(rows: Callable[[int, int], Any], n: int, serial: bool) -> Any:
    """Sum of ``rows(first, last)`` over a division of 0..n, one part a thread.

    torch would divide each of the many short operations among its threads, and wait for the
    slowest each time; on a machine that does something else too this takes fifty times longer.
    """
    threads = 1 if serial else min(torch.get_num_threads(), n)
    cuts = [n * i // threads for i in range(threads + 1)]
    if threads == 1:
        return rows(0, n)
    parts = list(_pool(threads).map(rows, cuts, cuts[1:]))
    return None if parts[0] is None else sum(parts[1:], parts[0])


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    ready = Barrier(threads)

    def start():
        torch.get_num_threads()  # a thread takes over the default at its first question
        ready.wait()
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, initializer=start)
    list(pool.map(lambda _: ready.wait(), range(threads)))  # starts all of them now
    torch.set_num_threads(threads)  # what a worker sets is also the default of later threads
    return pool
