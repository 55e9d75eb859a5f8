"""The errors that glue reports, each with its exit code.

GlueError
├── UsageError       2   the command line
├── SpecError        3   the spec is wrong
│   └── UnfinishedSpecError  its model or data are still to be chosen
├── CheckpointError  3   a checkpoint is wrong, or does not fit the others
├── DataError        3   a data set is wrong, or does not fit the model
├── NumericalError   4   numbers became NaN or infinite while training or mixing
├── ResourceError    5   a device, memory or the disk is missing, full or cannot be used
│   └── PrecisionError   the model does not run in a precision on this device
└── GateMissedError  6   a checkpoint missed a limit that the user had set
"""

from collections.abc import Sequence

UNREADABLE = "look at the file's permissions and its disk"  # the hint on a file that the system does not give


class GlueError(Exception):
    """An error that the user can do something about.

    Args:
        message: what is wrong and where, with the value there and the value that is wanted.
        items: several faults of the same kind, one line each.
        hint: what to do next.
    Attributes:
        n_shown: how many of the items are printed; None for all.
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
    n_shown = None  # every item is a fault of its own, which the user has to correct


class UnfinishedSpecError(SpecError):
    pass


class CheckpointError(GlueError):
    exit_code = 3


class DataError(GlueError):
    exit_code = 3


class NumericalError(GlueError):
    exit_code = 4


class ResourceError(GlueError):
    exit_code = 5


class PrecisionError(ResourceError):
    pass


class GateMissedError(GlueError):
    exit_code = 6
