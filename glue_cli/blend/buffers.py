"""Tensors that are not weights: constants and counts that the model's code can recreate. Needs no torch."""

import math
import re
import struct
from collections.abc import Iterator
from functools import partial

from glue_cli.checkpoints.files import read_blocks, same_bytes
from glue_cli.checkpoints.header import DTYPE_BYTES, Checkpoint, TensorEntry
from glue_cli.foundation.batchnorm_names import COUNTER

# Buffers that follow from the configuration, so that only some versions of a library write them.
_CONSTANT = re.compile(
    r"(?:^|[._])(?:position_ids|token_type_ids|inv_freq|original_inv_freq"  # transformers
    r"|relative_position_index|relative_coords_table|attn_mask"  # Swin
    r"|cos_cached|sin_cached|freqs_cis)$"  # rotary positions
)
# Those that decide nothing of what the weights compute, or little.
_IDLE = re.compile(
    r"(?:^|[._])(?:masked_bias"  # a large negative number, whichever
    r"|total_ops|total_params"  # of thop, which counts operations
    rf"|n_averaged|{COUNTER}|_extra_state)$"
)
_CAUSAL_MASK = re.compile(r"(?:^|\.)(?:attn|attention|self_attn)\.bias$")  # of GPT-2 and GPT-NeoX: [1, 1, n, n]
# By dtype: how `struct` calls it; BF16 is the upper half of F32.
_FORMATS = {"F64": "d", "F32": "f", "BF16": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b"}
_FORMATS |= {"BOOL": "B", "U8": "B"}
_EPSILONS = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
_COMPUTED = 16 * _EPSILONS["F32"]  # powers, sines and cosines of two machines differ less
_BLOCK = 1 << 17  # numbers that are compared at once


def is_known_buffer(entry: TensorEntry) -> bool:
    """Tell whether a tensor is a buffer that the model's code creates itself if the file has none."""
    return is_idle(entry.name) or is_constant(entry)


def is_constant(entry: TensorEntry) -> bool:
    """Tell whether a tensor is a known buffer that the weights were trained with, such as rotary frequencies."""
    if _CAUSAL_MASK.search(entry.name):
        return len(entry.shape) == 4 and entry.shape[:2] == (1, 1) and entry.dtype in ("BOOL", "U8")
    return bool(_CONSTANT.search(entry.name))


def is_idle(name: str) -> bool:
    """Tell whether a tensor is a known buffer that hardly matters, such as a count or the scales of 8-bit products."""
    return bool(_IDLE.search(name))


def agree(left: Checkpoint, entry: TensorEntry, right: Checkpoint, other: TensorEntry) -> bool:
    """Tell whether two constants are the same numbers, up to the rounding of either dtype and of computing them.

    Raises:
        CheckpointError: as `read_blocks`.
    Cost: reads up to the first difference; numbers are compared one by one where the bytes differ.
    """
    if same_bytes(left, entry, right, other):
        return True
    dtypes = {entry.dtype, other.dtype}
    if entry.shape != other.shape or not dtypes <= _FORMATS.keys():
        return False
    relative = absolute = 0.0
    if dtypes & _EPSILONS.keys():
        relative = max(_EPSILONS.get(dtype, 0.0) for dtype in dtypes) + _COMPUTED
        # An angle, in a table by position, is rounded relative to itself; F16 has a least step.
        absolute = _COMPUTED * max(entry.shape) if len(entry.shape) > 1 else _EPSILONS["F32"]
    is_close = partial(math.isclose, rel_tol=relative, abs_tol=absolute)
    pairs = zip(_numbers(left, entry), _numbers(right, other), strict=True)
    return all(here == there or all(map(is_close, here, there)) for here, there in pairs)


def _numbers(checkpoint: Checkpoint, entry: TensorEntry) -> Iterator[tuple[float, ...]]:
    """Yield a tensor's numbers, a block at a time."""
    for block in read_blocks(checkpoint, entry, _BLOCK * DTYPE_BYTES[entry.dtype]):
        if entry.dtype == "BF16":
            wide = bytearray(2 * len(block))
            wide[2::4], wide[3::4] = block[::2], block[1::2]
            block = bytes(wide)
        form = f"<{_FORMATS[entry.dtype]}"
        yield struct.unpack(f"<{len(block) // struct.calcsize(form)}{form[1]}", block)
