"""sha256 of the experts, from the blocks that a blend has read anyway."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Condition

from glue_cli.core.checkpoint import Checkpoint
from glue_cli.core.tensors import open_files, read_into

_READ_BYTES = 1 << 20


def hash_of(checkpoint: Checkpoint) -> str:
    """Return the sha256 of a checkpoint's files one after another, in hexadecimal."""
    with open_files(checkpoint) as descriptors:
        return StreamedHash(checkpoint.files, descriptors).finish()


class StreamedHash:
    """The sha256 of an expert's files one after another, fed with parts of them as they come by.

    Parts must be given in the files' order; what lies between them is read here.
    """

    def __init__(self, files: Sequence[Path], descriptors: Sequence[int]) -> None:
        self._files, self._descriptors = files, descriptors
        self._sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
        self._sha256 = hashlib.sha256()
        self._file, self._position = 0, 0
        self._turn, self._turned, self._stopped = 0, Condition(), False

    def update(self, turn: int, file: int, offset: int, part: memoryview) -> None:
        """Add the bytes `part` at `offset` of file number `file`; waits until the turns before this one are done."""
        with self._turned:
            self._turned.wait_for(lambda: self._turn == turn or self._stopped)
            if not self._stopped:
                self._catch_up(file, offset)
                self._sha256.update(part)
                self._position += len(part)
            self._turn += 1
            self._turned.notify_all()

    def stop(self) -> None:
        """Let go of everyone who waits: the blend has failed."""
        with self._turned:
            self._stopped = True
            self._turned.notify_all()

    def finish(self) -> str:
        """Read what is left and return the digest in hexadecimal."""
        self._catch_up(len(self._files), 0)
        return self._sha256.hexdigest()

    def _catch_up(self, file: int, offset: int) -> None:
        while self._file < file:
            self._read_to(self._sizes[self._file])
            self._file, self._position = self._file + 1, 0
        if file < len(self._files):
            self._read_to(offset)

    def _read_to(self, offset: int) -> None:
        while self._position < offset:
            part = memoryview(bytearray(min(_READ_BYTES, offset - self._position)))
            read_into(self._descriptors[self._file], part, self._position, self._files[self._file])
            self._sha256.update(part)
            self._position += len(part)
