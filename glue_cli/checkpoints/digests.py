"""The sha256 of files, remembered in the user's cache folder for as long as the files do not change. Needs no torch.

A file is known by its device and inode, its size, and its modification and change times in nanoseconds. No program can
set a change time: a file with new content is another file, even if its modification time was set back. One that is
still written to through a memory map may change without either; an expert that somebody trains is no expert yet. The
names of files in the Hub's cache, which are digests, are not believed: what a blend records was computed from what was
read.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from glue_cli.foundation.output_files import write_all, writing
from glue_cli.foundation.regular_files import regular

# Changes that follow each other within a tick of the file system's clock leave the same times. The coarsest clock in
# use, that of FAT, ticks every 2 s.
_TICK_NS = 2_000_000_000
_MOST = 2048  # how many digests are kept; the oldest are forgotten first
_MOST_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def identify(files: Sequence[Path]) -> str | None:
    """Return what tells these files, in this order, from any others and from themselves once they have changed.

    Returns:
        a sha256 of their inodes, sizes and times; None if one is missing, or changed so lately that another change may
        leave the same times.
    """
    identity = []
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            return None
        times = status.st_mtime_ns, status.st_ctime_ns
        if max(times) > time.time_ns() - _TICK_NS:
            return None
        identity.append((status.st_dev, status.st_ino, status.st_size, *times))
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


class Digests:
    """The digests that are remembered in a file of the cache folder, by what `identify` returned.

    A file that is damaged, too large, or not ours counts as empty.

    Args:
        folder: the cache folder; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / "digests" if folder else None

    def read(self) -> dict[str, str]:
        """Return all remembered digests, the oldest first."""
        if self._file is None:
            return {}
        try:
            with open(self._file, "rb", opener=regular) as file:
                checksum, _, text = file.read(_MOST_BYTES).partition(b"\n")
            if checksum.decode() != hashlib.sha256(text).hexdigest():
                return {}
            digests = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return {}
        is_ours = isinstance(digests, dict) and all(_is_digest(text) for pair in digests.items() for text in pair)
        return digests if is_ours else {}

    def add(self, digests: Mapping[str, str]) -> None:
        """Remember digests by what `identify` returned before and after they were computed.

        Raises:
            ResourceError: the file cannot be written.
        """
        if self._file is None or not digests:
            return
        known = {key: digest for key, digest in self.read().items() if key not in digests}
        newest = [*known.items(), *digests.items()][-_MOST:]
        text = json.dumps(dict(newest)).encode()
        with writing(self._file) as descriptor:
            write_all(descriptor, hashlib.sha256(text).hexdigest().encode() + b"\n" + text, 0)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None
