"""Reads blocks of the experts, the next one while the current one is used."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from glue_cli.foundation.large_pages import empty_bytes
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.layout import Layout
from glue_cli.search.streamed.slices import PAGE

# Experts that are read at once. A disk with a queue is faster for it: the page cache reads 128 KiB ahead a file.
N_READERS = 4


class Slot:
    """A buffer for the experts' slices of one block; on a GPU, with pinned memory that they are read into first."""

    def __init__(self, device: torch.device, n_bytes: int) -> None:
        on_gpu = device.type == "cuda"
        n_spare = n_bytes + PAGE
        host = torch.empty(n_spare, dtype=torch.uint8, pin_memory=True) if on_gpu else empty_bytes(n_spare)
        self._host = on_page(host, n_bytes)
        self.buffer = torch.empty(n_bytes, dtype=torch.uint8, device=device) if on_gpu else self._host
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._copied = self._used = None
        self.layout: Layout | None = None

    def fill(self, layout: Layout, pool: ThreadPoolExecutor) -> None:
        """Read a block into the slot; called by the thread that reads."""
        self.layout = layout
        if self._copied is not None:
            self._copied.synchronize()  # until the last block has left the pinned memory
        list(pool.map(lambda slice: slice.read(self._host), layout.slices))
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                if self._used is not None:
                    self._stream.wait_event(self._used)  # until the GPU has used the last block
                self.buffer[: layout.n_bytes].copy_(self._host[: layout.n_bytes], non_blocking=True)
                self._copied = self._stream.record_event()

    def begin(self) -> None:
        """Wait, on the GPU's current stream, until the slot's block has arrived."""
        if self._copied is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self._copied)

    def end(self) -> None:
        """Note that what was launched so far is the last to use the slot's block."""
        if self._stream is not None:
            self._used = torch.cuda.current_stream(self.buffer.device).record_event()


class Reader:
    """Hands out one block of the experts at a time, and reads ahead the one that came next in the last pass.

    Args:
        layouts: of the blocks, in the order of the model.
        ahead: whether there is memory for a second block.
    Attributes:
        waited_s: how long the search has waited for the disk.
    """

    def __init__(self, layouts: Sequence[Layout], device: torch.device, *, ahead: bool) -> None:
        largest = max(layout.n_bytes for layout in layouts)
        self._slots = [Slot(device, largest) for _ in range(2 if ahead else 1)]
        self._expected, self._taken = list(layouts), list[Layout]()  # the blocks of the last pass, and of this one
        self._current: Slot | None = None
        self._ahead: Future[Slot] | None = None
        self._thread, self._pool = ThreadPoolExecutor(1), ThreadPoolExecutor(N_READERS)
        self.waited_s = 0.0

    def get(self, layout: Layout) -> Tensor:
        """Return the experts' slices of a block, in a buffer that is used until the next call.

        Raises:
            CheckpointError: a file is gone or has changed.
        """
        if self._current is not None:
            if self._current.layout is layout:
                return self._current.buffer
            self._current.end()
        self._taken.append(layout)
        began = time.perf_counter()
        slot = self._take_ahead()
        if slot is None or slot.layout is not layout:
            slot = self._read(layout, self._free())
        self.waited_s += time.perf_counter() - began
        self._current = slot
        slot.begin()
        if len(self._slots) > 1:
            self._ahead = self._thread.submit(self._read, self._next(), self._free())
        return slot.buffer

    def begin(self) -> None:
        """Begin another pass, which is expected to take the same blocks as the last one."""
        if self._taken:
            self._expected, self._taken = self._taken, []

    def agreed(self, block: Block | None, failed: AbsentTensorError | None) -> Block | None:
        """Return the block to run next, given the one that this process waits for; see `Shards.agreed`."""
        if failed:
            raise failed
        return block

    def _next(self) -> Layout:
        """Return the block that is likely to be taken next."""
        n = len(self._taken)
        if self._expected[:n] == self._taken and n < len(self._expected):
            return self._expected[n]
        return self._expected[0]

    def close(self) -> None:
        """Wait for what is being read, and give the memory back."""
        self._thread.shutdown(cancel_futures=True)
        self._pool.shutdown()
        self._slots, self._current, self._ahead = [], None, None

    def _take_ahead(self) -> Slot | None:
        ahead, self._ahead = self._ahead, None
        return ahead.result() if ahead is not None else None

    def _free(self) -> Slot:
        return next(self._others(), self._slots[0])

    def _others(self) -> Iterator[Slot]:
        return (slot for slot in self._slots if slot is not self._current)

    def _read(self, layout: Layout, slot: Slot) -> Slot:
        slot.fill(layout, self._pool)
        return slot


def on_page(spare: Tensor, n_bytes: int) -> Tensor:
    """Return n bytes of a buffer that has room for a page more, from the first that begins a page."""
    return spare[-spare.data_ptr() % PAGE :][:n_bytes]
