"""Read bytes from a checkpoint's files. Needs no torch."""

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from glue_cli.checkpoints.header import Checkpoint, TensorEntry, stamp_of
from glue_cli.foundation.errors import UNREADABLE, CheckpointError, ResourceError
from glue_cli.foundation.regular_files import regular

_READ_BYTES = 1 << 20
_WRITTEN = "run again when nobody writes to it"


@contextmanager
def open_file(checkpoint: Checkpoint, number: int) -> Iterator[int]:
    """Open one of a checkpoint's files for reading; yields its descriptor.

    Raises:
        CheckpointError: it cannot be opened, or changed since its header was read.
        ResourceError: too many files are open.
    """
    file = checkpoint.files[number]
    try:
        descriptor = regular(file)
    except OSError as error:
        message = f"'{file}' cannot be read: {error.strerror}"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise ResourceError(message, hint="raise the limit of open files: ulimit -n 4096") from None
        raise CheckpointError(message, hint=UNREADABLE) from None
    try:
        check_file(checkpoint, number, descriptor)
        yield descriptor
    finally:
        with suppress(OSError):  # it is closed all the same, and all that was read is right
            os.close(descriptor)


@contextmanager
def open_files(checkpoint: Checkpoint) -> Iterator[list[int]]:
    """Open all of a checkpoint's files, as `open_file` does one; yields their descriptors."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_file(checkpoint, number)) for number in range(len(checkpoint.files))]


def check_unchanged(checkpoint: Checkpoint, descriptors: Sequence[int]) -> None:
    """Check that none of a checkpoint's open files has changed, as `check_file` does for one."""
    for number, descriptor in enumerate(descriptors):
        check_file(checkpoint, number, descriptor)


def check_file(checkpoint: Checkpoint, number: int, descriptor: int) -> None:
    """Check that one of a checkpoint's files, which is open, has not changed since its header was read.

    Raises:
        CheckpointError: it has changed, or cannot be looked at.
    """
    file = checkpoint.files[number]
    try:
        is_unchanged = stamp_of(descriptor) == checkpoint.stamps[number]
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
    if not is_unchanged:
        raise CheckpointError(f"'{file}' changed while it was read", hint=_WRITTEN)


def read_into(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` from the file at `offset`.

    Raises:
        CheckpointError: the file ends before the buffer is full, or cannot be read.
    """
    filled = 0
    while filled < len(buffer):
        try:
            n_read = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
        if n_read == 0:
            raise CheckpointError(f"'{path}' became shorter while it was read", hint=_WRITTEN)
        filled += n_read


def read_pages(
    descriptor: int, buffer: memoryview, offset: int, n_needed: int, path: Path, *, past_cache: bool
) -> None:
    """Fill `buffer` from the file at `offset`, with `n_needed` bytes at least; the file may end before it is full.

    Past the page cache, nothing is copied by the CPU, and nothing else leaves the cache for it. Both `offset` and the
    buffer have to be whole pages then. Where the file's disk does not allow that, it is read as usual.

    Raises:
        CheckpointError: as `read_into`.
    """
    is_past = past_cache and _set_past_cache(descriptor, True)
    filled = 0
    while filled < n_needed:
        try:
            n_read = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        except OSError as error:
            if is_past and error.errno == errno.EINVAL and _set_past_cache(descriptor, False):
                is_past = False
                continue
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
        if n_read == 0:
            raise CheckpointError(f"'{path}' became shorter while it was read", hint=_WRITTEN)
        filled += n_read


def _set_past_cache(descriptor: int, is_past: bool) -> bool:
    """Let an open file be read past the page cache, or as usual; return whether it could be set."""
    if not hasattr(os, "O_DIRECT"):  # not on macOS
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if is_past else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return True


def announce(descriptor: int, offset: int, n_bytes: int) -> None:
    """Tell the system that a part of a file will be read soon, so that the disk does not wait for that; no more."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_WILLNEED)


def read_blocks(checkpoint: Checkpoint, entry: TensorEntry, n_bytes: int = _READ_BYTES) -> Iterator[bytes]:
    """Yield the bytes of one tensor, a block of `n_bytes` at a time.

    Raises:
        CheckpointError: its file cannot be read, or changed since its header was read.
    """
    with open_file(checkpoint, entry.file) as descriptor:
        for start in range(0, entry.n_bytes, n_bytes):
            block = bytearray(min(n_bytes, entry.n_bytes - start))
            read_into(descriptor, memoryview(block), entry.offset + start, checkpoint.files[entry.file])
            yield bytes(block)


def read_start(checkpoint: Checkpoint, entry: TensorEntry, n_bytes: int) -> bytes:
    """Return the first bytes of a tensor, at most `n_bytes`; errors as of `read_blocks`."""
    start = bytearray(min(n_bytes, entry.n_bytes))
    with open_file(checkpoint, entry.file) as descriptor:
        read_into(descriptor, memoryview(start), entry.offset, checkpoint.files[entry.file])
    return bytes(start)


def same_bytes(left: Checkpoint, entry: TensorEntry, right: Checkpoint, other: TensorEntry) -> bool:
    """Tell whether two tensors have the same dtype, shape and bytes.

    Raises:
        CheckpointError: as `read_blocks`.
    Cost: reads up to the first difference.
    """
    if (entry.dtype, entry.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(read_blocks(left, entry), read_blocks(right, other), strict=True)
    return all(here == there for here, there in pairs)
