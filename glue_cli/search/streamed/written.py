"""One blend as its file will be, made and run block by block."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from glue_cli.running.batchnorm import keep_own_counters
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.observed_batchnorm import Observer
from glue_cli.search.bank.matrix import Span
from glue_cli.search.bound_models import MakeTensors
from glue_cli.search.points import Load
from glue_cli.search.streamed.engine import Engine

_MOST_TOGETHER = 16  # forward passes, as in `StreamedBlends`


class StreamedWritten:
    """A blend of which a block is in memory at a time; see `WrittenBlend`.

    Args:
        dtypes: the dtype in which each tensor is written, by name; float32 by default.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

    def __init__(self, engine: Engine, *, dtypes: Mapping[str, torch.dtype], make_tensors: MakeTensors) -> None:
        self._engine, self._dtypes, self._make_tensors = engine, dtypes, make_tensors
        self._alpha: Tensor | None = None
        self._observer = Observer()
        self._statistics: dict[str, Tensor] = {}  # taken anew; empty where they are the blended ones

    def load(self, alpha: Tensor) -> None:
        """As `WrittenBlend.load`; the experts are read when it runs."""
        self._alpha, self._statistics = alpha, {}

    def refresh(self, batches: Iterable[Batch]) -> None:
        """As `WrittenBlend.refresh`."""
        self._statistics, again = {}, list(batches)
        n_blocks = 0
        while n_blocks != self._engine.n_blocks:  # the engine begins anew where it finds that it needs larger blocks
            n_blocks = self._engine.n_blocks
            self._observer.moments.clear()
            for _ in self._run(again, ("refreshing", self), self._observer.watch):
                pass
        for name, tensor in self._observer.statistics().items():
            is_written = tensor.is_floating_point()
            self._statistics[name] = self._as_written(name, tensor) if is_written else tensor

    def outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `WrittenBlend.outputs`. Cost: a pass over the experts for every 16 batches."""
        yield from self._run(batches, "written", keep_own_counters)

    def statistics(self) -> dict[str, Tensor]:
        """As `WrittenBlend.statistics`."""
        return {name: tensor.cpu().clone() for name, tensor in self._statistics.items()}

    def _run(
        self, batches: Iterable[Batch], kind: Hashable, prepare: Callable[[nn.Module], object]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._alpha is not None
        load, remaining = Load(self._alpha[None]), iter(batches)
        while self._engine.is_needed(part := list(islice(remaining, _MOST_TOGETHER))):
            forwards = [(load.points[0], _forward_of(batch[0])) for batch in part]
            outputs = self._engine.run(
                [load], forwards, kind, prepare, self._make_as_written, finish=self._round, fixed=self._statistics
            )
            for batch, found in zip(part, outputs, strict=True):
                yield found, batch[1]
                del found

    def _make_as_written(self, alpha: Tensor) -> dict[str, Tensor]:
        return {name: self._as_written(name, tensor) for name, tensor in self._make_tensors(alpha).items()}

    def _round(self, spans: Mapping[str, Span], row: Tensor) -> None:
        for name, span in spans.items():
            if self._dtypes.get(name, torch.float32) != torch.float32:
                there = span.view(row)
                there.copy_(self._as_written(name, there))

    def _as_written(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtypes.get(name, torch.float32)).to(tensor.dtype)


def _forward_of(inputs: Inputs) -> Callable[[nn.Module], Tensor]:
    return torch.no_grad()(lambda model: outputs_of(model, inputs))
