"""One blend as its file will be, made and run block by block."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from glue_cli.foundation.ranks import Ranks
from glue_cli.running.batchnorm import keep_own_counters
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.moments import layers_of, observing, shrunk_statistics
from glue_cli.running.refreshing import SumOverBatches
from glue_cli.search.bank.matrix import Span
from glue_cli.search.bound_models import MakeTensors
from glue_cli.search.points import Load
from glue_cli.search.streamed.engine import Engine
from glue_cli.search.streamed.runs import MOST_TOGETHER


class StreamedWritten:
    """A blend of which a block is in memory at a time; see `WrittenBlend`.

    Args:
        dtypes: the dtype in which each tensor is written, by name; float32 by default.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

    def __init__(self, engine: Engine, *, dtypes: Mapping[str, torch.dtype], make_tensors: MakeTensors) -> None:
        self._engine, self._dtypes, self._make_tensors = engine, dtypes, make_tensors
        self._alpha: Tensor | None = None
        self._statistics: dict[str, Tensor] = {}  # taken anew; empty where they are the blended ones

    def load(self, alpha: Tensor) -> None:
        """As `WrittenBlend.load`; the experts are read when it runs."""
        self._alpha, self._statistics = alpha, {}

    def refresh(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        """As `WrittenBlend.refresh`."""
        self._statistics, rows = {}, SumOverBatches(ranks)
        for own in rows.rounds(batches):
            for part in self._parts(own):
                forwards = [_ObservedForward(inputs) for inputs, _ in part]
                for _ in self._run(forwards):
                    pass
                for forward in forwards:
                    rows.add(forward.row)
        for name, tensor in shrunk_statistics(layers_of(self._engine.model), rows.total).items():
            is_written = tensor.is_floating_point()
            self._statistics[name] = (self._as_written(name, tensor) if is_written else tensor).to(self._engine.device)

    def outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `WrittenBlend.outputs`. Cost: a pass over the experts for every 16 batches."""
        for part in self._parts(batches):
            outputs = self._run([partial(outputs_of, inputs=inputs) for inputs, _ in part])
            for (_, targets), found in zip(part, outputs, strict=True):
                yield found, targets
                del found

    def statistics(self) -> dict[str, Tensor]:
        """As `WrittenBlend.statistics`."""
        return {name: tensor.cpu().clone() for name, tensor in self._statistics.items()}

    def _parts(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Yield the batches in parts that pass together; empty ones while other processes have some left."""
        remaining = iter(batches)
        while self._engine.is_needed(part := list(islice(remaining, MOST_TOGETHER))):
            yield part

    def _run(self, forwards: Sequence[Callable[[nn.Module], Tensor]]) -> Iterator[Tensor]:
        """Yield what the forwards return, each given a model of the blend."""
        assert self._alpha is not None
        load, make, fixed = Load(self._alpha[None]), self._make_as_written, self._statistics
        passes = [(load.points[0], torch.no_grad()(forward)) for forward in forwards]
        yield from self._engine.run(
            [load], passes, "written", keep_own_counters, make, finish=self._round, fixed=fixed
        )

    def _make_as_written(self, alpha: Tensor) -> dict[str, Tensor]:
        return {name: self._as_written(name, tensor) for name, tensor in self._make_tensors(alpha).items()}

    def _round(self, spans: Mapping[str, Span], row: Tensor) -> None:
        for name, span in spans.items():
            span.round(row, self._dtypes.get(name, torch.float32))

    def _as_written(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtypes.get(name, torch.float32)).to(tensor.dtype)


class _ObservedForward:
    """A forward whose BatchNorms use their batch; `row` has the moments that its last attempt has left."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self.row = torch.empty(0)

    def __call__(self, model: nn.Module) -> Tensor:
        with observing(model) as moments:
            outputs = outputs_of(model, self._inputs)
        self.row = moments.row
        return outputs
