"""Handle Ctrl-C and the signals that end a process: the work stops cleanly, and leaves no temporary files."""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from glue_cli.foundation.stopping import Stop, exit_code_of

_FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)  # the last two come ahead of a kill
# Of a run that is asked to stop: seconds until it gives up the step that it is in, and until the process ends.
_GIVE_UP_S, _END_S = 3.0, 4.5
_RESCUE_S = 0.4  # for a small state, after that


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
def ignoring_signals() -> Iterator[None]:
    """Ignore all of these signals until the block ends, in which a process that stops anyway says why."""
    with _all_handled_by(signal.SIG_IGN):
        yield


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


@contextmanager
def dying_of_signals() -> Iterator[None]:
    """Let signals end the process at once while it waits for others, which Python's handlers cannot interrupt.

    This is safe because nothing has been written yet.
    """
    with _all_handled_by(signal.SIG_DFL):
        yield


@contextmanager
def _all_handled_by(other: signal.Handlers) -> Iterator[None]:
    """Let another handler have all signals that are not ignored until the block ends; only in the main thread."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *_FATAL)}
    is_main = threading.current_thread() is threading.main_thread()
    caught = {n: handler for n, handler in handlers.items() if is_main and handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, other)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


@contextmanager
def stopping(*, speaks: bool = True) -> Iterator[Stop]:
    """Let signals ask a run to stop as long as it can be resumed, and otherwise do what they do; yield the wish.

    It has 3 s for its step and its state, and gives up the step then; after 4.5 s the process ends, whatever it is at.
    The last state that was saved stays. A second Ctrl-C ends it at once.

    Args:
        speaks: whether to say that the process has ended in the middle of a step.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python lets no other thread have handlers
        return
    caught = [number for number in (signal.SIGINT, *_FATAL) if signal.getsignal(number) is not signal.SIG_IGN]

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.can_resume:
            signal.setitimer(signal.ITIMER_REAL, _GIVE_UP_S)
            stop.ask(number)
        else:
            _hand_on(before[number], number, frame)

    # Known before any of them is replaced: a signal may come in between.
    before: dict[int, signal.Handlers | int | Callable[[int, FrameType | None], object] | None]
    before = {number: signal.getsignal(number) for number in (*caught, signal.SIGALRM)}
    try:
        for one in caught:
            signal.signal(one, ask)
        signal.signal(signal.SIGALRM, lambda number, frame: stop.give_up())
        with _watching(stop, caught, speaks=speaks):
            yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watching(stop: Stop, caught: Collection[int], *, speaks: bool) -> Iterator[None]:
    """Watch for signals in a thread of its own, as long as the block lasts, and end a process that does not stop.

    Python's handlers wait for the main thread, which may be in the middle of a long call of torch.
    """
    here, there = socket.socketpair()
    there.setblocking(False)

    def watch() -> None:
        end, first = math.inf, 0
        while True:
            here.settimeout(None if math.isinf(end) else max(0.0, end - time.monotonic()))
            try:
                numbers = here.recv(64)
            except TimeoutError:
                _end_in_a_step(stop, exit_code_of(first), speaks=speaks)
            if not numbers:  # the block is left
                return
            for number in numbers:
                if number not in caught or not stop.can_resume:
                    continue
                if math.isinf(end):
                    end, first = time.monotonic() + _END_S, number
                elif number == signal.SIGINT:
                    os._exit(exit_code_of(number))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        there.close()
        watcher.join()
        here.close()


def _end_in_a_step(stop: Stop, code: int, *, speaks: bool) -> NoReturn:
    """End the process from another thread than the one that makes the step, its state saved where that can be."""
    if stop.rescue:
        saving = threading.Thread(target=stop.rescue, daemon=True)
        saving.start()
        saving.join(_RESCUE_S)
    if speaks:
        os.write(2, b"error: stopped in the middle of a step; the last state that was saved stays\n")
    os._exit(code)


def _hand_on(handler: object, number: int, frame: FrameType | None) -> None:
    """Do what a signal did before."""
    if callable(handler):
        handler(number, frame)
    else:  # the process's own way
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
