"""How much memory is free, and whether an error means that there was too little. Only GPUs need torch."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMORY_BYTES = 192 << 20  # the default limit on the buffers of a blend, of all threads together

_M_ARENA_MAX = -8  # of glibc's malloc.h
_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Files in which Linux describes a control group's memory: its limit, its use, and how much of that is cached files,
# which the kernel can drop.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)
_UNLIMITED = 2**63
# Messages that torch raises as plain RuntimeErrors, from its CPU allocator, from C++ and from CUDA's libraries.
_TORCH_MESSAGES = re.compile(
    r"std::bad_alloc$"
    r"|(\[enforce fail at \S+\] \S.*\. )?DefaultCPUAllocator: can't allocate memory: you tried to allocate \d+ bytes"
    r"|CUDA error: (out of memory|CUBLAS_STATUS_ALLOC_FAILED)"
    r"|cuDNN error: CUDNN_STATUS_\w*ALLOC\w*_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there was too little memory, on the host or on a GPU.

    An error that merely mentions memory or allocation in another sense does not count.
    """
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _TORCH_MESSAGES.match(str(error)) is not None


def free_memory(device: "torch.device") -> int:
    """Return how many more bytes this process may use, on a GPU or in host memory."""
    if device.type == "cuda":
        import torch

        reserved = torch.cuda.memory_reserved(device)  # by torch, which uses again what is not allocated
        cached = reserved - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    of_groups = (_free_of_group(folder) for folder in _groups())
    return max(0, min(_free_of_machine(), *of_groups, _free_of_process()))


def give_back_freed() -> None:
    """Give the memory that this process has freed, and keeps for itself, back to the system, if the C library can.

    glibc keeps small blocks that were freed between others which are still used.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def share_arena() -> None:
    """Let threads that start from now on allocate where the first ones do, if the C library is glibc.

    Of an arena of its own a thread gives memory back as soon as it is freed, and the next activations cost page faults
    again: forwards of a language model in five threads took 1.07 to 1.19 times those in one, without this, and 1.05
    with it.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_ARENA_MAX, 1)


def _free_of_machine() -> int:
    """Return how much memory the kernel could provide, cached files included; half of all memory if not on Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _groups() -> Iterator[Path]:
    """Yield the control groups that this process is in, such as a container's or a job's, innermost first."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = _CGROUP / "memory" if controllers else _CGROUP
            inner = root / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _free_of_group(folder: Path) -> int:
    """Return the limit of a control group minus its use; cached files, which can be dropped, do not count as used."""
    for limit, used, droppable in _FILES:
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
        except (OSError, ValueError):  # there is no limit, or it cannot be read
            continue
        return free + int(stat.get(droppable, 0))
    return _UNLIMITED


def _free_of_process() -> int:
    """Return how much memory `ulimit -v` and `ulimit -d` leave to this process."""
    return min(_free_of_limit(resource.RLIMIT_AS, 0), _free_of_limit(resource.RLIMIT_DATA, 5))


def _free_of_limit(kind: int, field: int) -> int:
    """Return a limit of this process minus its use, the number at position `field` of /proc/self/statm, in pages."""
    limit, _ = resource.getrlimit(kind)
    if limit == resource.RLIM_INFINITY:
        return _UNLIMITED
    try:
        used = int(Path("/proc/self/statm").read_text().split()[field]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        used = 0
    return limit - used
