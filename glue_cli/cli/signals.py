"""Ctrl-C, and what batch systems and terminals send to be rid of a process: the work unwinds, and leaves nothing."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_FATAL = (signal.SIGTERM, signal.SIGHUP)


def unwind_on_signals() -> None:
    """Let the signals that would end the process at once raise SystemExit, so that temporary files are removed."""
    for number in _FATAL:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)


def ignore_signals() -> None:
    """Let nothing disturb the last steps out."""
    for number in (signal.SIGINT, *_FATAL):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def holding_signals() -> Iterator[None]:
    """Hold the first signal back until the block ends: in the middle of its import, torch swallows or trips over it.

    A second one ends the process at once; nothing is written yet.
    """
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            os._exit(128 + number)
        held.append(number)

    caught = [number for number in (signal.SIGINT, *_FATAL) if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = [signal.signal(number, hold) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, handlers, strict=True):
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
