"""Constants among the experts' tensors: masks with infinities, which are copied, not blended. Needs no torch."""

import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from glue_cli.blend.compatibility import exclusion
from glue_cli.checkpoints.files import open_file, read_blocks, same_bytes
from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.foundation.errors import CheckpointError

# By dtype: the memoryview format that reads numbers as integers, the bits of infinity, and the sign bit.
_FORMATS: dict[str, tuple[Literal["H", "I", "Q"], int, int]] = {
    "F16": ("H", 0x7C00, 1 << 15),
    "BF16": ("H", 0x7F80, 1 << 15),
    "F32": ("I", 0x7F80_0000, 1 << 31),
    "F64": ("Q", 0x7FF0_0000_0000_0000, 1 << 63),
}
_SAMPLE_BYTES = 4096
_MASK = re.compile(r"mask|causal|tril|triu", re.IGNORECASE)


def find_constants(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> dict[str, int]:
    """Return masks with infinities, no NaN, and the same bytes in all experts; each is copied from the first expert.

    A tensor may be a mask if its name says so, or if it is square and not called `weight`.

    Args:
        apart: tensors that are not blended.
    Cost: reads both ends of each possible mask, and all of it in every expert if there are infinities at an end.
    """
    first, *others = experts
    if not others:
        return {}  # with one expert, a constant cannot be told from a fault
    masks = [
        e for e in first.entries.values() if e.name not in apart and _may_be_mask(e) and _has_infinities(first, e)
    ]
    return {
        entry.name: 0
        for entry in masks
        if all(same_bytes(first, entry, other, other.entries[entry.name]) for other in others)
    }


def not_finite(expert: Checkpoint, name: str, value: float) -> CheckpointError:
    """Return the error for an expert's tensor that has NaN or infinity and so cannot be blended."""
    hint = "leave this expert out, or mend it"
    if math.isinf(value):
        hint += f"; or, if '{name}' is a constant, keep it as it is: {exclusion([name], [expert])}"
    return CheckpointError(f"{expert.path}: '{name}' has {value}", hint=hint)


def _may_be_mask(entry: TensorEntry) -> bool:
    if entry.dtype not in _FORMATS or not entry.n_elements:
        return False
    is_square = len(entry.shape) >= 2 and entry.shape[-1] == entry.shape[-2]
    return is_square and not entry.name.endswith("weight") or bool(_MASK.search(entry.name))


def _has_infinities(checkpoint: Checkpoint, entry: TensorEntry) -> bool:
    """Tell whether a tensor has infinities among its first or last numbers, and no NaN anywhere."""
    form, infinity, sign = _FORMATS[entry.dtype]
    with open_file(checkpoint, entry.file) as descriptor:
        ends = [os.pread(descriptor, n, at) for at, n in _ends(entry)]
    if not any({infinity, infinity | sign} & set(memoryview(end).cast(form)) for end in ends):
        return False
    magnitudes = {n & ~sign for block in read_blocks(checkpoint, entry) for n in set(memoryview(block).cast(form))}
    return max(magnitudes) == infinity  # NaN is larger: the same exponent, and a fraction that is not 0


def _ends(entry: TensorEntry) -> Iterator[tuple[int, int]]:
    """Yield the offset and the length in bytes of a tensor's first and last numbers."""
    n_bytes = min(_SAMPLE_BYTES, entry.n_bytes)
    yield entry.offset, n_bytes
    yield entry.offset + entry.n_bytes - n_bytes, n_bytes
