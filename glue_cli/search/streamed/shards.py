"""Experts that several processes hold together: of every block, each has some columns of all experts in memory.

A process blends its own columns, without traffic, and all get the whole blend of a block before they run it.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from glue_cli.foundation.ranks import Ranks
from glue_cli.search.bank.layout import ALIGN
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.bank.storage import ResidentRows
from glue_cli.search.points import AnyPass, make_blends
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blender import Blender
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.layout import Layout
from glue_cli.search.streamed.reader import N_READERS

_DONE, _FAILED = -1, -2  # in place of a block's number


class Shards:
    """This process's columns of all blocks, in the place of a `Reader`.

    Args:
        layouts: of the blocks.
        whole_columns: those of the whole model.
    Attributes:
        waited_s: how many seconds the forwards have waited for the other processes.
    Cost: every process reads the experts once, a block at a time, and keeps its columns.
    """

    def __init__(
        self, layouts: Sequence[Layout], device: torch.device, ranks: Ranks, *, n_groups: int, whole_columns: int
    ) -> None:
        self._layouts, self.ranks, self.waited_s = list(layouts), ranks, 0.0
        self.banks: dict[Layout, list[ExpertBank]] = {}
        self._nothing = torch.empty(0, dtype=torch.uint8, device=device)
        buffer = torch.empty(max(layout.n_bytes for layout in layouts), dtype=torch.uint8)
        with ThreadPoolExecutor(N_READERS) as pool:
            for layout in layouts:
                for read in [pool.submit(slice.read, buffer) for slice in layout.slices]:
                    read.result()
                layout.check_finite(buffer)
                self.banks[layout] = []
                for part in layout.parts:
                    width = width_of(part.n_columns, ranks)
                    start = ranks.place.rank * width
                    sections = [
                        (group, ResidentRows(columns.to(device)))
                        for group, columns in layout.columns(part, buffer, start, start + width)
                    ]
                    n_experts = len(layout.slices)
                    self.banks[layout].append(
                        ExpertBank(
                            sections,
                            {},
                            n_experts=n_experts,
                            device=device,
                            n_groups=n_groups,
                            whole_columns=whole_columns,
                        )
                    )

    def begin(self) -> None:
        """Begin another pass."""

    def get(self, layout: Layout) -> Tensor:
        """Return no buffer: the columns of all blocks are there."""
        return self._nothing

    def agreed(self, block: Block | None, failed: AbsentTensorError | None) -> Block | None:
        """Return the block that all processes run next: the one that the first of those that are not done waits for.

        A model may go another way for each blend and each example, and a process may have no forwards at all.

        Args:
            block: what this process waits for; None if its forwards are done.
            failed: why one of its forwards cannot go on.
        Returns:
            None if the forwards of all processes are done.
        Raises:
            AbsentTensorError: a forward of any process cannot go on.
        """
        names = [layout.block.module for layout in self._layouts]
        number = _FAILED if failed else _DONE if block is None else names.index(block.module)
        found = [int(each) for each in self.ranks.gather([torch.tensor(number)])]
        if _FAILED in found:
            raise failed or AbsentTensorError("in another process")
        wanted = [each for each in found if each != _DONE]
        return self._layouts[wanted[0]].block if wanted else None

    def join(self, mine: Tensor, out: Tensor) -> None:
        """Write the columns of all processes to rows `out` [m, n_columns], given this process's [m, width]."""
        began = time.perf_counter()
        of_all = mine.new_empty(self.ranks.size, *mine.shape)
        self.ranks.gather_into(of_all, mine)
        out.copy_(of_all.transpose(0, 1).flatten(1)[:, : out.shape[1]])
        self.waited_s += time.perf_counter() - began

    def close(self) -> None:
        """Give the memory back."""
        self.banks = {}


class ShardedBlender(Blender):
    """Makes blends of one block after the other, each process some of their columns.

    Every process has to ask for the same blends of the same blocks, in the same order.
    """

    def __init__(self, shards: Shards, device: torch.device, *, n_groups: int, whole_columns: int) -> None:
        super().__init__(shards, device, n_groups=n_groups, whole_columns=whole_columns)
        self._shards = shards
        self._mine: list[Tensor] = []

    @torch.no_grad()
    def _fill(
        self, layout: Layout, buffer: Tensor, chunk: Sequence[tuple[AnyPass, int]], rows: Sequence[Tensor]
    ) -> None:
        banks = self._shards.banks[layout]
        if chunk[0][1] == 0:  # the first chunk of a block: later ones move blends from its first row
            self._mine = [
                matrix.new_empty(len(matrix), bank.n_columns) for bank, matrix in zip(banks, rows, strict=True)
            ]
        first = chunk[0][1]
        stop = max(first_row + len(each.points) for each, first_row in chunk)
        for bank, mine, matrix in zip(banks, self._mine, rows, strict=True):
            make_blends(bank, chunk, mine)
            self._shards.join(mine[first:stop], matrix[first:stop])


def shard_bytes(layouts: Sequence[Layout], ranks: Ranks) -> int:
    """Return what the experts take in a process's memory: its columns, and one block while they are read."""
    kept = sum(layout.n_bytes * width_of(layout.n_columns, ranks) // layout.n_columns for layout in layouts)
    return kept + max(layout.n_bytes for layout in layouts)


def width_of(n_columns: int, ranks: Ranks) -> int:
    """Return how many of n columns each process has; the last ones may have fewer, and fill up with zeros."""
    return -(-n_columns // (ranks.size * ALIGN)) * ALIGN
