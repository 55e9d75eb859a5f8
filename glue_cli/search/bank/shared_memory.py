"""One matrix in host memory for all processes of a machine, in place of one for each.

The memory has no name, so that nothing is left behind, however the processes end: the first one makes it, and the
others open it through /proc. It is no part of /dev/shm, which containers often keep small.
"""

import mmap
import os

import torch
from torch import Tensor

from glue_cli.foundation.ranks import Ranks


def shared_matrix(shape: tuple[int, int], dtype: torch.dtype, ranks: Ranks) -> Tensor | None:
    """Return a matrix of zeros that all processes of a machine see and write to; None where they cannot share one.

    Every process of the job has to ask for it, with the same shape and dtype.
    """
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    place = ranks.place
    made = _make(n_bytes) if place.local_rank == 0 else None
    found = ranks.gather([torch.tensor([os.getpid(), -1 if made is None else made])])
    process, number = found[place.rank - place.local_rank].tolist()  # of the first process of this machine
    memory = _open(f"/proc/{process}/fd/{number}", n_bytes) if number >= 0 else None
    is_shared = all(ranks.gather([torch.tensor(memory is not None)]))  # by then the others have opened it
    if made is not None:
        os.close(made)
    return torch.frombuffer(memory, dtype=dtype).view(shape) if memory is not None and is_shared else None


def _make(n_bytes: int) -> int | None:
    """Return a descriptor of memory without a name; None if the system has none, or too little."""
    if not hasattr(os, "memfd_create"):  # it is Linux's
        return None
    descriptor = os.memfd_create("glue-bank", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open(path: str, n_bytes: int) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mmap.mmap(descriptor, n_bytes)
    finally:
        os.close(descriptor)
