"""Distribute work over Python threads, with torch computing on a single thread in each of them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

# How many parts each thread gets: enough that no thread waits long for the others at the end.
_PARTS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def restored_threads() -> Iterator[None]:
    """Set torch's number of threads back, after the block, to what it is now."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def single_threaded(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of Python threads, and let torch compute on one thread in each of them and in the block.

    Torch's own threads would split each piece of work again, and the bits of a sum depend on where it is split. The
    number has to be set in every thread, since MKL does not pass it on: two threads with two MKL threads each took
    1.25 times as long.
    """
    with restored_threads():
        torch.set_num_threads(1)
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool


def share_out(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do the same work on every item, on as many threads as torch uses; return the results in the items' order."""

    def do_part(start: int) -> list[Result]:
        return [work(item) for item in items[start : start + size]]

    n_threads = torch.get_num_threads()
    size = max(1, len(items) // (_PARTS * n_threads))  # handing a part to a thread costs more than a small item
    with single_threaded(n_threads) as pool:
        return [result for part in pool.map(do_part, range(0, len(items), size)) for result in part]
