"""The set that alpha is in: all that the methods need to know about the simplex."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.coefficients import SUM_TOLERANCE
from glue_cli.methods.steps.quadratic_program import minimise_quadratic
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Objective

# Of 1 / K: smaller coefficients are raised to this before logits are taken. With less, a descent could not bring back
# an expert that its start leaves out.
_FLOOR = 0.01


@dataclass(frozen=True)
class Simplex:
    """One simplex per group of tensors: alpha [G, K], float64, no coefficient negative, each row with the sum 1."""

    n_groups: int
    n_experts: int

    @classmethod
    def of(cls, objective: Objective) -> "Simplex":
        return cls(objective.n_groups, objective.n_experts)

    @property
    def shape(self) -> tuple[int, int]:
        """(G, K)."""
        return self.n_groups, self.n_experts

    def contains(self, alpha: Tensor) -> bool:
        """Tell whether alpha [G, K] is in the domain, up to rounding: sums may differ from 1 by 1e-6."""
        sums = alpha.sum(-1)
        return alpha.shape == self.shape and bool((alpha >= 0).all() and ((sums - 1).abs() <= SUM_TOLERANCE).all())

    # ---- points

    def uniform(self) -> Tensor:
        """Return the uniform blend's alpha, [G, K]."""
        return uniform_alpha(*self.shape)

    def corner(self, expert: int) -> Tensor:
        """Return the alpha of one expert alone, [G, K]."""
        return self.mean_of([expert])

    def mean_of(self, experts: Iterable[int]) -> Tensor:
        """Return the alpha of the uniform mean of some experts, [G, K]."""
        alpha = torch.zeros(self.shape, dtype=torch.float64)
        alpha[:, [*experts]] = 1
        return alpha / alpha.sum(1, keepdim=True)

    def without(self, alpha: Tensor, expert: int) -> Tensor | None:
        """Return alpha [G, K] with an expert's weight given to the others; None if it has all of a group's weight."""
        rest = alpha.clone()
        rest[:, expert] = 0
        weights = rest.sum(1, keepdim=True)
        return None if (weights == 0).any() else rest / weights

    def project(self, x: Tensor) -> Tensor:
        """Return the point of the domain nearest to x [..., G, K]; each row by Held, Wolfe and Crowder 1974."""
        x = x - x.amax(-1, keepdim=True)  # otherwise the 1 is lost in rounding next to large entries
        falling = x.sort(-1, descending=True)[0]
        excess = (falling.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1)
        n_positive = (falling > excess).sum(-1, keepdim=True)
        return (x - excess.gather(-1, n_positive - 1)).clamp_min(0)

    def minimise(self, curvature: Tensor, linear: Tensor, start: Tensor) -> Tensor:
        """Return the alphas [..., G, K] with the least x . curvature . x / 2 - linear . x, with x = alpha flattened.

        Args:
            curvature: [..., G K, G K], symmetric, with no negative eigenvalue, float64; linear: [..., G K]. All
                finite.
            start: [G, K], a point of the domain.
        """
        return minimise_quadratic(curvature, linear, start, self.project)

    # ---- logits

    def from_logits(self, beta: Tensor) -> Tensor:
        """Return alpha = softmax(beta) per group, for any number of betas [..., G, K]."""
        return torch.softmax(beta, -1)

    def logits_of(self, alpha: Tensor) -> Tensor:
        """Return logits beta [G, K] of alpha, with tiny coefficients raised so that a descent can still move them."""
        return alpha.clamp_min(_FLOOR / self.n_experts).log()

    def gradient_by_logits(self, alpha: Tensor, by_alpha: Tensor) -> Tensor:
        """Return grad_beta L at alpha = softmax(beta) from dL/dalpha, both [G, K]: the chain rule."""
        return alpha * (by_alpha - (alpha * by_alpha).sum(1, keepdim=True))

    def n_logit_dimensions(self, *, zero_sum: bool) -> int:
        """Return the dimension of the space of the logits' directions; zero-sum ones have one less per group."""
        return self.n_groups * (self.n_experts - 1 if zero_sum else self.n_experts)

    # ---- directions towards experts

    @property
    def n_directions(self) -> int:
        """How many directions towards experts, e_k - alpha, are enough: those of all experts but one per group."""
        return self.n_groups * (self.n_experts - 1)

    def coordinates(self, alpha: Tensor) -> Tensor:
        """Return the positions in flattened alpha [G, K] of all coefficients but each group's largest, [G (K - 1)]."""
        positions = torch.arange(alpha.numel())
        return positions[~torch.isin(positions, _largest(alpha))]

    def spread(self, alpha: Tensor, coordinates: Tensor) -> Tensor:
        """Return S [G K, n]: the slopes towards all experts are S @ those towards some, at `coordinates` [n].

        The directions e_k - alpha, weighted by alpha_k, sum to zero, and so, to first order, do the slopes along
        them: the slope towards a group's largest coefficient follows from the others without a forward. Slopes at
        none of the `coordinates` count as 0.
        """
        weights, columns = alpha.flatten(), torch.arange(len(coordinates))
        largest = _largest(alpha)[coordinates // self.n_experts]
        spread = torch.zeros(alpha.numel(), len(coordinates), dtype=torch.float64)
        spread[coordinates, columns] = 1
        spread[largest, columns] = -weights[coordinates] / weights[largest]
        return spread


def _largest(alpha: Tensor) -> Tensor:
    """Return the position in flattened alpha [G, K] of each group's largest coefficient, [G]."""
    return alpha.argmax(1) + alpha.shape[1] * torch.arange(len(alpha))
