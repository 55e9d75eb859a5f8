"""Runs forward passes of many blends in lockstep: each block of the experts is read once for all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glue_cli.search.points import Point
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blender import Blender, Blending
from glue_cli.search.streamed.block_model import BlockModel
from glue_cli.search.streamed.blocks import Block
from glue_cli.search.streamed.lanes import Lane
from glue_cli.search.streamed.layout import Layout


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

    def end(self) -> None:
        """Let the pass end, wherever it is, if it has started."""
        if hasattr(self, "lane"):
            self.lane.end()

    def join(self) -> None:
        """Wait until it has ended."""
        if hasattr(self, "lane"):
            self.lane.join()

    def _run(self, lane: Lane) -> Tensor:
        self.model.before_block = lane.wait_for
        return self.model.run(self.forward)


class Lockstep:
    """Makes forward passes block by block.

    Args:
        layouts: of the blocks, by block.
    """

    def __init__(self, layouts: Mapping[str, Layout], blender: Blender) -> None:
        self._layouts, self._blender = layouts, blender
        self._failed: AbsentTensorError | None = None  # told to the other processes before it is raised

    def run(self, blending: Blending, runners: Sequence[Runner], device: torch.device) -> Iterator[Tensor]:
        """Yield the outputs of the runners, in their order; the blending makes their points."""
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
                self._go_on(runner)
                yield from take_ended()
            while True:
                first = runners[ended[0]].lane.waits_for if ended[0] < len(runners) else None
                block = self._blender.reader.agreed(first, self._failed)
                if block is None:
                    return
                for _ in self._through(block, blending, runners):
                    yield from take_ended()
        finally:
            for runner in runners:
                runner.end()
            for runner in runners:  # after all were told: one may wait for another
                runner.join()

    def _through(self, block: Block, blending: Blending, runners: Sequence[Runner]) -> Iterator[None]:
        """Let every runner that waits for a block go through it; yields after each."""
        layout = self._layouts[block.module]
        for made in self._blender.make(layout, blending):
            for point, row in made.points:
                for runner in runners:
                    if runner.point is point and runner.lane.waits_for is block:
                        runner.model.bind(block, made.tensors(row))
                        self._go_on(runner)
                        runner.model.unbind(block)
                        yield

    def _go_on(self, runner: Runner) -> None:
        try:
            runner.lane.go_on()
        except AbsentTensorError as error:
            self._failed = error
