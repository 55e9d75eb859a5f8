"""Checkpoints on disk: which tensors they have, and where in their files.

Needs no torch.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glue_cli.checkpoints.hub import id_of
from glue_cli.foundation.batchnorm_names import COUNTER

# Bytes per element; safetensors stores the last of these dtypes first.
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
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # .tar is the end of .pth.tar
# Names of weights that belong to the Hugging Face folder they are in.
_OF_A_FOLDER = re.compile(r"(diffusion_|open_clip_)?(pytorch_)?model(\.\w+)?\.(safetensors|bin)(\.index\.json)?")
Described = tuple[str, str, tuple[int, ...]]  # a tensor's name, dtype and shape


class TensorEntry(NamedTuple):
    """Where one tensor is: `n_bytes` at `offset` in the checkpoint's file number `file`, row-major."""

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


class Stamp(NamedTuple):
    """What tells that a file has changed since it was looked at: size, and when content and inode were last changed.

    Whoever writes a file can set `changed_ns` back, but not `inode_ns`.
    """

    n_bytes: int
    changed_ns: int
    inode_ns: int


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return short names that tell paths apart: ids on the Hub, or last parts, no more of them than it takes."""
    names = {path: str(id_of(path) or path.name) for path in paths}
    for n_parts in range(2, max((len(path.parts) for path in paths), default=0) + 1):
        n_of = Counter(names.values())
        alike = [path for path, name in names.items() if n_of[name] > 1 and not id_of(path)]
        names |= {path: str(Path(*path.parts[-n_parts:])) for path in alike}
    return [names[path] for path in paths]


def stem_of(weights: Path) -> str:
    """Return the name, without suffixes, by which a library finds the safetensors that replace these weights."""
    if weights.name.startswith("diffusion_"):
        return "diffusion_pytorch_model"
    return "open_clip_model" if weights.name.startswith("open_clip_") else "model"


@dataclass(frozen=True)
class Checkpoint:
    """The headers of one checkpoint: one file, or the shards of an index.

    Attributes:
        path: as the user gave it.
        files: the weights files; `TensorEntry.file` is an index into them.
        entries: every tensor, by name.
        metadata: the `__metadata__` of all files, merged.
        stamps: each file's when its header was read.
        weights: the name of the set of weights that was chosen in the file; None if it has only one.
        beside: what the file holds besides its one set of weights, and may belong to a model too.
    """

    path: Path
    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    stamps: tuple[Stamp, ...]
    weights: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The Hugging Face folder that was read; None for a file or an index."""
        return self.path if self.path.is_dir() else None

    @property
    def model_folder(self) -> Path | None:
        """The folder with the weights' configuration and tokenizer: `folder`, or the one that contains the file."""
        return self.folder or (self.path.parent if _OF_A_FOLDER.fullmatch(self.path.name) else None)

    @property
    def name(self) -> str:
        """The name for people: the id on the Hub with the commit, or the path as the user gave it."""
        return str(id_of(self.path) or self.path)

    @property
    def short_name(self) -> str:
        """The id on the Hub with the commit, or the last part of the path, which reveals nothing about the machine."""
        return str(id_of(self.path) or self.path.name)

    @property
    def glue(self) -> dict[str, Any]:
        """glue's metadata; empty for a checkpoint that glue did not write."""
        try:
            glue = json.loads(self.metadata.get("glue", "{}"))
        except (ValueError, RecursionError):
            return {}
        return glue if isinstance(glue, dict) else {}

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self.entries.values())


def stamp_of(descriptor: int) -> Stamp:
    """Return the stamp of an open file."""
    status = os.fstat(descriptor)
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def is_counter(entry: TensorEntry) -> bool:
    """Tell whether a tensor counts BatchNorm's batches or the models of an average; a blend's is computed."""
    return entry.name.endswith((COUNTER, "n_averaged")) and entry.dtype == "I64" and entry.n_elements == 1
