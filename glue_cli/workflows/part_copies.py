"""Copies of a model that is trained in parts, in memory that all processes of a machine see.

Whichever process is killed, the others of its machine still have its part as it was after the last whole step.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count

import torch
from torch import Tensor

from glue_cli.checkpoints.run_state_rows import with_rows
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
    """The parts of a machine's processes after each of the last two steps that were copied.

    While one copy is written the other one is whole, so that a process may be killed in the middle of it.

    Attributes:
        processes: the ranks of the machine's processes, which are those of all if there is one machine.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, place = ranks, ranks.place
        self.processes = range(place.rank - place.local_rank, place.rank - place.local_rank + place.local_size)
        self._layouts: dict[str, Layout] = {}
        self._room: Tensor | None = None  # bytes [2 L, n]: of each of the machine's L processes two rows
        self._numbers, self._ended_s, self._took_s = count(), -float("inf"), 0.0

    @property
    def is_due(self) -> bool:
        """Whether a copy would take no more than its share of the time."""
        return self._took_s <= _SHARE * (time.monotonic() - self._ended_s)

    @property
    def has_room(self) -> bool:
        """Whether there is memory for copies; known once one was asked for."""
        return self._room is not None

    @property
    def are_of_all(self) -> bool:
        """Whether a copy has the parts of all processes of the job, not only those of one machine among several."""
        return len(self.processes) == self._ranks.size

    def take(self, state: State) -> Callable[[], State] | None:
        """Copy this process's parts; return what puts the state together, or None if there is no room for that.

        All processes have to take one, and it is whole when all of them have. It stays so until the next but one.
        Of several machines each puts together the rows that it has, as `run_state_rows` writes them.
        """
        began = time.monotonic()
        parts = {name: value for name, value in state.items() if is_part(value)}
        if parts.keys() != self._layouts.keys():
            self._layouts = {name: layout_of(part) for name, part in parts.items()}
            self._room = self._make_room()
        if self._room is None:
            return None
        rows = self._room[next(self._numbers) % 2 :: 2]
        for name, there in _views(rows[self._ranks.place.local_rank], self._layouts, self._ranks.place.rank):
            there.copy_(parts[name].to_local())
        others = {name: value for name, value in state.items() if name not in parts}
        self._ended_s = time.monotonic()
        self._took_s = self._ended_s - began
        return partial(self._put_together, rows, self._layouts, copied(others))

    def _put_together(self, rows: Tensor, layouts: Mapping[str, Layout], others: State) -> State:
        parts: dict[str, list[Tensor]] = {name: [] for name in layouts}
        for row, rank in zip(rows, self.processes, strict=True):
            for name, part in _views(row, layouts, rank):
                parts[name].append(part)
        together = {name: torch.cat(pieces) for name, pieces in parts.items()}
        return others | together if self.are_of_all else with_rows(others, together)

    def _make_room(self) -> Tensor | None:
        """Return memory for two copies of the parts; None where a machine has too little, or cannot share it.

        Nor where each machine has one process alone: with it all that it holds is gone.
        """
        ranks, n_rows = self._ranks, 2 * len(self.processes)
        n_bytes = max(_n_bytes(self._layouts.values(), rank) for rank in range(ranks.size))
        has_room, helps = n_rows * n_bytes <= usable_memory(_CPU), len(self.processes) > 1 or self.are_of_all
        said = torch.stack(ranks.gather([torch.tensor([has_room, helps])]))  # [N, 2]
        if not (said[:, 0].all() and said[:, 1].any()):
            return None
        return shared_matrix((n_rows, n_bytes), torch.uint8, ranks)


def _views(row: Tensor, layouts: Mapping[str, Layout], rank: int) -> Iterator[tuple[str, Tensor]]:
    """Yield where each part of a process lies in its row, one after the other."""
    start = 0
    for name, layout in layouts.items():
        shape = layout.shape_of_part(rank)
        n_bytes = shape.numel() * layout.dtype.itemsize
        yield name, row[start : start + n_bytes].view(layout.dtype).view(shape)
        start += _aligned(n_bytes)


def _n_bytes(layouts: Iterable[Layout], rank: int) -> int:
    return sum(_aligned(layout.shape_of_part(rank).numel() * layout.dtype.itemsize) for layout in layouts)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNED) * _ALIGNED


def copied(state: State) -> State:
    """Return a state whose tensors do not change as the work goes on."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
