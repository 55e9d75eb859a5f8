"""Processes of a job as threads of one process, which exchange through a list."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from glue_cli.foundation.ranks import Place, Ranks


class Meeting:
    """What processes exchange, in threads of this one."""

    def __init__(self, n):
        self.barrier, self.lists, self.told = threading.Barrier(n), [None] * n, None


class InThreads(Ranks):
    def __init__(self, rank, n, meeting):
        super().__init__(Place(rank, n, rank, n, is_launched=True))
        self._meeting = meeting

    def gather(self, own):
        meeting = self._meeting
        meeting.lists[self.place.rank] = [*own]
        meeting.barrier.wait(60)
        found = [tensor for tensors in meeting.lists for tensor in tensors]
        meeting.barrier.wait(60)
        return found

    def tell(self, value):
        self._meeting.told = value
        self._meeting.barrier.wait(60)
        self._meeting.barrier.wait(60)

    def hear(self):
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
