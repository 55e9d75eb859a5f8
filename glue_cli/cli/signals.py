"""Handle Ctrl-C and the signals that end a process: the work stops cleanly, and leaves no temporary files."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_FATAL = (signal.SIGTERM, signal.SIGHUP)


def unwind_on_signals() -> None:
    """Make the signals that would end the process at once raise SystemExit, so that temporary files are removed."""
    for number in _FATAL:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)


def ignore_signals() -> None:
    """Ignore all of these signals while the process exits."""
    for number in (signal.SIGINT, *_FATAL):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def holding_signals() -> Iterator[None]:
    """Delay the first signal until the block ends; a signal while torch is imported would be lost or break the import.

    A second signal ends the process at once, which is safe because nothing has been written yet.
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
