"""One expert's tensors of a block, read from its files into a buffer in long stretches."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.checkpoints.files import check_file, check_unchanged, open_file, open_files, read_pages
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of
from glue_cli.search.bank.matrix import Span
from glue_cli.search.bank.renamed_experts import RenamedExperts

# Every stretch begins at a multiple of so many bytes, in the file and in the buffer. Disks read whole pages past the
# page cache, and memory to memory.
PAGE, NARROW_PAGE = 4096, 64


@dataclass(frozen=True)
class Wanted:
    """A tensor as it is to be in the buffer: its dtype there, and its shape and order."""

    dtype: torch.dtype
    span: Span


@dataclass
class _Stretch:
    """Whole pages of a file, and where they go; the file may end within the last one, `n_needed` bytes are needed."""

    file: int
    offset: int
    start: int
    n_needed: int
    n_bytes: int


class Slice:
    """One expert's tensors of a block: where they lie in its files, and where in a buffer.

    A tensor that its file holds as it is wanted lies in the buffer between its neighbours in the file, and is read
    with them. Others follow: those that are converted, made of several, or begin between two elements.

    Args:
        tensors: what is wanted, by name.
        start: the first byte of the buffer that may be used, a multiple of the page.
        page: `PAGE` to read past the page cache, or `NARROW_PAGE`.
    Attributes:
        positions: the first byte of each tensor in the buffer.
        stop: the first byte of the buffer after the slice, a multiple of the page.
    """

    def __init__(
        self, experts: RenamedExperts, expert: int, tensors: Mapping[str, Wanted], *, start: int, page: int
    ) -> None:
        self._experts, self._expert, self._page = experts, expert, page
        self.positions: dict[str, int] = {}
        self.stop = start
        self._stretches: list[_Stretch] = []
        entries = experts.headers[expert].entries
        as_stored = [name for name, wanted in tensors.items() if self._is_as_stored(name, wanted)]
        for name in sorted(as_stored, key=lambda name: (entries[name].file, entries[name].offset)):
            self._place(name)
        self._made = {name: wanted for name, wanted in tensors.items() if name not in self.positions}
        for name, wanted in self._made.items():
            self.positions[name] = self.stop
            self.stop = _up(self.stop + entries[name].n_elements * wanted.dtype.itemsize, page)

    def read(self, buffer: Tensor) -> None:
        """Read the slice into its place in a buffer of bytes on the CPU.

        Raises:
            CheckpointError: a file is gone or has changed, or a tensor that is not taken as stored is not finite.
        """
        original = self._experts.originals[self._expert]
        for file in dict.fromkeys(stretch.file for stretch in self._stretches):
            with open_file(original, file) as descriptor:
                for stretch in (each for each in self._stretches if each.file == file):
                    into = bytes_of(buffer[stretch.start : stretch.start + stretch.n_bytes])
                    n_needed, path = stretch.n_needed, original.files[file]
                    read_pages(descriptor, into, stretch.offset, n_needed, path, past_cache=self._page == PAGE)
                check_file(original, file, descriptor)
        if self._made:
            with open_files(original) as descriptors:
                for name, wanted in self._made.items():
                    tensor = self._experts.read(self._expert, name, descriptors, wanted.dtype)
                    flat = self.view(buffer, name, wanted.dtype, tensor.numel())
                    Span(0, wanted.span.shape, wanted.span.channels_last).view(flat).copy_(tensor)
                check_unchanged(original, descriptors)

    def view(self, buffer: Tensor, name: str, dtype: torch.dtype, n: int) -> Tensor:
        """Return n elements of a buffer of bytes, from the first of a tensor on."""
        start = self.positions[name]
        return buffer[start : start + n * dtype.itemsize].view(dtype)

    def _place(self, name: str) -> None:
        """Add a tensor that lies behind the last one in the file, and share its pages where they touch."""
        entry, page = self._experts.headers[self._expert].entries[name], self._page
        first, end = entry.offset // page * page, entry.offset + entry.n_bytes
        last = self._stretches[-1] if self._stretches else None
        if last is None or last.file != entry.file or first > last.offset + last.n_bytes:
            last = _Stretch(entry.file, first, self.stop, 0, 0)
            self._stretches.append(last)
        last.n_needed, last.n_bytes = end - last.offset, _up(end, page) - last.offset
        self.positions[name] = last.start + entry.offset - last.offset
        self.stop = last.start + last.n_bytes

    def _is_as_stored(self, name: str, wanted: Wanted) -> bool:
        """Tell whether a tensor lies in the file as it is wanted."""
        entry, source = self._experts.headers[self._expert].entries[name], self._experts.sources.get(name)
        is_plain = TORCH_DTYPES[entry.dtype] == wanted.dtype and not wanted.span.channels_last
        return is_plain and (source is None or source.make is None) and entry.offset % wanted.dtype.itemsize == 0


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
