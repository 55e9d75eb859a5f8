"""What adapters take in memory while they are searched, beside one copy of their base. Needs no torch."""

import math

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.checkpoints.header import FLOAT_DTYPES


def factor_bytes(adapted: AdaptedBase) -> int:
    """Return the bytes of all adapters' factors and of the tensors that they replace, and these tensors' blend."""
    updates = [update for adapter in adapted.adapters for update in adapter.updates.values()]
    factors = sum(math.prod(part.shape) for update in updates for part in (update.a, update.b))
    plain = adapted.adapters[0].plain.entries.values()
    return 4 * (factors + (len(adapted.adapters) + 1) * sum(math.prod(entry.shape) for entry in plain))


def n_changed_columns(adapted: AdaptedBase) -> int:
    """Return how many elements all tensors have that an adapter updates or replaces."""
    changed = {*adapted.changed}
    return sum(math.prod(shape) for name, dtype, shape in adapted.merged if name in changed and dtype in FLOAT_DTYPES)
