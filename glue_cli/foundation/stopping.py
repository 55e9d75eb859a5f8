"""The wish that a run stops, as signals bring it: at once, or between two of its steps. Needs no torch."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STOPPED = 75  # the exit code that sysexits.h has for "try again"
INTERRUPTED = 130


class Stopped(BaseException):
    """A run is stopped by a signal; no `Exception`, which libraries would swallow.

    Attributes:
        number: the signal's.
        state: the file of the state that the run goes on from; None where none was saved.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.state: Path | None = None

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.number)

    @property
    def by(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name


class Lost(Stopped):
    """A run of several processes is stopped because another of them has ended."""

    def __init__(self) -> None:
        super().__init__(0)

    @property
    def by(self) -> str:
        return "the end of another process of the job"


def exit_code_of(number: int) -> int:
    """Return the exit code of a run that a signal has stopped, and that `--resume` lets go on."""
    return INTERRUPTED if number == signal.SIGINT else STOPPED


class Stop:
    """Whether a run is to stop.

    Attributes:
        asked_by: the number of the first signal that has asked for it; None so far.
        can_resume: whether the run is one that a later one goes on with.
        rescue: saves the state before the step, from any thread, if the step does not end; None where that cannot be.
    """

    def __init__(self) -> None:
        self.asked_by: int | None = None
        self.can_resume = False
        self.rescue: Callable[[], None] | None = None
        self._is_deferred = False

    def ask(self, number: int) -> None:
        """Ask the run to stop, after its step where it makes steps.

        Raises:
            Stopped: it makes none at the moment.
        """
        if self.asked_by is None:
            self.asked_by = number
            if not self._is_deferred:
                raise Stopped(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block, which makes steps, go on until it looks whether it is asked to stop."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def give_up(self) -> None:
        """Stop in the middle of a step that takes too long.

        Raises:
            Stopped: always where it was asked to.
        """
        if self.asked_by is not None:
            raise Stopped(self.asked_by)
