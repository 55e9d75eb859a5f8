"""Read a few numbers of a tensor. Needs no torch."""

import struct
from collections.abc import Sequence

from glue_cli.checkpoints.files import read_start
from glue_cli.checkpoints.header import DTYPE_BYTES, Checkpoint

_FORMATS = {"F32": "f", "F64": "d", "F16": "e"}


def read_numbers(checkpoint: Checkpoint, name: str, most: int) -> Sequence[float]:
    """Return the first numbers of a tensor, at most so many; none if it is not there, or of another dtype than usual.

    Raises:
        CheckpointError: its file cannot be read, or changed since its header was read.
    """
    entry = checkpoint.entries.get(name)
    if entry is None or entry.dtype not in (*_FORMATS, "BF16"):
        return ()
    content = read_start(checkpoint, entry, most * DTYPE_BYTES[entry.dtype])
    n = len(content) // DTYPE_BYTES[entry.dtype]
    if entry.dtype == "BF16":  # the upper halves of float32
        halves = struct.unpack(f"<{n}H", content)
        return struct.unpack(f"<{n}f", struct.pack(f"<{n}I", *(half << 16 for half in halves)))
    return struct.unpack(f"<{n}{_FORMATS[entry.dtype]}", content)
