"""Caches of tensors in files with checksums; a damaged file is ignored."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from glue_cli.checkpoints.tensors import bytes_of, write_checkpoint
from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.regular_files import regular

_READ_BYTES = 1 << 24


def write_cache(path: Path, tensors: Mapping[str, Tensor], what: str, progress: Progress) -> None:
    """Write tensors with their checksums; a failure to write is only reported.

    Args:
        what: what the tensors are, such as "decoded images".
    """
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    try:
        write_checkpoint(path, tensors, {"kind": what, "crc32": checksums})
    except ResourceError as error:
        progress(Noted(f"the {what} are not cached: {error.message}", warning=True))


def read_cache(path: Path) -> dict[str, Tensor] | None:
    """Return the memory-mapped tensors of a cache file, or None if it is missing or damaged.

    Cost: reads the whole file once to verify its checksums.
    """
    try:
        with safe_open(path, framework="pt") as file:
            checksums = json.loads((file.metadata() or {})["glue"])["crc32"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError):  # the library's own and torch's
        return None
    is_whole = {name: _checksum(tensor) for name, tensor in tensors.items()} == checksums
    return tensors if is_whole else None


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file.

    Raises:
        OSError: it cannot be read.
    """
    checksum = 0
    with open(path, "rb", opener=regular) as file:
        while part := file.read(_READ_BYTES):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's dtype, shape and bytes."""
    checksum = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(bytes_of(tensor.contiguous()), checksum)
