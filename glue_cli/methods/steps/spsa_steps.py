"""Steps by SPSA: two probes along a random direction give the slope along it."""

import math

import torch
from torch import Tensor

from glue_cli.foundation.seeds import generator
from glue_cli.foundation.state import State, part_of, prefixed
from glue_cli.methods.domains import Simplex
from glue_cli.methods.steps.directions import draw_directions
from glue_cli.methods.steps.gauss_newton import GaussNewton
from glue_cli.methods.steps.logit_descent import AveragedDescent, Estimate
from glue_cli.methods.steps.questions import Answer, Probes, Question
from glue_cli.spec.schema import MixSpec


def probe_betas(beta: Tensor, directions: Tensor, *, mu: float) -> Tensor:
    """Return the logits of n probe pairs, [2n, G, K]: beta + mu u for every direction, then beta - mu u, eq. (3).

    Args:
        beta: logits, [G, K], float64.
        directions: u_i of unit length, [n, G, K], float64.
        mu: radius, in logit units.
    """
    return torch.cat([beta + mu * directions, beta - mu * directions])


def estimate_from(losses: Tensor, directions: Tensor, *, mu: float, n_dimensions: int) -> Estimate:
    """Estimate grad_beta L from the losses [2n] of n probe pairs on one minibatch.

    Args:
        directions, mu: those that `probe_betas` made the probes from.
        n_dimensions: of the space that the directions were drawn from.
    Source: eqs. (4) to (6).
    """
    n = len(directions)
    deltas = (losses[:n] - losses[n:]) / (2 * mu)  # eq. (4), [n]
    # E[u u^T] is I over the dimension of the sphere: K by group, K - 1 in the zero-sum subspace
    gradient = n_dimensions * (deltas[:, None, None] * directions).mean(0)  # eqs. (5) and (6)
    return Estimate(gradient, losses.mean().item())


class ProbePairs:
    """Estimates the gradient from probe pairs along random directions, as many as the settings say."""

    def __init__(self, domain: Simplex, settings: MixSpec, seed: int) -> None:
        self.n_forwards = 2 * settings.n_directions
        self._domain, self._settings, self._seed = domain, settings, seed
        self._directions: Tensor | None = None
        self._mu = settings.mu

    def ask(self, beta: Tensor, step: int, share: float) -> Probes:
        """Ask for the losses of all probes of the step at once; their directions follow from the seed and the step."""
        settings = self._settings
        self._mu = share * settings.mu
        self._directions = draw_directions(
            settings.n_directions,
            self._domain.shape,
            settings.directions,
            zero_sum=settings.zero_sum,
            generator=generator(self._seed, "directions", step),
        )
        alphas = self._domain.from_logits(probe_betas(beta, self._directions, mu=self._mu))
        return Probes(alphas, n_at_once=len(alphas), are_pairs=True)

    def tell(self, answer: Answer) -> Estimate:
        assert isinstance(answer, Tensor) and self._directions is not None
        n_dimensions = self._domain.n_logit_dimensions(zero_sum=self._settings.zero_sum)
        return estimate_from(answer, self._directions, mu=self._mu, n_dimensions=n_dimensions)


_SURROGATE_STEPS = 20  # at most: by then, Gauss-Newton's descents are nearly level


class SurrogateFirst:
    """A strategy for a score that follows the loss: the first half minimises the loss, the second the score by probes.

    The loss is a smooth surrogate: a few steps of Gauss-Newton on it lead close to where the score is best. From
    there, probes search the score itself. A budget too small for both goes to Gauss-Newton alone.

    Attributes:
        n_forwards: of a full step of Gauss-Newton; n_rounds: steps after which a poor basin can be told.
    """

    has_converged = False

    def __init__(self, domain: Simplex, start: Tensor, settings: MixSpec, seed: int) -> None:
        self._first = GaussNewton(domain, start, seed=seed)
        self._second: AveragedDescent | None = None
        self._domain, self._settings, self._seed = domain, settings, seed
        self.n_rounds, self.n_forwards = self._first.n_rounds, self._first.n_forwards
        self._most_forwards = 0.0  # allowed to a step so far, with a budget
        # Without a budget. The switch has to come before the validation loss can be level, which would end the search.
        self._steps_left = min(_SURROGATE_STEPS, settings.steps // 2, settings.patience * settings.validate_every)

    @property
    def alpha(self) -> Tensor:
        return (self._second or self._first).alpha

    @property
    def least_forwards(self) -> int:
        by_probes = 2 * self._settings.n_directions
        return by_probes if self._second else min(by_probes, self._first.least_forwards)

    def ask(self, step: int, n_forwards: float) -> Question:
        if math.isfinite(n_forwards):
            self._most_forwards = max(self._most_forwards, n_forwards)
        if self._second is None and self._is_half_way(n_forwards):
            self._second = self._probing_from(self.alpha)
        return (self._second or self._first).ask(step, n_forwards)

    def tell(self, answer: Answer) -> float:
        """Make the step; return the score near the old alpha."""
        if self._second:
            return self._second.tell(answer)
        self._steps_left -= 1
        return self._first.tell(answer)

    def state(self) -> State:
        state = {"most_forwards": self._most_forwards, "steps_left": self._steps_left}
        state |= prefixed("first", self._first.state())
        return state | (prefixed("second", self._second.state()) if self._second else {})

    def restore(self, state: State) -> None:
        self._most_forwards, self._steps_left = state["most_forwards"], state["steps_left"]
        self._first.restore(part_of(state, "first"))
        second = part_of(state, "second")
        self._second = self._probing_from(self._first.alpha) if second else None
        if self._second:
            self._second.restore(second)

    def _probing_from(self, start: Tensor) -> AveragedDescent:
        rule = ProbePairs(self._domain, self._settings, self._seed)
        return AveragedDescent(self._domain, start, rule, self._settings)

    def _is_half_way(self, n_forwards: float) -> bool:
        if math.isinf(n_forwards):
            return self._steps_left <= 0
        is_due = n_forwards < max(self._most_forwards / 2, self._first.least_forwards)
        return is_due and n_forwards >= 2 * self._settings.n_directions
