"""sha256 of the experts, computed from the blocks that a blend reads anyway. Needs no torch."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Condition, Event, Thread

from glue_cli.checkpoints.digests import identify
from glue_cli.checkpoints.files import announce, open_file, read_into
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.errors import CheckpointError, ResourceError

SHOWN_DIGITS = 12  # of a digest, in tables and messages
_READ_BYTES = 1 << 20
# Larger reads ahead, since between two of them the thread may wait for the interpreter, which is busy with imports.
_AHEAD_BYTES = 32 << 20
# How long the imports may go on before they give way to the hash: by Python's default, a quarter of what a part takes.
_TURN_S = 0.0005


class StreamedHash:
    """The sha256 of an expert's files, one after another, updated with parts of them as a blend reads these.

    Parts must be given in the files' order; the bytes between them are read here.

    Args:
        wanted: the digest to expect; None to accept any.
        remembered: the digests of unchanged files, see `Digests`; if this expert's is among them, nothing is read.
    Attributes:
        identity: what `identify` returned of the files before they were read.
        is_remembered: whether the digest is a remembered one.
    """

    def __init__(
        self, expert: Checkpoint, wanted: str | None = None, *, remembered: Mapping[str, str] | None = None
    ) -> None:
        self._expert, self._wanted = expert, wanted
        self.identity = identify(expert.files)
        self._known = (remembered or {}).get(self.identity or "")
        self.is_remembered = self._known is not None
        self._sizes = [stamp.n_bytes for stamp in expert.stamps]
        self._sha256 = hashlib.sha256()
        self._file, self._position = 0, 0
        self._turn, self._turned, self._stopped = 0, Condition(), False

    def update(self, turn: int, file: int, offset: int, part: memoryview) -> None:
        """Add the bytes `part` at `offset` of file number `file`; waits until all turns before this one are done."""
        if self.is_remembered:
            return
        with self._turned:
            self._turned.wait_for(lambda: self._turn == turn or self._stopped)
            if not self._stopped:
                self.catch_up(file, offset)
                n_known = self._position - offset if self._file == file else len(part)
                if n_known < len(part):
                    self._sha256.update(part[n_known:])
                    self._position += len(part) - n_known
            self._turn += 1
            self._turned.notify_all()

    def stop(self) -> None:
        """Release all waiting threads, because the blend has failed."""
        with self._turned:
            self._stopped = True
            self._turned.notify_all()

    def read_ahead(self, enough: Event) -> None:
        """Read the files from the current position to their end, or until `enough` is set.

        Raises:
            CheckpointError: a file cannot be read, or changed since its header was read.
        """
        if self.is_remembered:
            return
        while self._file < len(self._sizes):
            self._read_to(self._sizes[self._file], _AHEAD_BYTES, enough)
            if enough.is_set():
                return
            self._file, self._position = self._file + 1, 0

    def finish(self) -> str:
        """Read what is left and return the digest in hexadecimal.

        Raises:
            CheckpointError: as for `read_ahead`, or the digest is not the expected one.
        """
        if self._known is not None:
            return self._known
        self.catch_up(len(self._sizes), 0)
        digest = self._sha256.hexdigest()
        if self._wanted not in (None, digest):
            raise CheckpointError(
                f"'{self._expert.path}' is not what the blend was made from in its place: "
                f"its sha256 is {digest[:SHOWN_DIGITS]}, wanted {(self._wanted or '')[:SHOWN_DIGITS]}",
                hint="name the files that it was made from; glue show BLEND lists them",
            )
        return digest

    def worth_remembering(self) -> dict[str, str]:
        """Return the finished digest by the files' identity; empty if they changed, or just had when it was begun."""
        if self.identity is None or self.is_remembered or identify(self._expert.files) != self.identity:
            return {}
        return {self.identity: self._sha256.hexdigest()}

    def catch_up(self, file: int, offset: int) -> None:
        """Read on up to `offset` of file number `file`; nothing where the hash is further already, or remembered.

        Raises:
            CheckpointError: as for `read_ahead`.
        """
        if self.is_remembered:
            return
        while self._file < file:
            self._read_to(self._sizes[self._file])
            self._file, self._position = self._file + 1, 0
        if self._file == file < len(self._sizes):
            self._read_to(offset)

    def _read_to(self, offset: int, at_once: int = _READ_BYTES, enough: Event | None = None) -> None:
        if self._position >= offset:
            return
        buffer = memoryview(bytearray(min(at_once, offset - self._position)))
        with open_file(self._expert, self._file) as descriptor:
            while self._position < offset and not (enough and enough.is_set()):
                part = buffer[: offset - self._position]
                announce(descriptor, self._position, 2 * len(part))  # the disk reads on while this part is hashed
                read_into(descriptor, part, self._position, self._expert.files[self._file])
                self._sha256.update(part)
                self._position += len(part)


@contextmanager
def hashing_ahead(hashes: Sequence[StreamedHash]) -> Iterator[None]:
    """Let a thread compute the hashes in turn, as far as it gets, while the block waits for other work."""
    enough = Event()

    def work() -> None:
        with suppress(CheckpointError, ResourceError):  # the blend will raise it again
            for streamed in hashes:
                streamed.read_ahead(enough)

    thread = Thread(target=work, daemon=True)  # so that a signal before the block does not have to wait for it
    turn_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(turn_s)
        enough.set()
        thread.join()
