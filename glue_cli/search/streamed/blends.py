"""The outputs of blends that are made and run block by block."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.seeds import derive_seed, seed_generators
from glue_cli.running.batchnorm import use_batch_statistics
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.timing import Precision
from glue_cli.search.bound_models import MakeTensors, make_nothing
from glue_cli.search.pieces import WHOLE, Piece
from glue_cli.search.points import Pass, Point, chosen, passes_at, passes_towards, uniform_alpha
from glue_cli.search.protocol import BLENDED_STATISTICS, BatchNormMode, MeanLoss
from glue_cli.search.streamed.engine import Engine
from glue_cli.search.streamed.runs import MOST_TOGETHER
from glue_cli.search.streamed.written import StreamedWritten


class StreamedBlends:
    """Blends of which a block is in memory at a time; see `Blends`.

    The experts stay in their files, or are held in memory, or several processes hold some columns of them each.

    The forwards of a step go through the model in lockstep: the experts' slices of a block are read once, blended for
    all of them, used and dropped, while the next block is being read.

    Args:
        model: the architecture; tensors that do not depend on alpha are on the device, all others have no values.
        engine: reads the experts and runs the forwards.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

    has_gradient = False

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        compute: Compute,
        *,
        seed: int,
        batchnorm: BatchNormMode = BLENDED_STATISTICS,
        make_tensors: MakeTensors = make_nothing,
    ) -> None:
        self.n_groups, self.n_experts = engine.n_groups, engine.n_experts
        self.model, self._engine, self.compute, self.batchnorm = model, engine, compute, batchnorm
        self._seed, self._make_tensors = seed, make_tensors
        self.is_linear = not make_tensors(uniform_alpha(self.n_groups, self.n_experts))
        self.is_resident = engine.is_held

    @property
    def waited_s(self) -> float:
        """As `Blends.waited_s`."""
        return self._engine.waited_s

    def close(self) -> None:
        """Give the memory of the blocks back; what comes next takes it again."""
        self._engine.close()

    def with_statistics(self, statistics: Statistics) -> "StreamedBlends":
        """As `Blends.with_statistics`; both share the experts."""
        other = copy.copy(self)
        other.batchnorm = replace(self.batchnorm, statistics="batch" if statistics == "refreshed" else "running")
        return other

    def with_precision(self, precision: Precision) -> "StreamedBlends":
        """As `Blends.with_precision`; both share the experts."""
        other = copy.copy(self)
        other.compute = replace(self.compute, precision=precision)
        return other

    def as_written(self, dtypes: Mapping[str, torch.dtype]) -> StreamedWritten:
        """As `Blends.as_written`."""
        return StreamedWritten(self._engine, dtypes=dtypes, make_tensors=self._make_tensors)

    def outputs(
        self, alphas: Tensor, batches: Iterable[Batch], step: int, *, pieces: Sequence[Piece] = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Blends.outputs`. Cost: a pass over the experts for every 16 forwards."""
        passes = passes_at(alphas, self._engine.n_columns, pieces=pieces)
        remaining = iter(batches)
        while self._engine.is_needed(part := list(islice(remaining, max(1, MOST_TOGETHER // len(alphas))))):
            jobs = [job for batch in part for job in _jobs(passes, pieces, batch)]
            outputs = self._run(passes, jobs, step)
            for _, small in jobs:
                yield next(outputs), small[1]
            next(outputs, None)  # there is no more, but other processes may need this one until they are done

    def towards(
        self,
        alpha: Tensor,
        coordinates: Tensor,
        radius: float | Tensor,
        batch: Batch,
        step: int,
        *,
        is_tied: bool = False,
        pieces: Sequence[Piece] = WHOLE,
    ) -> Iterator[Tensor]:
        """As `Blends.towards`. Cost: a pass over the experts."""
        n_columns, precision = self._engine.n_columns, self.compute.precision
        passes = passes_towards(alpha, coordinates, radius, n_columns, precision, is_tied=is_tied)
        yield from self._run(passes, _jobs(passes, pieces, batch, n_always=1), step)

    def gradient(self, alpha: Tensor, batch: Batch, step: int, mean_loss: MeanLoss) -> tuple[float, Tensor]:
        """Refuse: a gradient needs the whole blend and its activations.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "--method fullgrad needs the whole model in memory, and this bank has a block of it at a time",
            hint="--method spsa, which needs forward passes alone, or --bank device or disk",
        )

    def _run(self, passes: Sequence[Pass], jobs: Sequence[tuple[Point, Batch]], step: int) -> Iterator[Tensor]:
        forwards = [(point, self._forward_of(batch, step)) for point, batch in jobs]
        is_narrow = self.compute.precision == "bf16"
        yield from self._engine.run(
            passes, forwards, self.batchnorm, self._prepare, self._make_tensors, is_narrow=is_narrow
        )

    def _prepare(self, model: nn.Module) -> None:
        if self.batchnorm.statistics == "batch":
            use_batch_statistics(model)

    def _forward_of(self, batch: Batch, step: int) -> Callable[[nn.Module], Tensor]:
        @torch.no_grad()
        def forward(model: nn.Module) -> Tensor:
            seed_generators(derive_seed(self._seed, "probe", step))
            with self.compute.autocast():
                return outputs_of(model, batch[0])

        return forward


def _jobs(
    passes: Sequence[Pass], pieces: Sequence[Piece], batch: Batch, *, n_always: int = 0
) -> list[tuple[Point, Batch]]:
    """Return the forwards that the pieces of a batch want, each as the blend and the rows that it takes."""
    jobs: list[tuple[Point, Batch]] = []
    for piece in pieces:
        small = piece.of(batch)
        wanted = chosen(passes, piece.blends, n_always=n_always)
        jobs += [(point, small) for _, points in wanted for point in points]
    return jobs
