"""The layout of a safetensors file that glue writes, fixed before its first byte."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from glue_cli.core.checkpoint import DTYPE_BYTES, TensorEntry

_DTYPE_ORDER = {dtype: rank for rank, dtype in enumerate(DTYPE_BYTES)}


def metadata_of(glue: Mapping[str, Any]) -> dict[str, str]:
    """Return the two metadata keys of a checkpoint that glue writes; both sorted, for equal bytes.

    In ASCII, since a file's name need not be text that the header could hold otherwise.
    """
    return {"format": "pt", "glue": json.dumps(glue, sort_keys=True)}


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[TensorEntry]]:
    """Place tensors (name, dtype, shape) as safetensors does: wide dtypes first, then by name, without holes.

    Returns:
        the header with its length in front, padded to 8 bytes; and the entries in file order, offsets from the
        file's start.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_DTYPE_ORDER[tensor[1]], tensor[0].encode()))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    relative: list[TensorEntry] = []
    position = 0
    for name, dtype, shape in ordered:
        entry = TensorEntry(name, dtype, shape, 0, position)
        end = position + entry.n_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        relative.append(entry)
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    entries = [TensorEntry(e.name, e.dtype, e.shape, 0, start + e.offset) for e in relative]
    return len(text).to_bytes(8, "little") + text, entries
