"""The outputs of whole blends in memory, from copies of the model that are bound to the rows of one matrix."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.seeds import derive_seed
from glue_cli.running.batchnorm import differentiate_statistics, use_batch_statistics
from glue_cli.running.cuda_graphs import CudaCapture, GraphedForwards
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.timing import Precision
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.bound_models import MakeTensors, bind, make_nothing, set_tensors
from glue_cli.search.protocol import BLENDED_STATISTICS, BatchNormMode, MeanLoss
from glue_cli.search.written import WrittenInMemory

# Limit on the memory of the blends towards all experts together; above it they are made one at a time.
_PASS_BYTES = 64 << 20
# A larger model computes longer on a GPU than its kernels take to launch.
_GRAPHED_COLUMNS = 1 << 24


class ResidentBlends:
    """Blends whose tensors all lie in memory; see `Blends`.

    The blends of a step are stored in one matrix [m, d], and the parameters of m copies of the model are views of its
    rows: a step is one pass over the experts, followed by forward passes only.

    Args:
        model: the architecture, on the device, with the tensors that do not depend on alpha; put into eval mode.
        bank: the tensors that are blended.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

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
        self._uniform = torch.full((bank.n_groups, bank.n_experts), 1 / bank.n_experts, dtype=torch.float64)
        self.model, self._bank, self.compute = model.eval().requires_grad_(False), bank, compute
        self._seed, self._make_tensors = seed, make_tensors
        self._outputs_of = self._forwards()
        self._rows = torch.empty(0, bank.n_columns, device=bank.device)
        self._copies: list[nn.Module] = []
        self._differentiable: tuple[nn.Module, Tensor, Tensor] | None = None

    def with_statistics(self, statistics: Statistics) -> "ResidentBlends":
        """As `Blends.with_statistics`; both share the experts, but not the rows of blends."""
        by_batch = replace(self.batchnorm, statistics="batch" if statistics == "refreshed" else "running")
        return self if by_batch == self.batchnorm else self._changed(batchnorm=by_batch)

    def with_precision(self, precision: Precision) -> "ResidentBlends":
        """As `Blends.with_precision`; both share the experts, but not the rows of blends."""
        other = self._changed(compute=replace(self.compute, precision=precision))
        other._outputs_of = other._forwards()  # a graph is captured in one precision
        return other

    def as_written(self, dtypes: Mapping[str, torch.dtype]) -> WrittenInMemory:
        """As `Blends.as_written`."""
        return WrittenInMemory(self.model, self._bank, dtypes=dtypes, make_tensors=self._make_tensors)

    def outputs(self, alphas: Tensor, batches: Iterable[Batch], step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Blends.outputs`. Cost: m rows of d float32 in memory."""
        self._load(alphas)
        for batch in batches:
            for copied in self._copies[: len(alphas)]:
                yield self._outputs(copied, batch, step), batch[1]

    def towards(
        self, alpha: Tensor, coordinates: Tensor, radius: float, batch: Batch, step: int, *, is_tied: bool = False
    ) -> Iterator[Tensor]:
        """As `Blends.towards`.

        Cost: one pass over the experts; for a large model, also each expert once more, with two rows in memory.
        """
        for model in self._on_the_way(alpha, coordinates, radius, is_tied):
            yield self._outputs(model, batch, step)

    def gradient(self, alpha: Tensor, batch: Batch, step: int, mean_loss: MeanLoss) -> tuple[float, Tensor]:
        """As `Blends.gradient`. Cost: one pass over the experts for the blend and one for the products.

        The constant makes the alpha-weighted mean 0: products are taken with the experts' differences from the blend.
        """
        model, theta, gradient = self._differentiable_model()
        self._bank.blend(alpha[None], theta)
        gradient.zero_()
        with torch.enable_grad():
            by_alpha = alpha.detach().clone().requires_grad_()
            made = self._make_tensors(by_alpha)
            leaves = set_tensors(model, made)
            loss = mean_loss(self._forward(model, batch, step), batch[1])
            loss.backward()  # type: ignore[no-untyped-call]
        products = self._bank.inner_products(gradient[0], theta[0]).cpu()
        if made:
            slopes = [_slope_of(leaf).to(tensor) for leaf, tensor in zip(leaves, made.values(), strict=True)]
            products += torch.autograd.grad(list(made.values()), by_alpha, slopes)[0]
        return loss.item(), products

    def _forwards(self) -> Callable[[nn.Module, Inputs], Tensor]:
        """Return a function that runs a model; on a GPU it replays the passes of small ones."""
        is_graphed = self.compute.device.type == "cuda" and self._bank.n_columns <= _GRAPHED_COLUMNS
        return GraphedForwards(CudaCapture(self.compute.device)) if is_graphed else outputs_of

    def _changed(self, **changes: Any) -> "ResidentBlends":
        """Return the same blends with other attributes, and rows and models of their own."""
        other = copy.copy(self)
        other._rows, other._copies, other._differentiable = self._rows.new_empty(0, self._bank.n_columns), [], None
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    @torch.no_grad()  # not on the generator, which would then hold its last outputs while the next are made
    def _outputs(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        return self._forward(model, batch, step)

    def _forward(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        inputs, targets = batch
        devices: Sequence[torch.device] = [targets.device] if targets.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(self._seed, "probe", step))
            with self.compute.autocast():
                return self._outputs_of(model, inputs)

    @torch.no_grad()
    def _load(self, alphas: Tensor) -> None:
        """Write the blends into the rows of the first copies."""
        self._make_copies(len(alphas))
        self._bank.blend(alphas, self._rows[: len(alphas)])
        for copied, alpha in zip(self._copies, alphas, strict=False):
            set_tensors(copied, self._make_tensors(alpha))

    def _make_copies(self, m: int) -> None:
        """Ensure that there are at least `m` copies; if there are fewer, make all again."""
        if m > len(self._copies):
            self._copies, self._rows = [], self._rows.new_empty(0)  # frees the memory before new ones are made
            self._rows = torch.empty(m, self._bank.n_columns, device=self._bank.device)
            made = self._make_tensors(self._uniform)
            self._copies = [bind(self.model, self._bank.spans, row, made.keys()) for row in self._rows]
            if self.batchnorm.statistics == "batch":
                for copied in self._copies:
                    use_batch_statistics(copied)

    def _on_the_way(self, alpha: Tensor, coordinates: Tensor, radius: float, is_tied: bool) -> Iterator[nn.Module]:
        """Yield models for one forward each: the blend for alpha [G, K], then those moved towards single experts."""
        ends = towards_experts(alpha, coordinates, radius, is_tied=is_tied)
        if 4 * self._bank.n_columns * (1 + len(ends)) <= _PASS_BYTES:
            self._load(torch.cat([alpha[None], ends]))
            yield from self._copies[: 1 + len(ends)]
            return
        self._make_copies(2)
        self._load(alpha[None])
        yield self._copies[0]
        for end, coordinate in zip(ends, coordinates.tolist(), strict=True):
            group, expert = (None, coordinate) if is_tied else divmod(coordinate, self.n_experts)
            self._move(end, group, expert, radius)
            yield self._copies[1]

    @torch.no_grad()
    def _move(self, end: Tensor, group: int | None, expert: int, radius: float) -> None:
        """Set the second copy to the first one's blend, moved by `radius` towards a single expert, to `end` [G, K]."""
        self._bank.move(self._rows[0], group, expert, radius, self._rows[1])
        set_tensors(self._copies[1], self._make_tensors(end))

    def _differentiable_model(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Return a copy of the model, theta [1, d] and its gradient [1, d], of which the copy's tensors are views."""
        if self._differentiable is None:
            theta = torch.empty(1, self._bank.n_columns, device=self._bank.device)
            gradient = torch.zeros_like(theta)
            made = self._make_tensors(self._uniform)
            model = bind(self.model, self._bank.spans, theta[0], made.keys())
            if self.batchnorm.statistics == "batch":
                use_batch_statistics(model)
            leaves: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
            if self.batchnorm.statistics == "running" and self.batchnorm.is_differentiated:
                differentiate_statistics(model)
                leaves |= dict(model.named_buffers(remove_duplicate=False))
            for name, span in self._bank.spans.items():
                if name in leaves:
                    leaves[name].requires_grad_()
                    leaves[name].grad = span.view(gradient[0])
            self._differentiable = model, theta, gradient
        return self._differentiable


def towards_experts(alpha: Tensor, coordinates: Tensor, radius: float, *, is_tied: bool = False) -> Tensor:
    """Return alpha [G, K] moved by `radius` towards each of the experts at `coordinates` [n] separately: [n, G, K].

    If the groups are tied, all of them move, and coordinates are numbers of experts.
    """
    n_experts = alpha.shape[1]
    if is_tied:
        return alpha.lerp(torch.eye(n_experts, dtype=alpha.dtype)[coordinates][:, None], radius)
    ends = alpha.repeat(len(coordinates), 1, 1)
    places = torch.arange(len(coordinates)), coordinates // n_experts
    ends[places] *= 1 - radius
    ends[*places, coordinates % n_experts] += radius
    return ends


def _slope_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
