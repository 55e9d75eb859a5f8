"""Holds what a test does with one input to limits of time and memory: 5 s, and 512 MiB beyond what the input has."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

LIMIT_S, LIMIT_BYTES = 5, 512 << 20
_HANGS_S = 60  # by the clock, since other programs may hold the cores
_PROCESS = Path("/proc/self")


@contextmanager
def bounded(n_bytes: int = 0) -> Iterator[None]:
    """Fail if the block takes too much time or memory; a block that raises an error is not judged."""
    with in_little_memory(n_bytes), in_little_time():
        yield


@contextmanager
def in_little_time() -> Iterator[None]:
    """Fail if the block takes 5 s of the processor or 60 s by the clock."""
    began, handler = time.process_time(), signal.signal(signal.SIGALRM, _hangs)
    signal.setitimer(signal.ITIMER_REAL, _HANGS_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    took_s = time.process_time() - began
    assert took_s < LIMIT_S, f"it took {took_s:.1f} s"


@contextmanager
def in_little_memory(n_bytes: int = 0) -> Iterator[None]:
    """Fail if the process holds 512 MiB more than `n_bytes` at any moment of the block, beyond what it held before.

    Where the system does not tell a process its largest memory, as on macOS, nothing is looked at.
    """
    before = _most_memory(reset=True)
    yield
    grew = _most_memory() - before
    assert grew < LIMIT_BYTES + n_bytes, f"it took {grew / 1e6:.0f} MB"


def _hangs(signal_number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"it hangs: no end after {_HANGS_S} s")


def _most_memory(*, reset: bool = False) -> int:
    """Return the most memory that the process has held since the last reset, in bytes."""
    if not (_PROCESS / "clear_refs").exists():
        return 0
    if reset:
        (_PROCESS / "clear_refs").write_text("5")  # from now on, the peak counts anew; man 5 proc
    found = re.search(r"VmHWM:\s*(\d+) kB", (_PROCESS / "status").read_text())
    return 1024 * int(found[1]) if found else 0
