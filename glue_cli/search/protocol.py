"""The interfaces that a search uses: the objective that a method minimises, and the outputs of blends behind it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch
from glue_cli.running.timing import Precision
from glue_cli.search.account import Cost
from glue_cli.search.pieces import WHOLE, Piece
from glue_cli.search.secants import Quadratic

MeanLoss = Callable[[Tensor, Tensor], Tensor]  # outputs and targets of a batch -> their mean loss, [], differentiable


@dataclass(frozen=True)
class BatchNormMode:
    """What BatchNorm does in the blends of a search.

    Attributes:
        statistics: whether it uses the blended running statistics or those of the batch.
        is_differentiated: whether a gradient passes through the blended running statistics.
    """

    statistics: Literal["running", "batch"] = "running"
    is_differentiated: bool = True


BLENDED_STATISTICS = BatchNormMode()


class WrittenBlend(Protocol):
    """One blend as its file will be: each tensor in the file's dtype, with its own BatchNorm statistics.

    All passes are in float32, so that experts that hardly differ can be told apart, and `glue evaluate` gives the same
    figures with `--set precision=fp32`. It may share memory with the `Blends` that it comes from: loading it ends
    their outputs, and theirs end its own.
    """

    def load(self, alpha: Tensor) -> None:
        """Set it to the blend for alpha [G, K]."""

    def refresh(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        """Take BatchNorm's statistics from these batches, as far as they are certain.

        Cost: a forward for each batch, which the processes `ranks` share.
        """

    def outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield its outputs on each batch, with the batch's targets. Cost: a forward for each batch."""
        ...

    def statistics(self) -> dict[str, Tensor]:
        """Return BatchNorm's statistics as `refresh` took them, by their names in a state dict, on the CPU."""
        ...


class Blends(Protocol):
    """The model's outputs for any alpha: all that a search needs from the experts.

    An implementation decides where the experts are stored, what BatchNorm uses, and whether a blend is made as a whole
    or layer by layer. It knows nothing of losses, and charges nothing. Within a step, all forwards use the same random
    state, whatever alpha is.

    Attributes:
        model: the architecture; its tensors need not have values.
        is_resident: whether the experts are in this process's memory; if not, every blend takes the time of reading
            them, or of getting its blocks from other processes.
        waited_s: how many seconds the forwards have waited for that.
        has_gradient: whether gradients pass the whole model, so that `gradient` returns them.
        is_linear: whether every tensor is linear in alpha, so that there are blends outside the simplex as well.
        compute: what the forwards run with; batches have to be on its device, in its memory format.
    """

    @property
    def n_groups(self) -> int: ...

    @property
    def n_experts(self) -> int: ...

    @property
    def is_linear(self) -> bool: ...

    @property
    def has_gradient(self) -> bool: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def is_resident(self) -> bool: ...

    @property
    def waited_s(self) -> float: ...

    @property
    def compute(self) -> Compute: ...

    def with_precision(self, precision: Precision) -> Self:
        """Return the same blends, whose forwards run in another precision."""
        ...

    def as_written(self, dtypes: Mapping[str, torch.dtype]) -> WrittenBlend:
        """Return one blend as its file will be.

        Args:
            dtypes: the dtype in which each tensor is written, by its name in the model; float32 by default.
        """
        ...

    def outputs(
        self, alphas: Tensor, batches: Iterable[Batch], step: int, *, pieces: Sequence[Piece] = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the outputs of each blend on the first batch, then on the next, each with the batch's targets.

        Args:
            alphas: [m, G, K], on the simplex.
            pieces: what is wanted of each batch, one piece after the other.
        Cost: one pass over the experts, and m forwards for each batch; no gradients.
        """
        ...

    def with_statistics(self, statistics: Statistics) -> Self:
        """Return the same blends with other BatchNorm statistics; for refreshed ones, they use each batch's."""
        ...

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
        """Yield the outputs at alpha, then those at points on the way from alpha to each single expert.

        Args:
            alpha: [G, K], on the simplex.
            coordinates: int64 [n], positions in the flattened alpha: which group moves to which expert.
            radius: how far, as a share of the way: the same for all, or float64 [n]. Only linear blends can be moved
                by more than 1, beyond the expert.
            is_tied: whether all groups move together; coordinates are then numbers of experts, below K.
            pieces: what is wanted, one piece after the other: its rows at alpha, then at its points on the way.
        Cost: n + 1 forwards; no gradients.
        """
        ...

    def gradient(self, alpha: Tensor, batch: Batch, step: int, mean_loss: MeanLoss) -> tuple[float, Tensor]:
        """Return the mean loss L, and dL/dalpha, [G, K], float64 on the CPU, up to a constant for each group.

        Cost: a forward and a backward.
        """
        ...


class Objective(Protocol):
    """The function of alpha that is minimised; implemented by `glue_cli.search.objective.BlendObjective`.

    Attributes:
        is_smooth, follows_loss: as in `Goal`.
        kinds: the kinds of BatchNorm statistics that a blend may be written with, at least one; the first is the kind
            that this objective uses.
        n_examples: the number of examples that the minibatches are drawn from.
        n_folds: the number of folds of these examples; quadratics are kept separately for each fold.
    """

    n_groups: int
    n_experts: int
    is_smooth: bool
    follows_loss: bool
    kinds: tuple[Statistics, ...]
    n_examples: int
    n_folds: int
    cost: Cost

    def with_statistics(self, statistics: Statistics) -> "Objective":
        """Return the same objective for blends of another kind; the account is shared."""

    def probe_losses(self, alphas: Tensor, step: int) -> Tensor: ...

    def pair_losses(self, alphas: Tensor, step: int) -> Tensor:
        """Return losses, [2 n], of which only the difference within a pair matters; first ones, then second ones."""

    def quadratic(
        self, alpha: Tensor, coordinates: Tensor, radius: float, step: int, *, is_tied: bool = False
    ) -> Quadratic: ...

    def nat_at(self, loss: float) -> float:
        """Return how much of the loss is a nat of the likelihood that it stands for, where it has this value."""

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]: ...

    @property
    def n_validation_batches(self) -> int: ...

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float: ...

    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor: ...

    def written_terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None = None) -> Tensor:
        """Return the held-out terms, [N], float64, of a blend as it would be written.

        Args:
            alphas: [G, K], or [F, G, K], one alpha for each fold, made without it and judged on it.
            n_batches: how many held-out batches to use, from the first on; None for all.
        """

    def n_written_forwards(self, statistics: Statistics, n_batches: int | None = None) -> int:
        """Return how many forwards `written_terms` makes."""

    @property
    def n_held_out_batches(self) -> int: ...
