"""Work shared out over Python threads, each with a torch that keeps to itself."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

# Parts for each thread: enough that none waits long for the others at the end.
_PARTS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def restored_threads() -> Iterator[None]:
    """Give torch back, in the end, the number of threads that it has now, whatever is set meanwhile."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def single_threaded(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of Python threads, and let torch compute on one thread in each of them and in the block.

    Torch's own threads would cut a piece of work anew, and where it is cut, bits change. It has to be told in each
    thread: MKL does not pass the number on, and two threads with two of MKL's each took 1.25 times as long.
    """
    with restored_threads():
        torch.set_num_threads(1)
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool


def share_out(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do the same work on every item, on as many threads as torch has; return the results in the items' order."""

    def do_part(start: int) -> list[Result]:
        return [work(item) for item in items[start : start + size]]

    n_threads = torch.get_num_threads()
    size = max(1, len(items) // (_PARTS * n_threads))  # handing a part to a thread costs more than a small item
    with single_threaded(n_threads) as pool:
        return [result for part in pool.map(do_part, range(0, len(items), size)) for result in part]
