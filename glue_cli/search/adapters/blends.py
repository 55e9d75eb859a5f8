"""Mixes of adapters from their factors, beside one copy of their base; see `Blends`."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from glue_cli.blend.adapters.stacked import StackedFactors
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.seeds import derive_seed, seeded
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, Inputs
from glue_cli.running.timing import Precision
from glue_cli.search.adapters.adapted_model import AdaptedModel
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.pieces import WHOLE, Piece
from glue_cli.search.points import towards_experts
from glue_cli.search.protocol import MeanLoss


class AdapterBlends:
    """Mixes of K adapters, in one group of tensors, for models without BatchNorm.

    Args:
        model: the base, on the device; its weights may be bfloat16 or float16.
        factors: by the names of the modules, on the device.
        plain: the tensors that the adapters replace; None if there are none.
        by_library: whether a library computes with the base's weights, as for `AdaptedModel`.
    """

    n_groups = 1
    is_resident = is_linear = has_gradient = True
    waited_s = 0.0

    def __init__(
        self,
        model: nn.Module,
        factors: Mapping[str, StackedFactors],
        plain: ExpertBank | None,
        compute: Compute,
        *,
        n_experts: int,
        seed: int,
        by_library: bool = False,
    ) -> None:
        self.model, self.compute, self.n_experts = model.eval().requires_grad_(False), compute, n_experts
        self._factors, self._plain, self._seed = factors, plain, seed
        self._by_library = by_library
        self._adapted = AdaptedModel(self.model, factors, plain, {}, by_library=by_library)

    def with_statistics(self, statistics: Statistics) -> "AdapterBlends":
        """As `Blends.with_statistics`: without BatchNorm, there are none."""
        return self

    def with_precision(self, precision: Precision) -> "AdapterBlends":
        """As `Blends.with_precision`; both share everything."""
        other = copy.copy(self)
        other.compute = replace(self.compute, precision=precision)
        return other

    def as_written(self, dtypes: Mapping[str, torch.dtype]) -> "WrittenAdapters":
        """As `Blends.as_written`."""
        narrow = {name: dtype for name, dtype in dtypes.items() if dtype != torch.float32}
        if self._by_library:  # what is written is an adapter
            return WrittenAdapters(self._adapted, narrow)
        return WrittenAdapters(AdaptedModel(self.model, self._factors, self._plain, narrow), narrow)

    def outputs(
        self, alphas: Tensor, batches: Iterable[Batch], step: int, *, pieces: Sequence[Piece] = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Blends.outputs`. Cost: m forwards for each batch, with the factors of all adapters; no blend."""
        for batch in batches:
            for piece in pieces:
                small = piece.of(batch)
                for alpha in alphas[piece.blends]:
                    yield self._outputs(alpha, small, step), small[1]

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
        """As `Blends.towards`. Cost: n + 1 forwards; no blend."""
        ends = towards_experts(alpha, coordinates, radius, is_tied=is_tied)
        for piece in pieces:
            for point in (alpha, *ends[piece.blends]):
                yield self._outputs(point, piece.of(batch), step)

    def gradient(self, alpha: Tensor, batch: Batch, step: int, mean_loss: MeanLoss) -> tuple[float, Tensor]:
        """As `Blends.gradient`: by alpha itself through the factors, and by products for tensors that are replaced."""
        names = self._plain.spans if self._plain else {}
        leaves = {name: tensor for name, tensor in self._adapted.module.named_parameters() if name in names}
        with torch.enable_grad():
            by_alpha = alpha.detach().clone().requires_grad_()
            self._adapted.show(by_alpha)
            for leaf in leaves.values():
                leaf.requires_grad_()
            loss = mean_loss(self._forward(batch[0], step), batch[1])
            slopes = torch.autograd.grad(loss, [by_alpha, *leaves.values()], allow_unused=True)
        slope = torch.zeros_like(by_alpha) if slopes[0] is None else slopes[0].double().cpu()
        if self._plain:
            row = torch.zeros_like(self._adapted.row)
            for (name, leaf), by_leaf in zip(leaves.items(), slopes[1:], strict=True):
                leaf.requires_grad_(False)
                if by_leaf is not None:
                    self._plain.spans[name].view(row[0]).copy_(by_leaf)
            slope = slope + self._plain.inner_products(row[0], self._adapted.row[0]).cpu()
        return loss.item(), slope

    @torch.no_grad()  # not on the generators, which would then hold their last outputs while the next are made
    def _outputs(self, alpha: Tensor, batch: Batch, step: int) -> Tensor:
        self._adapted.show(alpha)
        return self._forward(batch[0], step)

    def _forward(self, inputs: Inputs, step: int) -> Tensor:
        with seeded(derive_seed(self._seed, "probe", step), self.compute.device), self.compute.autocast():
            return self._adapted.outputs(inputs)


class WrittenAdapters:
    """A mix of adapters as its file will be: as an adapter, or merged into weights of the base's dtypes.

    Args:
        dtypes: other than float32, by the tensors' names; empty if the mix is an adapter.
    """

    def __init__(self, adapted: AdaptedModel, dtypes: Mapping[str, torch.dtype]) -> None:
        self._adapted, self._dtypes = adapted, dtypes

    @torch.no_grad()
    def load(self, alpha: Tensor) -> None:
        """As `WrittenBlend.load`."""
        self._adapted.show(alpha)
        for name, span in self._adapted.plain.spans.items() if self._adapted.plain else ():
            span.round(self._adapted.row[0], self._dtypes.get(name, torch.float32))

    def refresh(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        """As `WrittenBlend.refresh`: without BatchNorm, nothing is to do."""

    def outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `WrittenBlend.outputs`."""
        for inputs, targets in batches:
            yield self._outputs(inputs), targets

    def statistics(self) -> dict[str, Tensor]:
        """As `WrittenBlend.statistics`: without BatchNorm, there are none."""
        return {}

    @torch.no_grad()
    def _outputs(self, inputs: Inputs) -> Tensor:
        return self._adapted.outputs(inputs)
