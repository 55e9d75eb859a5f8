"""What a method asks of the function that it minimises, and what that asks of whoever yields the outputs of blends."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, Self

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.running.forward import Batch
from glue_cli.search.account import Cost
from glue_cli.search.secants import Quadratic

MeanLoss = Callable[[Tensor, Tensor], Tensor]  # outputs and targets of a batch -> their mean loss, [], differentiable


class Blends(Protocol):
    """The outputs of the model for any alpha: the one thing that a search needs of the experts.

    Whoever provides them decides where the experts are, what BatchNorm uses, and whether a blend is made as a whole or
    layer by layer. It knows nothing of losses, and charges nothing. All that happens in one step, by whatever alpha,
    sees the same random state.
    """

    @property
    def n_groups(self) -> int: ...

    @property
    def n_experts(self) -> int: ...

    def outputs(self, alphas: Tensor, batches: Iterable[Batch], step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the outputs of each blend on the first batch, then on the next, each with the batch's targets.

        Args:
            alphas: [m, G, K], on the simplex.
        Cost: one pass over the experts and, of each batch, m forwards; no gradients.
        """
        ...

    def with_statistics(self, statistics: Statistics) -> Self:
        """Return the same blends where BatchNorm uses other statistics: for refreshed ones, those of each batch."""
        ...

    def towards(
        self, alpha: Tensor, coordinates: Tensor, radius: float, batch: Batch, step: int, *, is_tied: bool = False
    ) -> Iterator[Tensor]:
        """Yield the outputs at alpha, then those on the way from there to single experts, each alone.

        Args:
            alpha: [G, K], on the simplex.
            coordinates: int64 [n], positions in alpha flattened: which group goes to which expert.
            radius: how far, in (0, 1].
            is_tied: whether all groups go together; coordinates are then experts, below K.
        Cost: n + 1 forwards; no gradients.
        """
        ...

    def gradient(self, alpha: Tensor, batch: Batch, step: int, mean_loss: MeanLoss) -> tuple[float, Tensor]:
        """Return the mean loss L of the blend, and dL/dalpha up to a constant by group, [G, K], float64 on the CPU.

        Cost: a forward and a backward.
        """
        ...


class Objective(Protocol):
    """What is minimised, as a function of alpha; the real one is `glue_cli.search.objective.BlendObjective`.

    Attributes:
        is_smooth, follows_loss: as those of a `Goal`.
        kinds: the kinds of BatchNorm's statistics that a blend may be written with, one at least; the first is that
            of this objective itself.
        n_examples: of the data that the minibatches are drawn from.
        n_folds: of those examples, by which quadratics are kept apart.
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

    def quadratic(
        self, alpha: Tensor, coordinates: Tensor, radius: float, step: int, *, is_tied: bool = False
    ) -> Quadratic: ...

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]: ...

    @property
    def n_validation_batches(self) -> int: ...

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float: ...

    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor: ...

    def written_terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None = None) -> Tensor:
        """Return the held-out terms, [N], float64, of a blend as it would be written.

        Args:
            alphas: [G, K], or one without each fold, [F, G, K]: each fold is judged by that without it.
            n_batches: of how many of the held-out batches, from the first on; None for all.
        """

    def n_written_forwards(self, statistics: Statistics, n_batches: int | None = None) -> int:
        """Return how many forwards `written_terms` makes."""

    @property
    def n_held_out_batches(self) -> int: ...
