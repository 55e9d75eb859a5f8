"""Processes of a job as threads of one process, which exchange through a list."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from glue_cli.foundation.ranks import Place, Ranks


class Meeting:
    """What processes exchange, in threads of this one."""

    def __init__(self, n):
        self.barrier, self.lists, self.told = threading.Barrier(n), [([], False)] * n, None


class InThreads(Ranks):
    def __init__(self, rank, n, meeting, a_machine):
        super().__init__(Place(rank, n, rank % a_machine, a_machine, is_launched=True))
        self._meeting = meeting

    def _exchange(self, own, *, gives_up):
        meeting = self._meeting
        meeting.lists[self.place.rank] = ([*own], gives_up)
        meeting.barrier.wait(60)
        found = [tensor for tensors, _ in meeting.lists for tensor in tensors]
        has_given_up = any(gave_up for _, gave_up in meeting.lists)
        meeting.barrier.wait(60)
        return found, has_given_up

    def gather_into(self, out, own):
        out.copy_(torch.stack(self.gather([own])))

    def tell(self, value):
        self._meeting.told = value
        self._meeting.barrier.wait(60)
        self._meeting.barrier.wait(60)

    def hear(self, rank=0):
        self._meeting.barrier.wait(60)
        told = self._meeting.told
        self._meeting.barrier.wait(60)
        return told


class Part:
    """Stands for torch's DTensor: the rows of a tensor that a process holds."""

    def __init__(self, whole, ranks):
        n_rows = -(-len(whole) // ranks.size)
        self.shape, self.dtype = whole.shape, whole.dtype
        self.device_mesh = SimpleNamespace(size=lambda: ranks.size, get_rank=lambda: ranks.place.rank)
        self._own = whole[ranks.place.rank * n_rows :][:n_rows]

    def to_local(self):
        return self._own

    def full_tensor(self):
        raise AssertionError("this needs the other processes")


def by_several(n, work, a_machine=None):
    """Return what `work(ranks)` returns in each of n threads, so many on each machine, or all on one."""
    meeting = Meeting(n)

    def one(rank):
        torch.set_num_threads(1)
        try:
            return work(InThreads(rank, n, meeting, a_machine or n))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(n) as pool:
        return [*pool.map(one, range(n))]
