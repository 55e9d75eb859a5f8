"""Output files: check them before the work begins, and write them completely or not at all. Needs no torch."""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from glue_cli.foundation.errors import UNREADABLE, CheckpointError, ResourceError, UsageError
from glue_cli.foundation.regular_files import read_bytes
from glue_cli.foundation.temporary_files import is_temporary, locked_file, remove_abandoned
from glue_cli.foundation.units import size

# The errors of file systems that have no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def check_output(output: Path, inputs: Sequence[Path], *, force: bool, option: str = "--output") -> None:
    """Refuse an output that is an input, that exists (without `force`), or whose folder cannot be written.

    Args:
        option: the option that names the output, for the messages.
    Raises:
        UsageError: the output is an input (even with `force`), is a folder, or exists.
        ResourceError: its folder cannot be written; if it does not exist, the nearest folder above that exists.
    """
    refuse_input(output, inputs, option=option)
    if output.is_dir():
        raise UsageError(f"the output '{output}' is a folder", hint=f"name a file with {option}")
    if output.is_symlink() and not output.exists():
        raise UsageError(
            f"the output '{output}' is a link to nothing", hint=f"remove it, or name another with {option}"
        )
    if output.exists() and not output.is_file():
        raise UsageError(f"the output '{output}' is no regular file", hint=f"name another file with {option}")
    if output.exists() and not force:
        raise UsageError(f"the output '{output}' exists", hint=f"name another with {option}, or give --force")
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(f"nothing can be written in '{folder}'", hint=f"name another folder with {option}")


def refuse_input(output: Path, inputs: Sequence[Path], *, option: str = "--output") -> None:
    """Refuse an output that is an input.

    Raises:
        UsageError: the output is one of the inputs.
    """
    for path in inputs:
        if output.exists() and path.exists() and os.path.samefile(output, path):
            raise UsageError(f"the output '{output}' is also an input", hint=f"name another file with {option}")


def check_output_folder(folder: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output folder that is an input, that is a file, or that is not empty (without `force`).

    Raises:
        UsageError: the folder is refused.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"the output '{folder}' is a file", hint="name a folder with --output")
    if any(path.exists() and os.path.samefile(folder, path) for path in inputs):
        raise UsageError(f"the output '{folder}' is also an input", hint="name another folder with --output")
    if any(folder.iterdir()) and not force:
        raise UsageError(f"the output '{folder}' exists", hint="name another with --output, or give --force")


def check_room(output: Path, n_bytes: int) -> None:
    """Refuse an output of `n_bytes` if the disk has too little free space.

    A file that it replaces takes its space until the new one is complete, so that does not count as free.

    Raises:
        ResourceError: there is too little free space.
    """
    folder = output.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ResourceError(
            f"'{output}' takes {size(n_bytes)}, and {size(free)} are free in '{folder}'",
            hint="free some space, or name another folder with --output",
        )


class _TakenError(UsageError):
    """Somebody else has created the output while its file was being written."""


def write_once(output: Path, content: bytes) -> bool:
    """Write a small file unless it exists; if several processes try at once, only the first one writes it.

    Readers never see an incomplete file.

    Returns:
        whether this call has written the file.
    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    try:
        with writing(output, replace=False) as descriptor:
            write_all(descriptor, content, 0)
    except _TakenError:
        return False
    return True


@contextmanager
def writing(
    output: Path, *, replace: bool = True, smaller: str | None = None, option: str = "--output"
) -> Iterator[int]:
    """Open a temporary file beside `output`; on success flush it to disk and rename it, else remove it.

    The temporary file is locked as long as the process that writes it lives. Temporary files in the folder that killed
    processes have left are removed.

    Args:
        replace: whether to replace an `output` that somebody else has created in the meantime.
        smaller: how the user can have smaller files, where that can be, for a file system or a limit that wants such.
        option: the option that names the output, for the messages.
    Yields:
        the file's descriptor, open for reading and writing.
    Raises:
        UsageError: `output` exists and may not be replaced.
        ResourceError: the disk is full or the folder cannot be written.
    """
    with made_folder(output.parent, option):
        try:
            remove_abandoned(output.parent)
            with locked_file(output.parent) as (temporary, descriptor):
                try:
                    yield descriptor
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                _give_name(temporary, output, replace=replace, option=option)
            _sync_folder(output.parent)
        except OSError as error:
            raise _cannot_write(output, error, smaller, option) from error


@contextmanager
def made_folder(folder: Path, option: str = "--output") -> Iterator[None]:
    """Make a folder and those above it; behind the block, those of them that stayed empty go again.

    Raises:
        ResourceError: it cannot be made.
    """
    made = _make_folder(folder, option)
    try:
        yield
    finally:
        _remove_empty(made)


def _give_name(temporary: Path, output: Path, *, replace: bool, option: str) -> None:
    """Rename a finished file to `output` in one step."""
    if replace:
        os.replace(temporary, output)
        return
    try:
        os.link(temporary, output)  # unlike a rename, this fails if the file exists
    except FileExistsError:
        raise _taken(output, option) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _claim(output, option)
        os.replace(temporary, output)


def _claim(output: Path, option: str) -> None:
    """Create an empty output file, which fails if the file exists; for file systems without links."""
    try:
        os.close(os.open(output, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    except FileExistsError:
        raise _taken(output, option) from None


def _taken(output: Path, option: str = "--output") -> _TakenError:
    message = f"another run has written the output '{output}' in the meantime"
    return _TakenError(message, hint=f"name another with {option}, or give --force")


@contextmanager
def writing_alone(folder: Path, *, replace: bool = True) -> Iterator[None]:
    """Make an output folder if it is missing, and keep other runs from writing into it while the block runs.

    Otherwise a folder could get the weights of one run and the configuration of another.

    Args:
        replace: whether files that have been created in it in the meantime may be replaced.
    Raises:
        UsageError: another run is writing into the folder, or has written files that may not be replaced.
        ResourceError: the folder cannot be made or opened.
    """
    made = _make_folder(folder)
    try:
        descriptor = _open_folder(folder)
        try:
            _lock(folder, descriptor)
            if not replace and any(not is_temporary(path) for path in folder.iterdir()):
                raise _taken(folder)
            yield
        finally:
            os.close(descriptor)
    finally:
        _remove_empty(made)


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another run is writing into '{folder}'", hint="name another with --output") from None
    except OSError:
        return  # a file system without locks


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove new folders that are empty because the work failed; the innermost folder comes first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _make_folder(folder: Path, option: str = "--output") -> list[Path]:
    """Make a folder and those above it; return the new ones, the innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
    except OSError as error:
        raise _cannot_write(new, error, option=option) from error
    return missing


def _cannot_write(path: Path, error: OSError, smaller: str | None = None, option: str = "--output") -> ResourceError:
    remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder"
    if error.errno == errno.EFBIG:
        remedy = smaller or "raise the limit (ulimit -f)"
    return ResourceError(
        f"'{path}' cannot be written: {error.strerror}", hint=f"{remedy}, or name another with {option}"
    )


def reserve(descriptor: int, n_bytes: int) -> None:
    """Reserve the whole size of a file, if the file system can, so that a full disk is noticed before the work."""
    error = _fallocate(descriptor, n_bytes)
    if error not in (0, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
        raise OSError(error, os.strerror(error))


def _fallocate(descriptor: int, n_bytes: int) -> int:
    """Reserve blocks with Linux's `fallocate`; return the error's number, or 0.

    Not with `posix_fallocate`: on file systems that cannot reserve, such as NFS 3, it writes a byte into every block.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "fallocate"):
        return errno.ENOSYS
    start, length = ctypes.c_longlong(0), ctypes.c_longlong(n_bytes)
    return ctypes.get_errno() if library.fallocate(descriptor, 0, start, length) else 0


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems refuse; the rename has happened all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_into(descriptor: int, source: Path) -> None:
    """Copy a small file, such as a configuration, into an open one.

    Raises:
        CheckpointError: the source cannot be read.
    """
    try:
        content = read_bytes(source)
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
    write_all(descriptor, content, 0)


def write_all(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view, written = memoryview(data), 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)
