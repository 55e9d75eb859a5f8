"""Every way in which glue refuses or fails, each with its exit code.

GlueError
├── UsageError       2   the command line
├── SpecError        3   the spec is wrong
├── CheckpointError  3   a checkpoint is wrong, or does not fit the others
├── DataError        3   a data set is wrong, or does not fit the model
├── NumericalError   4   the numbers went non-finite while training or mixing
├── ResourceError    5   device, memory or disk
└── GateMissedError  6   a bar that the user set was missed
"""

from collections.abc import Sequence


class GlueError(Exception):
    """A fault that the user can mend.

    Args:
        message: what is wrong and where, with what was found and what was wanted.
        items: several faults of one kind, a line each.
        hint: the next thing to do.
    Attributes:
        n_shown: how many of the items people are shown; None for all.
    """

    exit_code = 1
    n_shown: int | None = 5

    def __init__(self, message: str, *, items: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.items = tuple(items)
        self.hint = hint


class UsageError(GlueError):
    exit_code = 2


class SpecError(GlueError):
    exit_code = 3
    n_shown = None  # each is another fault, which has to be mended by hand


class CheckpointError(GlueError):
    exit_code = 3


class DataError(GlueError):
    exit_code = 3


class NumericalError(GlueError):
    exit_code = 4


class ResourceError(GlueError):
    exit_code = 5


class GateMissedError(GlueError):
    exit_code = 6
