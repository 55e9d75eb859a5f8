"""How the tensors of one block lie in a buffer with the slices of all experts, and in rows with its blends."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.finite import check_finite
from glue_cli.search.bank.fused import Stored
from glue_cli.search.bank.layout import ALIGN, group_tensors, spans_of, stored_dtype
from glue_cli.search.bank.matrix import ExpertBank, Span
from glue_cli.search.bank.renamed_experts import RenamedExperts
from glue_cli.search.bank.storage import Rows
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.slices import NARROW_PAGE, PAGE, Slice, Wanted


@dataclass
class _Run:
    """Tensors that follow each other in a row and in every expert's slice."""

    group: int
    dtype: torch.dtype
    n_elements: int
    positions: list[int]  # the first byte in the buffer, for each expert


@dataclass(frozen=True)
class Part:
    """Tensors of a block that lie side by side in rows of their own.

    Attributes:
        is_narrow: whether their blends may be rounded to bfloat16 where that is the precision of the forwards.
        spans: where each tensor lies in a row of n_columns.
    """

    is_narrow: bool
    spans: dict[str, Span]
    n_columns: int
    runs: list[_Run]


class Layout:
    """Where the tensors of a block lie in rows, and in the buffer that its slices are read into.

    Args:
        narrow: the names of the tensors whose blends may be rounded to bfloat16.
        past_cache: whether the files are read past the page cache.
    Attributes:
        parts: of a row; those that may be rounded and the others.
        n_bytes: of the experts' slices together.
    """

    def __init__(
        self,
        block: Block,
        experts: RenamedExperts,
        narrow: Collection[str],
        *,
        channels_last: bool,
        past_cache: bool,
    ) -> None:
        self.block, self._experts = block, experts
        headers, self._wanted = experts.headers, dict[str, Wanted]()
        drafts: list[tuple[bool, int, dict[str, Span]]] = []
        for is_narrow in (False, True):
            names = [name for name in block.tensors if (name in narrow) == is_narrow]
            for (group, _), members in group_tensors(headers, experts.recipe, names).items() if names else ():
                spans = spans_of(members, headers[0], channels_last=channels_last, aligned=True)
                drafts.append((is_narrow, group, spans))
                dtype = stored_dtype(headers, members[0])
                self._wanted |= {name: Wanted(dtype, span) for name, span in spans.items()}
        self.slices, self.n_bytes = list[Slice](), 0
        for expert in range(len(headers)):
            page = PAGE if past_cache else NARROW_PAGE
            self.slices.append(Slice(experts, expert, self._wanted, start=self.n_bytes, page=page))
            self.n_bytes = self.slices[-1].stop
        found = [
            self._part(is_narrow, [(g, s) for n, g, s in drafts if n == is_narrow]) for is_narrow in (False, True)
        ]
        self.parts = tuple(part for part in found if part.n_columns)

    @property
    def n_columns(self) -> int:
        """The columns of a row, all parts together."""
        return sum(part.n_columns for part in self.parts)

    def row_bytes(self, *, narrow: bool) -> int:
        """Return the bytes of a row, with those parts rounded that may be, or not."""
        return sum((2 if narrow and part.is_narrow else 4) * part.n_columns for part in self.parts)

    def tensors(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the block's tensors as views of a row of each part."""
        return {
            name: span.view(row)
            for part, row in zip(self.parts, rows, strict=True)
            for name, span in part.spans.items()
        }

    def bank(self, part: Part, buffer: Tensor, n_groups: int, whole_columns: int, watch: "Watch | None") -> ExpertBank:
        """Return the slices of a part in a buffer as a bank; `whole_columns` are those of the whole model."""
        rows = [(run.group, SlicedRows(self._views(run, buffer), watch)) for run in part.runs]
        return ExpertBank(
            rows,
            part.spans,
            n_experts=len(self.slices),
            device=buffer.device,
            n_groups=n_groups,
            whole_columns=whole_columns,
        )

    def columns(self, part: Part, buffer: Tensor, start: int, stop: int) -> list[tuple[int, Tensor]]:
        """Return copies of some columns of a part of all experts, side by side, as stored: each [K, n], and its group.

        Columns behind those of the part are zeros.
        """
        found, before = list[tuple[int, Tensor]](), 0
        for run in part.runs:
            n = _padded(run.n_elements)
            first, last = max(start - before, 0), min(stop - before, n)
            if first < last:
                copied = torch.zeros(len(self.slices), last - first, dtype=run.dtype)
                for into, row in zip(copied, self._views(run, buffer), strict=True):
                    own = row[first:last]
                    into[: len(own)] = own
                found.append((run.group, copied))
            before += n
        if stop > before:
            found.append((0, torch.zeros(len(self.slices), stop - max(start, before), dtype=part.runs[-1].dtype)))
        return found

    def check_finite(self, buffer: Tensor) -> None:
        """Check that no tensor in a buffer has NaN or infinity.

        Raises:
            CheckpointError: one has.
        """
        for original, part in zip(self._experts.originals, self.slices, strict=True):
            for name, wanted in self._wanted.items():
                n = torch.Size(wanted.span.shape).numel()
                check_finite(original, self._experts.name_on_disk(name), part.view(buffer, name, wanted.dtype, n))

    def _part(self, is_narrow: bool, sections: Sequence[tuple[int, dict[str, Span]]]) -> Part:
        spans, runs, before = dict[str, Span](), list[_Run](), 0
        for group, members in sections:
            for name, span in members.items():
                n = torch.Size(span.shape).numel()
                spans[name] = Span(before + span.start, span.shape, span.channels_last)
                positions, dtype = [part.positions[name] for part in self.slices], self._wanted[name].dtype
                last = runs[-1] if runs else None
                if last and (last.group, last.dtype) == (group, dtype) and _follow(positions, last):
                    last.n_elements += n
                else:
                    runs.append(_Run(group, dtype, n, positions))
            before = sum(_padded(run.n_elements) for run in runs)
        return Part(is_narrow, spans, before, runs)

    def _views(self, run: _Run, buffer: Tensor) -> list[Tensor]:
        n_bytes = run.n_elements * run.dtype.itemsize
        return [buffer[start : start + n_bytes].view(run.dtype) for start in run.positions]


class Watch:
    """Hears of every range of columns that is read, and remembers whether one may have NaN or infinity."""

    def __init__(self) -> None:
        self.is_suspicious = False

    def look_at(self, columns: Tensor) -> None:
        if not torch.isfinite(columns.sum()):
            self.is_suspicious = True


class SlicedRows(Rows):
    """A range of columns of which each expert's row lies somewhere else in the device's memory.

    Args:
        rows: [K], each [n] in the dtype as stored; columns up to the next multiple of `ALIGN` are read as zeros.
    """

    def __init__(self, rows: Sequence[Tensor], watch: Watch | None) -> None:
        self._rows, self._watch, self._n = rows, watch, len(rows[0])
        self.n_columns = _padded(self._n)

    def stored(self) -> Stored | None:
        found = Stored.of(self._rows)
        if found and self._watch:
            for row in self._rows:
                self._watch.look_at(row)
        return found

    def read(self, start: int, stop: int) -> Tensor:
        columns = torch.empty(len(self._rows), stop - start, device=self._rows[0].device)
        n = min(stop, self._n) - start
        if n < stop - start:
            columns[:, n:] = 0
        for into, row in zip(columns, self._rows, strict=True):
            into[:n].copy_(row[start : start + n])
        if self._watch:
            self._watch.look_at(columns)
        return columns

    def read_one(self, k: int, start: int, stop: int) -> Tensor:
        columns = torch.zeros(stop - start, device=self._rows[k].device)
        n = min(stop, self._n) - start
        columns[:n].copy_(self._rows[k][start : start + n])
        return columns


def _follow(positions: Sequence[int], run: _Run) -> bool:
    """Tell whether a tensor begins where the tensors of a run end, in a row as well as in every slice."""
    n_bytes = run.n_elements * run.dtype.itemsize
    return run.n_elements % ALIGN == 0 and positions == [start + n_bytes for start in run.positions]


def _padded(n: int) -> int:
    return n + -n % ALIGN
