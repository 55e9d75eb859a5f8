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
def single_threaded_torch() -> Iterator[int]:
    """Let torch compute on one thread in the block, and in the Python threads that start in it.

    Torch's own threads would cut a piece of work anew, and where it is cut, bits change.

    Yields:
        the number of threads that torch had, and has again behind the block.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(n_threads)


def share_out(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do the same work on every item, on as many threads as torch has; return the results in the items' order."""

    def do_part(start: int) -> list[Result]:
        return [work(item) for item in items[start : start + size]]

    with single_threaded_torch() as n_threads, ThreadPoolExecutor(n_threads) as pool:
        size = max(1, len(items) // (_PARTS * n_threads))  # handing a part to a thread costs more than a small item
        return [result for part in pool.map(do_part, range(0, len(items), size)) for result in part]
