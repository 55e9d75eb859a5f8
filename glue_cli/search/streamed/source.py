"""The experts' tensors of one block, read from their files in long stretches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.checkpoints.files import check_unchanged, open_files, read_into
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of
from glue_cli.search.bank.layout import ALIGN, group_tensors, spans_of, stored_dtype
from glue_cli.search.bank.matrix import ExpertBank, Span
from glue_cli.search.bank.renamed_experts import RenamedExperts, check_finite
from glue_cli.search.bank.storage import ResidentRows
from glue_cli.search.streamed.blocks import Block


@dataclass(frozen=True)
class Section:
    """Tensors of a block with the same coefficients and dtypes, side by side: [K, n_columns] of `dtype`."""

    group: int
    dtype: torch.dtype
    spans: dict[str, Span]
    n_columns: int

    def n_bytes(self, n_experts: int) -> int:
        """Return the bytes that the section takes in a buffer, in which every section begins at 64 bytes."""
        return n_experts * self.n_columns * self.dtype.itemsize


class Layout:
    """Where the tensors of a block lie in a row of its blend, and in the buffer that its slices are read into.

    Attributes:
        n_columns: of a row; n_bytes: of the experts' slices together.
        spans: where each tensor lies in a row.
    """

    def __init__(self, block: Block, experts: RenamedExperts, *, channels_last: bool) -> None:
        self.block, self._experts = block, experts
        self.sections = tuple(self._sections(channels_last))
        self.n_bytes = sum(section.n_bytes(len(experts.headers)) for section in self.sections)
        self.n_columns = sum(section.n_columns for section in self.sections)
        self.spans: dict[str, Span] = {}
        before = 0
        for section in self.sections:
            for name, span in section.spans.items():
                self.spans[name] = Span(before + span.start, span.shape, span.channels_last)
            before += section.n_columns

    def _sections(self, channels_last: bool) -> Iterator[Section]:
        headers = self._experts.headers
        for (group, _), names in group_tensors(headers, self._experts.recipe, self.block.tensors).items():
            spans = spans_of(names, headers[0], channels_last=channels_last, aligned=True)
            last = names[-1]
            n_columns = spans[last].start + headers[0].entries[last].n_elements
            yield Section(group, stored_dtype(headers, last), spans, n_columns + -n_columns % ALIGN)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return the sections in a buffer of bytes, each [K, n_columns] in its dtype."""
        views, start, n_experts = [], 0, len(self._experts.headers)
        for section in self.sections:
            n_bytes = section.n_bytes(n_experts)
            views.append(buffer[start : start + n_bytes].view(section.dtype).view(n_experts, section.n_columns))
            start += n_bytes
        return views

    def bank(self, buffer: Tensor, n_groups: int, whole_columns: int) -> ExpertBank:
        """Return the slices in a buffer as a bank; `whole_columns` are those of the whole model."""
        rows = [
            (section.group, ResidentRows(view))
            for section, view in zip(self.sections, self.views(buffer), strict=True)
        ]
        n_experts = len(self._experts.headers)
        return ExpertBank(
            rows, self.spans, n_experts=n_experts, device=buffer.device, n_groups=n_groups, whole_columns=whole_columns
        )

    def read(self, expert: int, buffer: Tensor, *, checks: bool) -> None:
        """Read one expert's slices into a buffer on the CPU.

        Args:
            checks: whether to look for NaN and infinity.
        Raises:
            CheckpointError: a file is gone or has changed, or a tensor is not finite.
        """
        original = self._experts.originals[expert]
        with open_files(original) as descriptors:
            for section, view in zip(self.sections, self.views(buffer), strict=True):
                self._read_section(expert, section, view[expert], descriptors, checks)
            check_unchanged(original, descriptors)

    def _read_section(
        self, expert: int, section: Section, row: Tensor, descriptors: Sequence[int], checks: bool
    ) -> None:
        header, original = self._experts.headers[expert], self._experts.originals[expert]
        stretches: list[_Stretch] = []
        for name, span in section.spans.items():
            if not self._is_plain(header, name, section, span):
                span.view(row).copy_(self._experts.read(expert, name, descriptors, section.dtype))
                continue
            entry = header.entries[name]
            stretch = _Stretch(entry.file, entry.offset, span.start, entry.n_elements)
            if stretches and stretches[-1].is_followed_by(stretch, section.dtype.itemsize):
                stretches[-1] = stretches[-1].joined(stretch)
            else:
                stretches.append(stretch)
        for stretch in stretches:
            part = row[stretch.start : stretch.start + stretch.n]
            read_into(descriptors[stretch.file], bytes_of(part), stretch.offset, original.files[stretch.file])
        if checks:
            for name, span in section.spans.items():
                check_finite(original, self._experts.name_on_disk(name), span.view(row))

    def _is_plain(self, header: Checkpoint, name: str, section: Section, span: Span) -> bool:
        """Tell whether a tensor lies in the file as it lies in the row."""
        source = self._experts.sources.get(name)
        is_as_stored = TORCH_DTYPES[header.entries[name].dtype] == section.dtype and not span.channels_last
        return is_as_stored and (source is None or source.make is None)


@dataclass(frozen=True)
class _Stretch:
    """Elements that follow each other in a file and in a row."""

    file: int
    offset: int
    start: int
    n: int

    def is_followed_by(self, other: "_Stretch", element_bytes: int) -> bool:
        ends = self.offset + self.n * element_bytes, self.start + self.n
        return self.file == other.file and ends == (other.offset, other.start)

    def joined(self, other: "_Stretch") -> "_Stretch":
        return _Stretch(self.file, self.offset, self.start, self.n + other.n)
