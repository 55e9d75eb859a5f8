"""Steps by SPSA: two probes along a random direction tell the slope along it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from glue_cli.foundation.seeds import generator
from glue_cli.methods.steps.descent import Estimate, make_optimizer, softmax
from glue_cli.methods.steps.directions import draw_directions
from glue_cli.methods.steps.gauss_newton import GaussNewton
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def estimate_gradient(
    losses_at: Callable[[Tensor], Tensor], beta: Tensor, directions: Tensor, *, mu: float, zero_sum: bool
) -> Estimate:
    """Estimate grad_beta L at beta from 2n losses on one minibatch.

    Args:
        losses_at: the losses [m] of m sets of coefficients [m, G, K]; called once, for all probes of the step.
        beta: logits, [G, K], float64.
        directions: u_i of unit length, [n, G, K], float64.
        mu: radius, in logit units.
        zero_sum: whether the directions were drawn in the subspace where each group's entries sum to 0.
    Source: eqs. (3) to (6).
    """
    n, n_groups, n_experts = directions.shape
    probes = softmax(torch.cat([beta + mu * directions, beta - mu * directions]))  # eq. (3), [2n, G, K]
    losses = losses_at(probes)
    deltas = (losses[:n] - losses[n:]) / (2 * mu)  # eq. (4), [n]
    # E[u u^T] is I over the dimension of the sphere: K by group, K - 1 in the zero-sum subspace
    factor = n_groups * (n_experts - 1 if zero_sum else n_experts)
    gradient = factor * (deltas[:, None, None] * directions).mean(0)  # eqs. (5) and (6)
    return Estimate(gradient, losses.mean().item())


_FLOOR = 0.01  # of 1 / K: further down, an expert that a start leaves out would be out of reach


class SpsaDescent:
    """A strategy of a staged search: the optimizer's steps along SPSA's estimates, from a start.

    Attributes:
        n_forwards: of a step; n_rounds: steps after which the noise of the minibatches lets a poor basin show.
    """

    n_rounds = 10
    has_converged = False  # the noise of the minibatches never ends

    def __init__(self, objective: Objective, start: Tensor, settings: MixSpec, seed: int) -> None:
        self.n_forwards = self.least_forwards = 2 * settings.n_directions
        self._beta = start.clamp_min(_FLOOR / objective.n_experts).log()
        self._optimizer = make_optimizer(self._beta, settings)
        self._estimate = _make_estimate(objective, settings, seed)
        self._alphas = [start]

    @property
    def alpha(self) -> Tensor:
        """The mean over the later half of the steps, [G, K]: what their noise leaves."""
        return torch.stack(self._alphas[len(self._alphas) // 2 :]).mean(0)

    def step(self, step: int, n_forwards: float) -> float:
        """Make a step on the minibatch of `step`; return the mean loss of its probes."""
        found = self._estimate(self._beta, step)
        self._beta.grad = found.gradient
        self._optimizer.step()
        self._alphas.append(softmax(self._beta))
        return found.loss


_SURROGATE_STEPS = 20  # at most: after as many, Gauss-Newton's descents are nearly level


class SurrogateFirst:
    """A strategy for a score that follows the loss: half of the way down that, its smooth surrogate, then SPSA's.

    The loss leads from afar to about where the score is best, with the few steps of Gauss-Newton; from there on the
    score itself is searched, by probes. A budget too small for both is Gauss-Newton's.

    Attributes:
        n_forwards: of a whole step of Gauss-Newton's; n_rounds: steps after which a poor basin shows.
    """

    has_converged = False

    def __init__(self, objective: Objective, start: Tensor, settings: MixSpec, seed: int) -> None:
        self._first = GaussNewton(objective, start, seed=seed)
        self._second: SpsaDescent | None = None
        self._objective, self._settings, self._seed = objective, settings, seed
        self.n_rounds, self.n_forwards = self._first.n_rounds, self._first.n_forwards
        self._most_forwards = 0.0
        # without a budget; before the validation can be level, which would end the search
        self._steps_left = min(_SURROGATE_STEPS, settings.steps // 2, settings.patience * settings.validate_every)

    @property
    def alpha(self) -> Tensor:
        return (self._second or self._first).alpha

    @property
    def least_forwards(self) -> int:
        by_probes = 2 * self._settings.n_directions
        return by_probes if self._second else min(by_probes, self._first.least_forwards)

    def step(self, step: int, n_forwards: float) -> float:
        """Make a step on the minibatch of `step` with at most `n_forwards`; return the score near the old alpha."""
        self._most_forwards = max(self._most_forwards, n_forwards)
        if self._second is None and self._is_half_way(n_forwards):
            self._second = SpsaDescent(self._objective, self.alpha, self._settings, self._seed)
        if self._second:
            return self._second.step(step, n_forwards)
        self._steps_left -= 1
        return self._first.step(step, n_forwards)

    def _is_half_way(self, n_forwards: float) -> bool:
        if math.isinf(n_forwards):
            return self._steps_left <= 0
        is_due = n_forwards < max(self._most_forwards / 2, self._first.least_forwards)
        return is_due and n_forwards >= 2 * self._settings.n_directions


def _make_estimate(objective: Objective, settings: MixSpec, seed: int) -> Callable[[Tensor, int], Estimate]:
    def estimate(beta: Tensor, step: int) -> Estimate:
        directions = draw_directions(
            settings.n_directions,
            (objective.n_groups, objective.n_experts),
            settings.directions,
            zero_sum=settings.zero_sum,
            generator=generator(seed, "directions", step),
        )
        return estimate_gradient(
            lambda alphas: objective.probe_losses(alphas, step),
            beta,
            directions,
            mu=settings.mu,
            zero_sum=settings.zero_sum,
        )

    return estimate
