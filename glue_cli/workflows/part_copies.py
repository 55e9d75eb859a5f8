"""Copies of a model that is trained in parts, in memory that all processes of a machine see.

Whichever process is killed, the others still have its part as it was after the last whole step.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count

import torch
from torch import Tensor

from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.state import State
from glue_cli.running.sharding import Layout, is_part, layout_of
from glue_cli.search.bank.load import usable_memory
from glue_cli.search.bank.shared_memory import shared_matrix

# Copies take at most this share of the time: every step is copied, unless steps are short.
_SHARE = 0.2
_ALIGNED = 16  # bytes
_CPU = torch.device("cpu")


class PartCopies:
    """The parts of all processes after each of the last two steps that were copied.

    While one copy is written the other one is whole, so that a process may be killed in the middle of it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._layouts: dict[str, Layout] = {}
        self._room: Tensor | None = None  # bytes [2 N, n]: of each of N processes two rows
        self._numbers, self._ended_s, self._took_s = count(), -float("inf"), 0.0

    @property
    def is_due(self) -> bool:
        """Whether a copy would take no more than its share of the time."""
        return self._took_s <= _SHARE * (time.monotonic() - self._ended_s)

    @property
    def has_room(self) -> bool:
        """Whether there is memory for copies; known once one was asked for."""
        return self._room is not None

    def take(self, state: State) -> Callable[[], State] | None:
        """Copy this process's parts; return what puts the whole state together, or None if there is no room for that.

        All processes have to take one, and it is whole when all of them have. It stays so until the next but one.
        """
        began = time.monotonic()
        parts = {name: value for name, value in state.items() if is_part(value)}
        if parts.keys() != self._layouts.keys():
            self._layouts = {name: layout_of(part) for name, part in parts.items()}
            self._room = self._make_room()
        if self._room is None:
            return None
        rows = self._room[next(self._numbers) % 2 :: 2]
        for name, there in _views(rows, self._layouts, self._ranks.place.rank):
            there.copy_(parts[name].to_local())
        others = {name: value for name, value in state.items() if name not in parts}
        self._ended_s = time.monotonic()
        self._took_s = self._ended_s - began
        return partial(_put_together, rows, self._layouts, copied(others))

    def _make_room(self) -> Tensor | None:
        """Return memory for two copies of all parts; None where the processes have too little, or cannot share it."""
        ranks = self._ranks
        if ranks.place.local_size < ranks.size:
            return None
        n_bytes = max(_n_bytes(self._layouts.values(), rank) for rank in range(ranks.size))
        has_room = ranks.from_first(lambda: 2 * ranks.size * n_bytes <= usable_memory(_CPU))
        return shared_matrix((2 * ranks.size, n_bytes), torch.uint8, ranks) if has_room else None


def _put_together(rows: Tensor, layouts: Mapping[str, Layout], others: State) -> State:
    parts: dict[str, list[Tensor]] = {name: [] for name in layouts}
    for rank in range(len(rows)):
        for name, part in _views(rows, layouts, rank):
            parts[name].append(part)
    return others | {name: torch.cat(pieces) for name, pieces in parts.items()}


def _views(rows: Tensor, layouts: Mapping[str, Layout], rank: int) -> Iterator[tuple[str, Tensor]]:
    """Yield where each part of a process lies in its row, one after the other."""
    start = 0
    for name, layout in layouts.items():
        shape = layout.shape_of_part(rank)
        n_bytes = shape.numel() * layout.dtype.itemsize
        yield name, rows[rank, start : start + n_bytes].view(layout.dtype).view(shape)
        start += _aligned(n_bytes)


def _n_bytes(layouts: Iterable[Layout], rank: int) -> int:
    return sum(_aligned(layout.shape_of_part(rank).numel() * layout.dtype.itemsize) for layout in layouts)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNED) * _ALIGNED


def copied(state: State) -> State:
    """Return a state whose tensors do not change as the work goes on."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
