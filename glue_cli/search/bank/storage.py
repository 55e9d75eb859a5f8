"""Storage of the experts' parameters during the search: on the device, in host memory, or on disk.

Every kind of storage returns a range of columns of the experts' matrix E [K, d] as float32 on the device.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import local

import torch
from torch import Tensor

from glue_cli.checkpoints.files import open_file, read_into
from glue_cli.checkpoints.header import DTYPE_BYTES, Checkpoint
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of
from glue_cli.search.bank.fused import Stored


class Rows(ABC):
    """A range of columns of E, for all experts.

    Attributes:
        n_columns: how many columns there are.
        block_columns: how many columns are best read at once; None if the size of the caches decides.
        is_scratch: whether the caller may overwrite what `read` returns.
    """

    n_columns: int
    block_columns: int | None = None
    is_scratch: bool = True

    def stored(self) -> Stored | None:
        """Return the rows as they lie in the CPU's memory, if they do; columns behind them are zeros."""
        return None

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return columns [K, stop - start], float32, on the device; valid until this thread reads again."""

    @abstractmethod
    def read_one(self, k: int, start: int, stop: int) -> Tensor:
        """Return the columns [stop - start] of one expert, like `read` for all."""


class ResidentRows(Rows):
    """Rows in the memory of the device that computes, in the experts' dtype."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix  # [K, n]
        self.n_columns, self.is_scratch = matrix.shape[1], matrix.dtype != torch.float32

    def stored(self) -> Stored | None:
        return Stored.of(list(self.matrix))

    def read(self, start: int, stop: int) -> Tensor:
        return self.matrix[:, start:stop].float()

    def read_one(self, k: int, start: int, stop: int) -> Tensor:
        return self.matrix[k, start:stop].float()


class Staging:
    """Two buffers on a GPU and the stream that fills them; all sections of a bank share them, one after another."""

    def __init__(self, device: torch.device, n_bytes: int) -> None:
        self.device, self.n_bytes = device, n_bytes
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Allocated once: the CPU runs ahead of the GPU, and would allocate new buffers faster than they are filled.
        self.buffers = [torch.empty(n_bytes, dtype=torch.uint8, device=device) for _ in range(2)]


class HostRows(Rows):
    """Rows in pinned host memory, copied to a GPU block by block; the next block is copied while this one is used."""

    def __init__(self, matrix: Tensor, staging: Staging) -> None:
        self.n_columns = matrix.shape[1]
        self.block_columns = self._width = max(1, staging.n_bytes // (len(matrix) * matrix.element_size()))
        self._matrix, self._staging = matrix, staging
        self._staged: dict[int, tuple[Tensor, torch.cuda.Event]] = {}

    def read(self, start: int, stop: int) -> Tensor:
        current = torch.cuda.current_stream(self._staging.device)
        self._staging.stream.wait_stream(current)  # until the GPU has used what is in the buffers
        block, arrived = self._staged.pop(start) if start in self._staged else self._stage(start, stop)
        self._staged.clear()  # blocks left by a pass that was interrupted
        if stop < self.n_columns:
            self._staged[stop] = self._stage(stop, min(stop + self._width, self.n_columns))
        current.wait_event(arrived)
        return block.float()

    def read_one(self, k: int, start: int, stop: int) -> Tensor:
        return self._matrix[k, start:stop].to(self._staging.device, non_blocking=True).float()

    def _stage(self, start: int, stop: int) -> tuple[Tensor, torch.cuda.Event]:
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        shape = len(self._matrix), stop - start
        buffer = self._staging.buffers[start // self._width % 2].view(self._matrix.dtype)
        block = buffer[: shape[0] * shape[1]].view(shape)
        with torch.cuda.stream(self._staging.stream):
            # Row by row: torch would first gather a block that is not contiguous in memory that is not pinned.
            for target, row in zip(block, self._matrix, strict=True):
                target.copy_(row[start:stop], non_blocking=True)
            arrived.record(self._staging.stream)
        return block, arrived


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Tensors of one expert that follow each other in a file: column `start` is at `offset` of file number `file`."""

    start: int
    file: int
    offset: int


class DiskRows(Rows):
    """Rows that stay in the experts' files, row-major, and are read again in every pass.

    Args:
        starts: the first column of each tensor, in the order of the columns, without gaps.
        block_columns: how many columns a thread reads at once; its buffers take 4 K to 8 K bytes per column.
        buffers: each thread's buffers, shared by all sections of a bank.
    """

    def __init__(
        self,
        experts: Sequence[Checkpoint],
        starts: Mapping[str, int],
        device: torch.device,
        block_columns: int,
        buffers: local,
    ) -> None:
        self.block_columns = self._width = block_columns
        self._device, self._buffers = device, buffers
        self._experts = [_ExpertOnDisk(expert, starts) for expert in experts]
        last = list(starts)[-1]
        self.n_columns = starts[last] + experts[0].entries[last].n_elements

    def read(self, start: int, stop: int) -> Tensor:
        buffer = self._buffer("blocks", len(self._experts) * self._width, torch.float32)
        block = buffer[: len(self._experts) * (stop - start)].view(len(self._experts), stop - start)
        for row, expert in zip(block, self._experts, strict=True):
            self._read_row(expert, start, row)
        return block.to(self._device)

    def read_one(self, k: int, start: int, stop: int) -> Tensor:
        row = self._buffer("blocks", len(self._experts) * self._width, torch.float32)[: stop - start]
        self._read_row(self._experts[k], start, row)
        return row.to(self._device)

    def _read_row(self, expert: "_ExpertOnDisk", start: int, row: Tensor) -> None:
        if expert.dtype == torch.float32:
            expert.read(start, row)
        else:
            stored = self._buffer("stored", self._width, expert.dtype)[: len(row)]
            expert.read(start, stored)
            row.copy_(stored)

    def _buffer(self, name: str, n: int, dtype: torch.dtype) -> Tensor:
        """Return this thread's buffer of `n` elements."""
        key = f"{name} {dtype}"
        if not hasattr(self._buffers, key):
            setattr(self._buffers, key, torch.empty(n, dtype=dtype))
        buffer: Tensor = getattr(self._buffers, key)
        return buffer


class _ExpertOnDisk:
    """The tensors of one expert as one row; all have the same dtype."""

    def __init__(self, expert: Checkpoint, starts: Mapping[str, int]) -> None:
        self._expert = expert
        dtype = expert.entries[next(iter(starts))].dtype
        self.dtype, self._element_bytes = TORCH_DTYPES[dtype], DTYPE_BYTES[dtype]
        self._stretches: list[_Stretch] = []
        follows = (-1, -1)  # the file and offset where the previous stretch ends
        for name, start in starts.items():
            entry = expert.entries[name]
            if (entry.file, entry.offset) != follows:
                self._stretches.append(_Stretch(start, entry.file, entry.offset))
            follows = entry.file, entry.offset + entry.n_bytes
        self._stretch_starts = [stretch.start for stretch in self._stretches]

    def read(self, start: int, row: Tensor) -> None:
        """Fill `row` [n] with the elements from column `start` on."""
        position, stop = start, start + len(row)
        number = bisect_right(self._stretch_starts, start) - 1
        while position < stop:
            stretch = self._stretches[number]
            end = self._stretch_starts[number + 1] if number + 1 < len(self._stretches) else stop
            part = row[position - start : min(end, stop) - start]
            offset = stretch.offset + (position - stretch.start) * self._element_bytes
            with open_file(self._expert, stretch.file) as descriptor:
                read_into(descriptor, bytes_of(part), offset, self._expert.files[stretch.file])
            position += len(part)
            number += 1
