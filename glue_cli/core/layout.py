"""The layout of a safetensors file that glue writes, fixed before its first byte."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from glue_cli.core.checkpoint import DTYPE_BYTES, TensorEntry

_DTYPE_ORDER = {dtype: rank for rank, dtype in enumerate(DTYPE_BYTES)}


def metadata_of(glue: Mapping[str, Any]) -> dict[str, str]:
    """Return the two metadata keys of a checkpoint that glue writes; both sorted, for equal bytes.

    In ASCII, since a file's name need not be text that the header could hold otherwise.
    """
    return {"format": "pt", "glue": json.dumps(glue, sort_keys=True)}


def place(tensors: Iterable[tuple[str, str, tuple[int, ...]]], file: int = 0) -> list[TensorEntry]:
    """Place tensors (name, dtype, shape) as safetensors does: wide dtypes first, then by name, without holes.

    Returns:
        the entries in file order, of file number `file`; offsets count from the end of the header.
    """
    entries: list[TensorEntry] = []
    position = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-_DTYPE_ORDER[tensor[1]], tensor[0].encode())):
        entries.append(TensorEntry(name, dtype, shape, file, position))
        position += entries[-1].n_bytes
    return entries


def header_of(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Return a file's header for placed tensors, its length in front, padded to 8 bytes."""
    lines = [f'"__metadata__":{_compact(dict(sorted(metadata.items())))}'] if metadata else []
    for name, dtype, shape, _, offset in entries:  # written out: objects for 100,000 tensors would take 60 MB
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        dimensions = ",".join(map(str, shape))
        lines.append(f'{_compact(name)}:{{"dtype":"{dtype}","shape":[{dimensions}],"data_offsets":[{offset},{end}]}}')
    text = ("{" + ",".join(lines) + "}").encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
