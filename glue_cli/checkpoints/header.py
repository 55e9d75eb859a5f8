"""Checkpoints as they lie on disk: safetensors headers, sharded indexes and Hugging Face folders.

Needs no torch, but for the files that torch wrote.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glue_cli.checkpoints.hub import id_of
from glue_cli.foundation.batchnorm_names import COUNTER

# Bytes an element, in the order in which safetensors sorts dtypes within a file (last first).
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
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
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # the last of .pth.tar
# The weights of a Hugging Face folder, named alone.
_OF_A_FOLDER = re.compile(r"(pytorch_|diffusion_pytorch_)?model\.(safetensors|bin)(\.index\.json)?")
Described = tuple[str, str, tuple[int, ...]]  # a tensor's name, dtype and shape


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
        weights: which of several sets of weights in the file these are, by its name; None where it has one.
    """

    path: Path
    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    stamps: tuple[tuple[int, int], ...]
    weights: str | None = None

    @property
    def folder(self) -> Path | None:
        """The Hugging Face folder that it was read as; None for a file or an index."""
        return self.path if self.path.is_dir() else None

    @property
    def model_folder(self) -> Path | None:
        """The folder whose configuration and tokenizer belong to the weights: its own, or that around a file of it."""
        return self.folder or (self.path.parent if _OF_A_FOLDER.fullmatch(self.path.name) else None)

    @property
    def name(self) -> str:
        """What people know it by: its id on the Hub with the commit, or the path as the user gave it."""
        return str(id_of(self.path) or self.path)

    @property
    def short_name(self) -> str:
        """Its id on the Hub with the commit, or the last part of its path, which tells nothing of a machine."""
        return str(id_of(self.path) or self.path.name)

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


def stamp_of(descriptor: int) -> tuple[int, int]:
    """Return what changes when somebody writes to an open file: its size and time of change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def is_counter(entry: TensorEntry) -> bool:
    """Tell whether a tensor is BatchNorm's `num_batches_tracked`, whose blend is chosen and not copied."""
    return entry.name.endswith(COUNTER) and entry.dtype == "I64" and entry.n_elements == 1
