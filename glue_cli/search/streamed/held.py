"""All blocks of the experts in the memory of the device that computes, of which one at a time is blended."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from glue_cli.foundation.large_pages import empty_bytes
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.layout import Layout
from glue_cli.search.streamed.reader import N_READERS, on_page
from glue_cli.search.streamed.slices import PAGE


class Held:
    """The slices of all blocks, in the place of a `Reader`.

    Args:
        layouts: of the blocks.
    Raises:
        CheckpointError: a file is gone or has changed.
    Cost: the experts are read once.
    """

    waited_s = 0.0

    def __init__(self, layouts: Sequence[Layout], device: torch.device) -> None:
        with ThreadPoolExecutor(N_READERS) as pool:
            self._buffers = {layout: _read(layout, device, pool) for layout in layouts}

    def begin(self) -> None:
        """Begin another pass."""

    def get(self, layout: Layout) -> Tensor:
        """Return the experts' slices of a block."""
        return self._buffers[layout]

    def agreed(self, block: Block | None, failed: AbsentTensorError | None) -> Block | None:
        """As `Reader.agreed`."""
        if failed:
            raise failed
        return block

    def close(self) -> None:
        """Give the memory back."""
        self._buffers = {}


def _read(layout: Layout, device: torch.device, pool: ThreadPoolExecutor) -> Tensor:
    host = on_page(empty_bytes(layout.n_bytes + PAGE), layout.n_bytes)
    list(pool.map(lambda slice: slice.read(host), layout.slices))
    return host.to(device)
