"""Temporary files that are locked while the process that writes them lives, so that abandoned ones can be removed."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PATTERN = ".glue-*.tmp"


@contextmanager
def locked_file(folder: Path) -> Iterator[tuple[Path, int]]:
    """Make an empty file in `folder` that is locked while the block runs, and removed after it if it still exists.

    Yields:
        the file's path, and a descriptor for reading and writing, which the block has to close.
    Raises:
        OSError: the file cannot be made.
    """
    path, descriptor = _create(folder)
    lock = os.dup(descriptor)  # a lock ends when all descriptors of its file are closed
    try:
        yield path, descriptor
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def is_temporary(path: Path) -> bool:
    """Tell by its name whether a file was made by `locked_file`."""
    return path.match(_PATTERN)


def _create(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f".glue-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        is_taken = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_taken = True  # another run took it for abandoned, in the moment before it was locked
        except OSError:
            pass  # a file system without locks; there, no run removes anything
        if not is_taken and _is_at(path, descriptor):
            return path, descriptor
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes were killed; those of running processes stay."""
    for path in folder.glob(_PATTERN):
        with suppress(OSError):  # its process is running or has just finished, or the file system has no locks
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def held_file(path: Path) -> Iterator[bool]:
    """Hold a lock by the name of `path` as long as the block lasts; the file is there only meanwhile.

    Yields:
        whether the lock is this process's; not where a living one holds it. True on a file system without locks.
    Raises:
        OSError: the file cannot be made.
    """
    descriptor = _hold(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _hold(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            return descriptor
        if _is_at(path, descriptor):  # else its holder has just finished, and removed it
            return descriptor
        os.close(descriptor)
