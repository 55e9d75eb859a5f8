"""Read regular files only: opening a FIFO could wait, and reading a device could go on, for ever."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file; to be used as the `opener` of `open`.

    Returns:
        its descriptor.
    Raises:
        OSError: there is no such file, or it is a folder, FIFO, device or socket.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # so that a FIFO is not waited for
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file; copy its content into one", str(path))


def is_there(path: Path) -> bool:
    """Tell whether there is something at a path: nothing at one that is too long, for which `Path.exists` raises."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: as `regular` does, or the file cannot be read.
    """
    with open(path, "rb", opener=regular) as file:
        return file.read()


def read_text(path: Path) -> str:
    """Return the text of a regular file in UTF-8.

    Raises:
        OSError: as `regular` does, or the file cannot be read.
        UnicodeDecodeError: the file is not UTF-8.
    """
    with open(path, encoding="utf-8", opener=regular) as file:
        return file.read()


def find_irregular(paths: Iterable[Path]) -> Path | None:
    """Return the first path to something other than a regular file or a folder, if any; links are followed."""
    return next((path for path in paths if path.exists() and not path.is_file() and not path.is_dir()), None)
