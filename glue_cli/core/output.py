"""Output files: checked before the work begins, and there whole or not at all. Needs no torch."""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from glue_cli.core.errors import ResourceError, UsageError


def check_output(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output that is an input, exists without `force`, or lies where nothing can be written.

    Raises:
        UsageError: it is an input (`force` or not), a folder, or exists.
        ResourceError: its folder, or the nearest one that exists above it, cannot be written.
    """
    for path in inputs:
        if output.exists() and path.exists() and os.path.samefile(output, path):
            raise UsageError(f"the output '{output}' is also an input", hint="name another file with --output")
    if output.is_dir():
        raise UsageError(f"the output '{output}' is a folder", hint="name a file with --output")
    if output.exists() and not force:
        raise UsageError(f"the output '{output}' exists", hint="name another with --output, or give --force")
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(f"nothing can be written in '{folder}'", hint="name another place with --output")


@contextmanager
def writing(output: Path) -> Iterator[int]:
    """Open a temporary file beside `output`; on success flush it to disk and give it the name, else remove it.

    Yields:
        the file's descriptor, open for reading and writing.
    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, output)
        _sync_folder(output.parent)
    except OSError as error:
        hint = "free some space, or name another place with --output" if error.errno == errno.ENOSPC else None
        raise ResourceError(f"'{output}' cannot be written: {error.strerror}", hint=hint) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def reserve(descriptor: int, n_bytes: int) -> None:
    """Claim the whole size at once, so that a full disk shows before the work; where the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    except AttributeError:  # not a Linux
        os.ftruncate(descriptor, n_bytes)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems refuse; the rename has happened all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
