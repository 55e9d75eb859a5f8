"""Processes of a job as threads of one process, which exchange through a list."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from glue_cli.foundation.ranks import Place, Ranks


class Meeting:
    """What processes exchange, in threads of this one."""

    def __init__(self, n):
        self.barrier, self.lists, self.told = threading.Barrier(n), [([], False)] * n, None


class InThreads(Ranks):
    def __init__(self, rank, n, meeting):
        super().__init__(Place(rank, n, rank, n, is_launched=True))
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


def by_several(n, work):
    """Return what `work(ranks)` returns in each of n threads."""
    meeting = Meeting(n)

    def one(rank):
        torch.set_num_threads(1)
        try:
            return work(InThreads(rank, n, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(n) as pool:
        return [*pool.map(one, range(n))]
