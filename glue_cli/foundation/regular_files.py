"""Files that are read as files: a FIFO would be waited for and a device read for ever, so both are refused."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file; made to be the `opener` of `open`.

    Returns:
        its descriptor.
    Raises:
        OSError: there is no such file, or it is a folder, FIFO, device or socket.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # or opening a FIFO waits for its writer
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return what a regular file holds.

    Raises:
        OSError: as for `regular`, or it cannot be read.
    """
    with open(path, "rb", opener=regular) as file:
        return file.read()


def read_text(path: Path) -> str:
    """Return what a regular file in UTF-8 holds.

    Raises:
        OSError: as for `regular`, or it cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    with open(path, encoding="utf-8", opener=regular) as file:
        return file.read()


def find_irregular(paths: Iterable[Path]) -> Path | None:
    """Return the first of what is there that is neither a regular file nor a folder, links followed."""
    return next((path for path in paths if path.exists() and not path.is_file() and not path.is_dir()), None)
