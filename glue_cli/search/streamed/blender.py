"""Makes the blends of a block, for all forwards of a step in as few passes as the memory allows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glue_cli.search.bank.matrix import Span
from glue_cli.search.points import AnyPass, Point, in_chunks, make_blends
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.layout import Layout, Watch

# Changes a row of a block after it was blended, given where its tensors lie: how it will be in the file.
Finish = Callable[[Mapping[str, Span], Tensor], None]


@dataclass(frozen=True)
class Blending:
    """Which blends a step makes, and how.

    Attributes:
        n_rows: how many of them may be in memory together, at least those of the largest pass.
        is_narrow: whether blends that autocast would round to bfloat16 are rounded when they are made.
        finish: changes each row of a block before it is used.
    """

    passes: Sequence[AnyPass]
    n_rows: int
    is_narrow: bool
    finish: Finish | None = None


@dataclass(frozen=True)
class Made:
    """Blends of a block that are in memory together: rows [m, n_columns] for each part, and each point's own row."""

    layout: Layout
    rows: Sequence[Tensor]
    points: Sequence[tuple[Point, int]]

    def tensors(self, row: int) -> dict[str, Tensor]:
        """Return the block's tensors, by name, as views of a row."""
        return self.layout.tensors([matrix[row] for matrix in self.rows])


class Rows:
    """Memory for the blends of one block, used again for the next unless something of the model still refers to it."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._n_own = 1  # references to it that are not the model's

    def take(self, layout: Layout, m: int, *, is_narrow: bool) -> list[Tensor]:
        """Return m rows for each part of a block, [m, n_columns], to which nothing else refers, with any values."""
        n_bytes = m * layout.row_bytes(narrow=is_narrow)
        if n_bytes > len(self._buffer) or _references_to(self._buffer) > 1:
            size = max(n_bytes, len(self._buffer))
            self._buffer = self._buffer.new_empty(0)  # frees the memory first, if nothing else refers to it
            self._buffer = self._buffer.new_empty(size)
        return self._views(layout, m, is_narrow)

    def unshared(self, rows: Sequence[Tensor], layout: Layout, *, is_narrow: bool) -> Sequence[Tensor]:
        """Return the rows that were taken last, or a copy if something of the model has come to refer to them."""
        if _references_to(self._buffer) == self._n_own:
            return rows
        self._buffer = self._buffer.clone()
        return self._views(layout, len(rows[0]), is_narrow)

    def _views(self, layout: Layout, m: int, is_narrow: bool) -> list[Tensor]:
        views, start = list[Tensor](), 0
        for part in layout.parts:
            dtype = torch.bfloat16 if is_narrow and part.is_narrow else torch.float32
            stop = start + m * part.n_columns * dtype.itemsize
            views.append(self._buffer[start:stop].view(dtype).view(m, part.n_columns))
            start = stop
        self._n_own = _references_to(self._buffer)  # a view that changes the dtype counts twice
        return views


class Source(Protocol):
    """Where the experts' slices come from: a `Reader`, or `Shards`."""

    waited_s: float

    def begin(self) -> None: ...

    def get(self, layout: Layout) -> Tensor: ...

    def agreed(self, block: Block | None, failed: AbsentTensorError | None) -> Block | None: ...

    def close(self) -> None: ...


class Blender:
    """Makes blends of one block after the other.

    Args:
        n_groups: G; whole_columns: d of the whole model.
    """

    def __init__(self, reader: Source, device: torch.device, *, n_groups: int, whole_columns: int) -> None:
        self.reader, self._n_groups, self._whole_columns = reader, n_groups, whole_columns
        self.rows = Rows(device)
        self._finite: set[Layout] = set()

    def make(self, layout: Layout, blending: Blending) -> Iterator[Made]:
        """Yield the blends of a block, as many as fit into memory together.

        Raises:
            CheckpointError: a file is gone, has changed, or has NaN or infinity.
        """
        chunks = in_chunks(blending.passes, blending.n_rows)
        m = max(first + len(each.points) for chunk in chunks for each, first in chunk)
        buffer = self.reader.get(layout)
        rows: Sequence[Tensor] = self.rows.take(layout, m, is_narrow=blending.is_narrow)
        for chunk in chunks:
            rows = self.rows.unshared(rows, layout, is_narrow=blending.is_narrow)
            self._fill(layout, buffer, chunk, rows)
            points = [(point, first + n) for each, first in chunk for n, point in enumerate(each.points)]
            if blending.finish:
                for _, row in points:
                    for part, matrix in zip(layout.parts, rows, strict=True):
                        blending.finish(part.spans, matrix[row])
            yield Made(layout, rows, points)

    @torch.no_grad()
    def _fill(
        self, layout: Layout, buffer: Tensor, chunk: Sequence[tuple[AnyPass, int]], rows: Sequence[Tensor]
    ) -> None:
        watch = None if layout in self._finite else Watch()
        for part, matrix in zip(layout.parts, rows, strict=True):
            make_blends(layout.bank(part, buffer, self._n_groups, self._whole_columns, watch), chunk, matrix)
        if watch and watch.is_suspicious:
            layout.check_finite(buffer)
        self._finite.add(layout)


def _references_to(buffer: Tensor) -> int:
    """Return how many tensors share the memory of a buffer, itself included."""
    # torch.UntypedStorage has no public count of its references; CUDA graphs' trees use the same function.
    return int(torch._C._storage_Use_Count(buffer.untyped_storage()._cdata)) - 1
