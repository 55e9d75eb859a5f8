"""What files of a stranger may become in memory: a few bytes can stand for any number of rows and texts."""

from collections.abc import Iterable
from pathlib import Path

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.units import size

# Both are generous: columns of labels become a thousand times larger, but are small; texts and images hardly grow.
_MOST_GROWTH, _ALWAYS_ALLOWED = 100, 512 << 20
ROW_BYTES = 8  # of the widest number


class Allowance:
    """The bytes that some files may become together: 512 MiB, or 100 times their size where that is more.

    Attributes:
        most: these bytes.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._n_here = sum(file.stat().st_size for file in files)
        self.most = max(_ALWAYS_ALLOWED, _MOST_GROWTH * self._n_here)
        self._n_taken = 0

    def take(self, file: Path, n_bytes: int) -> None:
        """Count bytes that a file becomes.

        Raises:
            DataError: all files together become more than allowed.
        """
        self._n_taken += n_bytes
        self.refuse_above(file, self._n_taken)

    def refuse_above(self, file: Path, n_bytes: int) -> None:
        """Refuse a file by which a number of bytes is above the allowed one.

        Raises:
            DataError: it is.
        """
        if n_bytes > self.most:
            raise DataError(
                f"'{file}' has {size(file.stat().st_size)} and becomes {size(n_bytes)} or more, above the "
                f"{size(self.most)} allowed for files of {size(self._n_here)}",
                hint="write its rows as text or as numbers, in JSON lines or safetensors, if all of that is meant",
            )
