"""Tensors that are not weights: constants and counts that the model's code can recreate. Needs no torch."""

import re

from glue_cli.checkpoints.header import TensorEntry
from glue_cli.foundation.batchnorm_names import COUNTER

# Buffers that follow from the configuration, so that only some versions of a library write them.
_KNOWN = re.compile(
    r"(?:^|[._])(?:position_ids|token_type_ids|inv_freq|original_inv_freq|masked_bias"  # transformers
    r"|relative_position_index|relative_coords_table|attn_mask"  # Swin
    r"|cos_cached|sin_cached|freqs_cis"  # rotary positions
    r"|total_ops|total_params"  # of thop, which counts operations
    rf"|n_averaged|{COUNTER}|_extra_state)$"
)
_CAUSAL_MASK = re.compile(r"(?:^|\.)(?:attn|attention|self_attn)\.bias$")  # of GPT-2 and GPT-NeoX: [1, 1, n, n]


def is_known_buffer(entry: TensorEntry) -> bool:
    """Tell whether a tensor is a buffer that the model's code creates itself if the file has none."""
    if _CAUSAL_MASK.search(entry.name):
        return len(entry.shape) == 4 and entry.shape[:2] == (1, 1) and entry.dtype in ("BOOL", "U8")
    return bool(_KNOWN.search(entry.name))


def is_extra_state(name: str) -> bool:
    """Tell whether a tensor is extra state of a module, such as the scales of 8-bit products."""
    return name.rpartition(".")[2] == "_extra_state"
