"""What a method asks of the function that it minimises."""

from typing import Protocol

from torch import Tensor

from glue_cli.search.account import Cost
from glue_cli.search.secants import Quadratic


class Objective(Protocol):
    """What is minimised, as a function of alpha; the real one is `glue_cli.search.objective.BlendObjective`.

    Attributes:
        is_smooth, follows_loss: as those of a `Goal`.
    """

    n_groups: int
    n_experts: int
    is_smooth: bool
    follows_loss: bool
    cost: Cost

    def probe_losses(self, alphas: Tensor, step: int) -> Tensor: ...

    def quadratic(self, alpha: Tensor, coordinates: Tensor, radius: float, step: int) -> Quadratic: ...

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]: ...

    @property
    def n_validation_batches(self) -> int: ...

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float: ...

    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor: ...
