"""The outputs of whole blends in memory, from copies of the model that are bound to the rows of one matrix."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.seeds import derive_seed, seeded
from glue_cli.running.batchnorm import differentiate_statistics, statistics_of, use_batch_statistics
from glue_cli.running.cuda_graphs import CudaCapture, GraphedForwards
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.timing import Precision
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.blend_rows import BlendRows
from glue_cli.search.bound_models import MakeTensors, make_nothing, set_tensors
from glue_cli.search.pieces import WHOLE, Piece
from glue_cli.search.points import (
    Move,
    Pass,
    chosen,
    count_rows,
    make_blends,
    passes_at,
    passes_towards,
    uniform_alpha,
)
from glue_cli.search.protocol import BLENDED_STATISTICS, BatchNormMode, MeanLoss
from glue_cli.search.written import WrittenInMemory

# A larger model computes longer on a GPU than its kernels take to launch.
_GRAPHED_COLUMNS = 1 << 24
_WITHOUT = "--method spsa needs forward passes alone"


class ResidentBlends:
    """Blends whose tensors all lie in memory; see `Blends`.

    The blends of a step are stored in one matrix [m, d], and the parameters of m copies of the model are views of its
    rows: a step is one pass over the experts, followed by forward passes only. Of a large model, at most two blends
    are in memory at once in float32, one in bfloat16: more than one pass over the experts then, and less memory.

    Args:
        model: the architecture, with the tensors that do not depend on alpha on the device; put into eval mode.
        bank: the tensors that are blended.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

    is_resident = has_gradient = True
    waited_s = 0.0

    def __init__(
        self,
        model: nn.Module,
        bank: ExpertBank,
        compute: Compute,
        *,
        seed: int,
        batchnorm: BatchNormMode = BLENDED_STATISTICS,
        make_tensors: MakeTensors = make_nothing,
    ) -> None:
        self.n_groups, self.n_experts, self.batchnorm = bank.n_groups, bank.n_experts, batchnorm
        self.model, self._bank, self.compute = model.eval().requires_grad_(False), bank, compute
        self._seed, self._make_tensors = seed, make_tensors
        self._outputs_of = self._forwards()
        self._changes_weights: bool | None = None  # whether forwards do, such as of an embedding with max_norm
        uniform = uniform_alpha(bank.n_groups, bank.n_experts)
        made = make_tensors(uniform).keys()
        self.is_linear = not made
        self._rows = BlendRows(self.model, bank, made)

    def with_statistics(self, statistics: Statistics) -> "ResidentBlends":
        """As `Blends.with_statistics`; both share the experts and the rows of blends."""
        by_batch = replace(self.batchnorm, statistics="batch" if statistics == "refreshed" else "running")
        if by_batch == self.batchnorm:
            return self
        other = copy.copy(self)
        other.batchnorm = by_batch
        return other

    def with_precision(self, precision: Precision) -> "ResidentBlends":
        """As `Blends.with_precision`; both share the experts and the rows of blends."""
        other = copy.copy(self)
        other.compute = replace(self.compute, precision=precision)
        other._outputs_of = other._forwards()  # a graph is captured in one precision
        return other

    def as_written(self, dtypes: Mapping[str, torch.dtype]) -> WrittenInMemory:
        """As `Blends.as_written`."""
        return WrittenInMemory(self._rows, self._bank, dtypes=dtypes, make_tensors=self._make_tensors)

    def outputs(
        self, alphas: Tensor, batches: Iterable[Batch], step: int, *, pieces: Sequence[Piece] = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Blends.outputs`.

        Cost: m rows of d float32 in memory. Of a large model, one row, and a pass over the experts for each blend.
        """
        passes, made = passes_at(alphas, self._bank.n_columns, pieces=pieces), None
        for batch in batches:
            for piece in pieces:
                small = piece.of(batch)
                for each, points in chosen(passes, piece.blends):
                    made = self._make(each, made)
                    for point in points:
                        yield self._outputs(self._model(point.row), small, step), small[1]

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
        """As `Blends.towards`.

        Cost: one pass over the experts; for a larger model, also each expert once more, with two rows in memory; for a
        large one in bfloat16, a pass for each of the n + 1 blends, with one row in memory.
        """
        n_columns, precision = self._bank.n_columns, self.compute.precision
        passes = passes_towards(alpha, coordinates, radius, n_columns, precision, is_tied=is_tied)
        rows = self._rows.take(count_rows(passes))
        made, before = None, None
        for piece in pieces:
            small = piece.of(batch)
            for each, points in chosen(passes, piece.blends, n_always=1):
                if isinstance(each, Move) and self._changes_weights:
                    made = self._make(passes[0], None)
                made = self._make(each, made)
                if before is None and self._changes_weights is None:
                    before = _digest(rows[0])
                for point in points:
                    outputs = self._outputs(self._model(point.row), small, step)
                    if before is not None and self._changes_weights is None:
                        self._changes_weights = _digest(rows[0]) != before
                    yield outputs
                    del outputs  # before the next are made

    def gradient(self, alpha: Tensor, batch: Batch, step: int, mean_loss: MeanLoss) -> tuple[float, Tensor]:
        """As `Blends.gradient`. Cost: one pass over the experts for the blend and one for the products.

        Raises:
            SpecError: no gradient passes through the model.

        The constant makes the alpha-weighted mean 0: products are taken with the experts' differences from the blend.
        """
        model, theta, gradient = self._differentiable()
        self._bank.blend(alpha[None], theta)
        gradient.zero_()
        with torch.enable_grad():
            by_alpha = alpha.detach().clone().requires_grad_()
            made = self._make_tensors(by_alpha)
            leaves = set_tensors(model, made)
            try:
                loss = mean_loss(self._forward(model, batch, step), batch[1])
                loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise SpecError(f"no gradient passes through the model: {error}", hint=_WITHOUT) from error
        products = self._bank.inner_products(gradient[0], theta[0]).cpu()
        if made:
            slopes = [_slope_of(leaf).to(tensor) for leaf, tensor in zip(leaves, made.values(), strict=True)]
            products += torch.autograd.grad(list(made.values()), by_alpha, slopes)[0]
        return loss.item(), products

    def _forwards(self) -> Callable[[nn.Module, Inputs], Tensor]:
        """Return a function that runs a model; on a GPU it replays the passes of small ones."""
        is_graphed = self.compute.device.type == "cuda" and self._bank.n_columns <= _GRAPHED_COLUMNS
        return GraphedForwards(CudaCapture(self.compute.device)) if is_graphed else outputs_of

    @torch.no_grad()  # not on the generator, which would then hold its last outputs while the next are made
    def _outputs(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        return self._forward(model, batch, step)

    def _forward(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        inputs, targets = batch
        with seeded(derive_seed(self._seed, "probe", step), targets.device), self.compute.autocast():
            return self._outputs_of(model, inputs)

    def _model(self, row: int) -> nn.Module:
        """Return the model whose tensors lie in a row."""
        return self._rows.model(self.batchnorm, row, self._prepare)

    def _prepare(self, model: nn.Module) -> None:
        if self.batchnorm.statistics == "batch":
            use_batch_statistics(model)

    @torch.no_grad()
    def _make(self, each: Pass, made: Pass | None) -> Pass:
        """Make a pass's blends in the rows, unless it is the one that was made last; return the pass."""
        if each is not made:
            make_blends(self._bank, [(each, each.points[0].row)], self._rows.take(count_rows([each])))
            for point in each.points:
                set_tensors(self._model(point.row), self._make_tensors(point.alpha))
        return each

    def _differentiable(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Return a model, theta [1, d] and its gradient [1, d], of which the model's tensors are views."""
        theta, gradient = torch.split(self._rows.take(2), 1)
        gradient = gradient.data  # which autograd does not take for a change of theta, from which it is split

        def prepare(model: nn.Module) -> None:
            self._prepare(model)
            leaves: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
            if self.batchnorm.statistics == "running" and self.batchnorm.is_differentiated:
                differentiate_statistics(model)
                leaves |= statistics_of(model)
            for name, span in self._bank.spans.items():
                if name in leaves:
                    leaves[name].requires_grad_()
                    leaves[name].grad = span.view(gradient[0])

        return self._rows.model(("gradient", self.batchnorm), 0, prepare), theta, gradient


def _digest(row: Tensor) -> int:
    """Return a number that changes with the bits of a row [d]."""
    return int(row.view(torch.int32).sum())


def _slope_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
