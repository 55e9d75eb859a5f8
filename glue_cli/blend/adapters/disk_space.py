"""How much space a mix of adapters takes on the disk. Needs no torch."""

from collections.abc import Sequence

from glue_cli.blend.adapters.adapter import Adapter


def mixed_bytes(adapters: Sequence[Adapter]) -> int:
    """Return how many bytes the tensors of a mix of adapters take when it is written as one adapter.

    Every module gets the same rank, the largest sum of ranks over the modules; its factors are float32 or wider.
    """
    updates = [update for adapter in adapters for update in adapter.updates.values()]
    ranks: dict[str, int] = {}
    for update in updates:
        ranks[update.module] = ranks.get(update.module, 0) + update.rank
    rank = max(ranks.values())
    factors: dict[str, int] = {}
    for update in updates:
        n_elements = (update.a.n_elements + update.b.n_elements) // update.rank * rank
        n_bytes = 8 if "F64" in (update.a.dtype, update.b.dtype) else 4
        factors[update.module] = max(factors.get(update.module, 0), n_elements * n_bytes)
    plain = adapters[0].plain.entries.values()
    return sum(factors.values()) + sum(entry.n_bytes for entry in plain)
