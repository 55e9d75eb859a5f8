"""Checkpoints as they lie on disk: safetensors headers, sharded indexes and Hugging Face folders.

Needs no torch, but for the files that torch wrote.
"""

import gc
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from glue_cli.core.errors import CheckpointError, UsageError

# Bytes an element, in the order in which safetensors sorts dtypes within a file (last first).
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "C64": 8,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
TORCH_SUFFIXES = (".pt", ".pth", ".bin")

_WRONG_FILE = "check that the file is a complete safetensors file; copy or download it again"


class TensorEntry(NamedTuple):
    """Where one tensor lies: `n_bytes` at `offset` of the checkpoint's file number `file`, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """The headers of one checkpoint: one file, or the shards of an index.

    Attributes:
        path: as the user gave it.
        files: the files of tensors, absolute positions of `TensorEntry.file`.
        entries: every tensor, by name.
        metadata: the files' `__metadata__` together.
        stamps: each file's size and time of change when its header was read; see `stamp_of`.
    """

    path: Path
    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    stamps: tuple[tuple[int, int], ...]

    @property
    def glue(self) -> dict[str, Any]:
        """What glue wrote about this checkpoint; empty for one that glue did not write."""
        try:
            found = json.loads(self.metadata.get("glue", "{}"))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self.entries.values())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the header of a `.safetensors` file, of an index's shards, or of a Hugging Face model folder.

    Files of the suffixes in `TORCH_SUFFIXES` are read as those of `torch.save`.

    Raises:
        UsageError: there is nothing at `path`.
        CheckpointError: it is no checkpoint, or a damaged one.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UsageError(f"no checkpoint at '{path}'", hint="check the path")
    if path.name.endswith(".index.json"):
        return _read_index(path, path)
    return _read_single(path, path)


@contextmanager
def paused_collection() -> Iterator[None]:
    """Let Python not look for garbage in cycles while the many small objects of a long header are made.

    It would look at all of them again and again: 100,000 tensors took 0.86 s to parse, and take 0.39.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def stamp_of(descriptor: int) -> tuple[int, int]:
    """Return what changes when somebody writes to an open file: its size and time of change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _read_folder(folder: Path) -> Checkpoint:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{name}.index.json", folder / name
        if index.exists():
            return _read_index(folder, index)
        if single.exists():
            return _read_single(folder, single)
    raise CheckpointError(
        f"the folder '{folder}' holds no model.safetensors or pytorch_model.bin, and no index of either",
        hint="name a checkpoint's file, an index, or a Hugging Face model folder",
    )


def _read_single(path: Path, file: Path) -> Checkpoint:
    entries, metadata, stamp = _read_header(file, 0)
    return Checkpoint(path, (file,), entries, metadata, (stamp,))


def _read_index(path: Path, index: Path) -> Checkpoint:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        files = tuple(index.parent / name for name in names)
    except OSError as error:
        raise CheckpointError(f"'{index}' cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"'{index}' is no index of shards: {error!r}", hint=_WRONG_FILE) from None
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"'{index}' names shards outside its own folder", items=outside, hint=_WRONG_FILE)
    missing = [str(file) for file in files if not os.path.exists(file)]  # Path.exists raises where a name is too long
    if missing:
        raise CheckpointError(f"'{index}' names shards that are not there", items=missing, hint="copy them beside it")
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    stamps = []
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        shard_entries, shard_metadata, stamp = _read_header(file, number)
        entries |= {tensor: entry for tensor, entry in shard_entries.items() if weight_map.get(tensor) == name}
        metadata |= shard_metadata
        stamps.append(stamp)
    lacking = sorted(set(weight_map) - set(entries))
    if lacking:
        raise CheckpointError(f"'{index}' names tensors that its shards lack", items=lacking, hint=_WRONG_FILE)
    return Checkpoint(path, files, {name: entries[name] for name in sorted(weight_map)}, metadata, tuple(stamps))


def _read_header(path: Path, number: int) -> tuple[dict[str, TensorEntry], dict[str, str], tuple[int, int]]:
    if path.suffix in TORCH_SUFFIXES:
        from glue_cli.core.torch_file import read_torch_header

        return read_torch_header(path, number)
    try:
        with open(path, "rb") as file:
            file_bytes, _ = stamp = stamp_of(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or length > file_bytes - 8:
                what = "is cut short" if length <= MAX_HEADER_BYTES else "is not a safetensors file"
                raise CheckpointError(
                    f"'{path}' {what}: its header claims {length:,} bytes, the file has {file_bytes:,}",
                    hint=_WRONG_FILE,
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"'{path}' has a header of {length:,} bytes, more than the {MAX_HEADER_BYTES:,} that are allowed",
                    hint=_WRONG_FILE,
                )
            with paused_collection():
                header = json.loads(file.read(length).decode())
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"'{path}' is not a safetensors file: its header is no JSON", hint=_WRONG_FILE) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"'{path}' is not a safetensors file: its header is no object", hint=_WRONG_FILE)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"'{path}' is not a safetensors file: its metadata are no texts", hint=_WRONG_FILE)
    with paused_collection():
        entries = {name: _entry(path, number, name, info, 8 + length) for name, info in header.items()}
        _check_coverage(path, header, file_bytes - 8 - length)
    return entries, metadata, stamp


def _entry(path: Path, number: int, name: str, info: Any, data_start: int) -> TensorEntry:
    try:
        name.isascii() or name.encode()  # JSON can write half a character, which is no name
        dtype, shape, (begin, end) = info["dtype"], info["shape"], info["data_offsets"]
        if not isinstance(dtype, str) or not isinstance(shape, list):
            raise ValueError
        for n in (*shape, begin, end):
            if type(n) is not int or not 0 <= n < 2**63:
                raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"'{path}': the header's entry of '{name}' is wrong: {info}", hint=_WRONG_FILE) from None
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(f"'{path}': '{name}' has the dtype '{dtype}', which glue does not know")
    if math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise CheckpointError(
            f"'{path}': '{name}' is {dtype} {shape}, but has {end - begin:,} bytes", hint=_WRONG_FILE
        )
    return TensorEntry(name, intern(dtype), tuple(shape), number, data_start + begin)


def _check_coverage(path: Path, header: Mapping[str, Any], data_bytes: int) -> None:
    """Check that the tensors follow each other without holes or overlaps and end where the file ends.

    Args:
        header: its entries, each one right by itself.
        data_bytes: the size of the file behind the header.
    """
    position, previous = 0, "the header"
    for begin, end, name in sorted((*info["data_offsets"], name) for name, info in header.items()):
        if begin != position:
            what = "overlaps" if begin < position else "leaves a hole after"
            raise CheckpointError(f"'{path}': '{name}' {what} {previous}", hint=_WRONG_FILE)
        position, previous = end, f"'{name}'"
    if position != data_bytes:
        what = "is cut short" if data_bytes < position else "has bytes behind its last tensor"
        raise CheckpointError(
            f"'{path}' {what}: its header asks for {position:,} bytes of tensors, the file has {data_bytes:,}",
            hint=_WRONG_FILE,
        )
