"""What streamed blends share: the experts' files, the memory for a block, and copies of the model for the forwards."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.units import size
from glue_cli.search.bank.layout import blended_entries
from glue_cli.search.bank.renamed_experts import RenamedExperts
from glue_cli.search.bound_models import MakeTensors, set_tensors
from glue_cli.search.points import Load, Pass, Point, count_rows
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.block_model import BlockModel
from glue_cli.search.streamed.blocks import SPLITS, Split, split_model
from glue_cli.search.streamed.lockstep import Finish, Lockstep, Rows, Runner
from glue_cli.search.streamed.reader import Reader
from glue_cli.search.streamed.source import Layout

Forward = Callable[[nn.Module], Tensor]


class Engine:
    """Runs forwards of blends block by block, within a limit on the memory of its buffers.

    The model is split into as many blocks as its forward allows. Where a forward uses a tensor outside the block that
    it belongs to, which fails, the model is split into fewer blocks, and the forward is made again.

    Args:
        model: the architecture; tensors that depend on alpha have no values.
        made: the names of the tensors that are made for each alpha, not blended.
        memory_bytes: what the buffers may take: the experts' slices of two blocks, or of one where two do not fit, and
            the blends of one.
    Attributes:
        n_columns: d, as in a bank of the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        experts: RenamedExperts,
        made: Collection[str],
        device: torch.device,
        *,
        n_groups: int,
        channels_last: bool,
        memory_bytes: int,
    ) -> None:
        self.model, self.n_groups, self.n_experts = model, n_groups, len(experts.headers)
        self._experts, self._made, self._device = experts, made, device
        self._channels_last, self._memory_bytes = channels_last, memory_bytes
        self._blended = [entry.name for entry in blended_entries(experts.headers[0], experts.recipe)]
        self._splits = list(SPLITS)
        self._reader: Reader | None = None
        self._models: dict[Hashable, list[BlockModel]] = {}
        self._use(self._splits.pop(0))
        self.n_columns = sum(layout.n_columns for layout in self._layouts.values())

    @property
    def n_blocks(self) -> int:
        return len(self._layouts)

    @property
    def waited_s(self) -> float:
        """How many seconds were spent waiting for the disk."""
        return self._reader.waited_s if self._reader else 0.0

    @property
    def read_bytes(self) -> int:
        """How many bytes were read."""
        return self._reader.read_bytes if self._reader else 0

    def run(
        self,
        passes: Sequence[Pass],
        forwards: Sequence[tuple[Point, Forward]],
        kind: Hashable,
        prepare: Callable[[nn.Module], None],
        make_tensors: MakeTensors,
        *,
        finish: Finish | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the outputs of forwards, each of one of the passes' blends, in their order.

        Args:
            kind: of the models that run; `prepare` makes a new one into one of this kind.
            finish: changes the rows of each block after they were blended.
            fixed: tensors, by name, that take the place of blended ones.
        Raises:
            CheckpointError: an expert's file is gone, has changed, or has NaN or infinity.
            ResourceError: a block does not fit the memory.
        Cost: one pass over the experts.
        """
        n_yielded = 0
        while True:
            try:
                outputs = self._attempt(passes, forwards, kind, prepare, make_tensors, finish, fixed or {})
                for number, found in enumerate(outputs):
                    if number == n_yielded:
                        n_yielded += 1
                        yield found
                    del found
                return
            except AbsentTensorError as error:
                self._use(self._splits.pop(0), because=str(error))

    def close(self) -> None:
        """Give the memory back."""
        if self._reader:
            self._reader.close()

    def _attempt(
        self,
        passes: Sequence[Pass],
        forwards: Sequence[tuple[Point, Forward]],
        kind: Hashable,
        prepare: Callable[[nn.Module], None],
        make_tensors: MakeTensors,
        finish: Finish | None,
        fixed: Mapping[str, Tensor],
    ) -> Iterator[Tensor]:
        if count_rows(passes) > self._n_rows:
            by_point = {id(point): Load(point.alpha[None]) for each in passes for point in each.points}
            passes = list(by_point.values())
            forwards = [(by_point[id(point)].points[0], forward) for point, forward in forwards]
        self._require_reader().begin()
        models = self._take_models(kind, len(forwards), prepare)
        kept = self._keep(passes, finish)
        runners = []
        for (point, forward), model in zip(forwards, models, strict=False):
            model.fix(fixed)
            set_tensors(model.module, make_tensors(point.alpha))
            if self._split.kept.places:
                model.bind(self._split.kept, self._layouts[""].spans, kept[id(point)])
            runners.append(Runner(point, model, partial(forward, model.module)))
        lockstep = Lockstep(
            self._layouts, self._require_reader(), self._rows, n_groups=self.n_groups, whole_columns=self.n_columns
        )
        yield from lockstep.run(passes, runners, self._device, finish)
        for runner in runners:
            runner.model.unbind(self._split.kept)

    def _use(self, how: str, because: str = "") -> None:
        """Split the model, and plan the memory of its blocks.

        Raises:
            ResourceError: a block does not fit.
        """
        self.close()
        self._split: Split = split_model(self.model, self._blended, how)
        blocks = [*([self._split.kept] if self._split.kept.places else []), *self._split.blocks]
        self._layouts = {
            block.module: Layout(block, self._experts, channels_last=self._channels_last) for block in blocks
        }
        self._models.clear()
        self._widest = max(layout.n_columns for layout in self._layouts.values())
        largest = max(layout.n_bytes for layout in self._layouts.values())
        row = 4 * self._widest
        self._is_ahead = 2 * largest + row <= self._memory_bytes
        left = self._memory_bytes - (2 if self._is_ahead else 1) * largest
        self._n_rows = left // row
        if self._n_rows < 1:
            name = max(self._layouts.values(), key=lambda layout: layout.n_bytes).block.module or "what is no block"
            reason = f": its forward cannot be made in smaller parts ({because})" if because else ""
            raise ResourceError(
                f"the experts' '{name}' takes {size(largest)}, and its blend {size(row)}, which do not fit into "
                f"{size(self._memory_bytes)}{reason}",
                hint=f"--memory {-(-(largest + row) // (1 << 20))}MiB, or {-(-(2 * largest + row) // (1 << 20))}MiB "
                "to read ahead",
            )
        self._rows = Rows(self._device, self._widest)
        self._reader = None

    def _require_reader(self) -> Reader:
        if self._reader is None:
            layouts = list(self._layouts.values())
            self._reader = Reader(layouts, self.n_experts, self._device, ahead=self._is_ahead)
        return self._reader

    def _take_models(self, kind: Hashable, n: int, prepare: Callable[[nn.Module], None]) -> list[BlockModel]:
        models = self._models.setdefault(kind, [])
        while len(models) < n:
            model = BlockModel(self.model, self._made, self._split, self._device)
            prepare(model.module)
            models.append(model)
        return models

    @torch.no_grad()
    def _keep(self, passes: Sequence[Pass], finish: Finish | None) -> dict[int, Tensor]:
        """Return each point's row of the tensors that belong to no block, by the point's identity."""
        kept: dict[int, Tensor] = {}
        if not self._split.kept.places:
            return kept
        layout = self._layouts[""]
        bank = layout.bank(self._require_reader().get(layout), self.n_groups, self.n_columns)
        rows = torch.empty(count_rows(passes), layout.n_columns, device=self._device)
        for each in passes:
            each.make(bank, rows)
            for point in each.points:
                kept[id(point)] = rows[point.row].clone()
                if finish:
                    finish(layout.spans, kept[id(point)])
        return kept
