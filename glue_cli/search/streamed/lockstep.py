"""Runs forward passes of many blends in lockstep: each block of the experts is read once for all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glue_cli.search.bank.matrix import ExpertBank, Span
from glue_cli.search.points import Pass, Point, count_rows
from glue_cli.search.streamed.block_model import BlockModel, references_to
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.lanes import Lane
from glue_cli.search.streamed.reader import Reader
from glue_cli.search.streamed.source import Layout

# Changes a row of a block after it was blended, given where its tensors lie: how it will be in the file.
Finish = Callable[[Mapping[str, Span], Tensor], None]


@dataclass
class Runner:
    """A forward pass to make.

    Attributes:
        point: the blend that it runs.
        model: bound to the blend's tensors block by block; no other runner has it at the same time.
        forward: makes the pass with the model.
    """

    point: Point
    model: BlockModel
    forward: Callable[[], Tensor]
    lane: Lane = field(init=False)

    def start(self, device: torch.device) -> None:
        self.lane = Lane(self._run, device)

    def close(self) -> None:
        """End the pass, wherever it is, if it has started."""
        if hasattr(self, "lane"):
            self.lane.close()

    def _run(self, lane: Lane) -> Tensor:
        self.model.before_block = lane.wait_for
        return self.forward()


class Rows:
    """Rows for the blends of one block, used again for the next unless something of the model still refers to them.

    Args:
        n_columns: of the largest block.
    """

    def __init__(self, device: torch.device, n_columns: int) -> None:
        self._device, self._n_columns = device, n_columns
        self._rows = torch.empty(0, device=device)

    def take(self, m: int, n_columns: int) -> Tensor:
        """Return rows [m, n_columns] that nothing else refers to, with any values."""
        if m * n_columns > len(self._rows) or references_to(self._rows) > 1:
            self._rows = self._rows.new_empty(0)  # frees the memory before new rows are made, if nothing refers to it
            self._rows = torch.empty(max(m * self._n_columns, m * n_columns), device=self._device)
        return self._rows[: m * n_columns].view(m, n_columns)

    def unshared(self, rows: Tensor) -> Tensor:
        """Return the rows that were taken last, or a copy if something of the model has come to refer to them."""
        if references_to(self._rows) == 2:  # the buffer and the rows
            return rows
        self._rows = self._rows.clone()
        return self._rows[: rows.numel()].view(rows.shape)


class Lockstep:
    """Makes forward passes block by block.

    Args:
        layouts: of the blocks, by block.
        n_groups: G; whole_columns: d of the whole model.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        reader: Reader,
        rows: Rows,
        *,
        n_groups: int,
        whole_columns: int,
    ) -> None:
        self._layouts, self._reader, self._rows = layouts, reader, rows
        self._n_groups, self._whole_columns = n_groups, whole_columns

    def run(
        self, passes: Sequence[Pass], runners: Sequence[Runner], device: torch.device, finish: Finish | None
    ) -> Iterator[Tensor]:
        """Yield the outputs of the runners, in their order.

        Args:
            passes: make the points of the runners.
            finish: changes each row of each block before it is used.
        """
        ended = [0]

        def take_ended() -> Iterator[Tensor]:
            while ended[0] < len(runners) and (outputs := runners[ended[0]].lane.take_outputs()) is not None:
                ended[0] += 1
                yield outputs
                del outputs  # before the next forward ends: a language model's take much memory

        try:
            for runner in runners:
                runner.start(device)
            for runner in runners:
                runner.lane.go_on()
                yield from take_ended()
            while ended[0] < len(runners):
                block = runners[ended[0]].lane.waits_for
                assert block is not None
                for _ in self._through(block, passes, runners, finish):
                    yield from take_ended()
        finally:
            for runner in runners:
                runner.close()

    def _through(
        self, block: Block, passes: Sequence[Pass], runners: Sequence[Runner], finish: Finish | None
    ) -> Iterator[None]:
        """Let every runner that waits for a block go through it; yields after each."""
        layout = self._layouts[block.module]
        bank = layout.bank(self._reader.get(layout), self._n_groups, self._whole_columns)
        rows = self._rows.take(count_rows(passes), layout.n_columns)
        for each in passes:
            rows = self._rows.unshared(rows)
            self._make(each, bank, rows, layout.spans, finish)
            mine = {id(point) for point in each.points}
            waiting = [r for r in runners if r.lane.waits_for is block and id(r.point) in mine]
            for runner in waiting:
                runner.model.bind(block, layout.spans, rows[runner.point.row])
                runner.lane.go_on()
                runner.model.unbind(block)
                yield

    @torch.no_grad()
    def _make(
        self, each: Pass, bank: ExpertBank, rows: Tensor, spans: Mapping[str, Span], finish: Finish | None
    ) -> None:
        each.make(bank, rows)
        if finish:
            for point in each.points:
                finish(spans, rows[point.row])
