"""Descent by Gauss-Newton with forward passes alone, from how the outputs change towards the experts.

Two losses tell how the loss changes along one direction only. The outputs of the same forwards tell how each example
changes, which gives the slopes along many directions and the curvatures between them: a step needs no learning rate.
"""

import math

import torch
from torch import Tensor

from glue_cli.foundation.seeds import generator
from glue_cli.foundation.state import State, part_of, prefixed
from glue_cli.methods.domains import Simplex
from glue_cli.methods.steps.questions import Answer, ToSecondOrder
from glue_cli.methods.steps.shrinkage import Shrunk, shrink
from glue_cli.search.secants import Quadratic

# If some outputs on the way are not finite, the radius is halved, down to this share. Much nearer, their differences
# would be lost in the rounding of float32.
_SMALLEST_SHARE = 1 / 16
# How far towards each expert the outputs are measured, as a share of the way. With 0.1 the secants of a deep net
# mislead: on traffic signs MobileNetV2 ends at a validation loss of 3.158, with 0.03 at 3.123 and with 0.01 at 3.121.
# In bfloat16, ResNet-20 on CIFAR-10 ends alike with all three.
_RADIUS = 0.03
# examples/benchmarks/search/README.md says how these were chosen. A damping of 0.01 to 0.1 does as well; a memory
# of 0.25 ends a little higher.
_DAMPING = 0.03  # the curvature that is added, as a share of the mean curvature
_MEMORY = 0.5  # how far back the mean of the quadratics reaches, as a share of the steps made
# The share of the earlier quadratics that the point ahead keeps at each step. If it kept as much as the mean, it would
# crawl where the loss is less curved than Gauss-Newton assumes: the ViT's experts would need over 60 steps to their
# optimum instead of 24.
_KEPT_AHEAD = 0.25


class GaussNewton:
    """A strategy that minimises weighted sums of the quadratics seen so far, two sums that forget at different rates.

    The point ahead minimises the last few quadratics; the next one is measured there. The estimate minimises the mean
    of many, the later ones weighted more, as in recursive least squares: averaging evens out the noise of the fast
    steps (Polyak and Juditsky 1992). Both sums are kept per fold of the examples, so that `shrunk` can tell how far to
    trust few examples.

    Experts towards which the outputs are not finite are left out of a step. A step where that is so of all of them,
    or of the loss itself, is skipped, and the point ahead goes half-way back to where the loss was finite.

    Args:
        start: [G, K], a point of the domain.
        is_tied: whether all groups move as one, from the same alpha.
        anchor: where an estimate from few examples is pulled to, [G, K]; the start by default.
    Attributes:
        alpha: the estimate so far, [G, K].
        n_forwards: of a full step; with fewer, down to about half, a step measures a random part of the experts.
        n_rounds: steps after which a poor basin can be told.
    """

    n_rounds = 3
    has_converged = False  # the noise of the minibatches never ends

    def __init__(
        self, domain: Simplex, start: Tensor, *, seed: int, is_tied: bool = False, anchor: Tensor | None = None
    ) -> None:
        self._n_groups, self._is_tied = domain.n_groups, is_tied
        self._domain = Simplex(1, domain.n_experts) if is_tied else domain
        start = start[: self._domain.n_groups]
        self.n_forwards = self._domain.n_directions + 1
        self.least_forwards = self.n_forwards // 2 + 1
        self._seed, self._anchor = seed, start if anchor is None else anchor[: self._domain.n_groups]
        self._ahead, self._estimate = _Least(self._domain, start), _Least(self._domain, start)
        self._n_steps, self._unit = 0, 1.0  # of the sums, a nat at the first step
        self._sound, self._share = start, 1.0  # the last point ahead with a finite loss, and the share of the radius
        self._coordinates = torch.empty(0, dtype=torch.int64)

    @property
    def alpha(self) -> Tensor:
        return self._of_all_groups(self._estimate.alpha)

    def shrunk(self, n_examples: int) -> Shrunk:
        """Return the estimate, pulled towards the anchor as far as `n_examples` examples do not support it."""
        shrunk = self._estimate.shrunk(self._anchor, n_examples)
        return Shrunk(self._of_all_groups(shrunk.alpha), self._of_all_groups(shrunk.without))

    def ask(self, step: int, n_forwards: float) -> ToSecondOrder:
        """Ask for the loss near the point ahead, towards as many experts as `n_forwards` allow."""
        alpha = self._ahead.alpha
        self._coordinates = self._draw(alpha, step, n_forwards)
        return ToSecondOrder(self._of_all_groups(alpha), self._coordinates, self._share * _RADIUS, self._is_tied)

    def tell(self, answer: Answer) -> float:
        """Make the step.

        Returns:
            The loss at the point ahead; NaN if the step is skipped.
        """
        assert isinstance(answer, Quadratic) and len(self._coordinates)
        alpha = self._ahead.alpha
        known, gradient, curvature = _finite_part(answer)
        self._share = min(1.0, 2 * self._share) if known.all() else max(_SMALLEST_SHARE, self._share / 2)
        if not (known.any() and math.isfinite(answer.loss)):
            self._ahead.alpha = alpha.lerp(self._sound, 0.5)
            return math.nan
        self._sound = alpha
        spread = self._domain.spread(alpha, self._coordinates[known])
        curvature = spread @ curvature @ spread.T
        linear = curvature @ alpha.flatten() - gradient @ spread.T
        if not self._n_steps:
            self._unit = answer.nat
        self._n_steps += 1
        seen = curvature / self._unit, linear / self._unit, answer.nat / self._unit
        self._ahead.add(*seen, kept=_KEPT_AHEAD)
        self._estimate.add(*seen, kept=1 - 1 / (1 + _MEMORY * self._n_steps))
        if self._domain.n_groups > 1:  # many unknowns: hold the point ahead back too
            n_ahead = answer.n_examples / (1 - _KEPT_AHEAD)
            self._ahead.alpha = self._ahead.shrunk(self._anchor, n_ahead).alpha
        return answer.loss

    def state(self) -> State:
        accounts = prefixed("ahead", self._ahead.state()) | prefixed("estimate", self._estimate.state())
        return {"n_steps": self._n_steps, "unit": self._unit, "sound": self._sound, "share": self._share, **accounts}

    def restore(self, state: State) -> None:
        self._n_steps, self._unit = state["n_steps"], state["unit"]
        self._sound, self._share = state["sound"], state["share"]
        self._ahead.restore(part_of(state, "ahead"))
        self._estimate.restore(part_of(state, "estimate"))

    def _of_all_groups(self, alpha: Tensor) -> Tensor:
        """Return alpha [..., 1 or G, K] with one row per group, [..., G, K]."""
        return alpha.expand(*alpha.shape[:-2], self._n_groups, alpha.shape[-1])

    def _draw(self, alpha: Tensor, step: int, n_forwards: float) -> Tensor:
        """Return the experts towards which the step measures: all but each group's largest, or some of them.

        Never fewer than a step needs, even if `n_forwards` is less: time may have passed since the step was begun.
        """
        n_forwards = max(n_forwards, self.least_forwards)
        order = torch.randperm(alpha.numel(), generator=generator(self._seed, "coordinates", step))
        others = order[torch.isin(order, self._domain.coordinates(alpha))]
        return others[: int(min(n_forwards - 1, len(others)))].sort()[0]


def _finite_part(quadratic: Quadratic) -> tuple[Tensor, Tensor, Tensor]:
    """Return the directions along which a quadratic is finite, bool [n], and its slopes and curvatures for those."""
    gradient, curvature = quadratic.gradient, quadratic.curvature
    known = gradient.isfinite().all(0) & curvature.diagonal(dim1=1, dim2=2).isfinite().all(0)
    gradient, curvature = gradient[:, known], curvature[:, known][:, :, known]
    if not curvature.isfinite().all():  # a product of two that are finite has overflowed
        return torch.zeros_like(known), gradient[:, :0], curvature[:, :0, :0]
    return known, gradient, curvature


class _Least:
    """Where a weighted sum of quadratics over the domain is least: alpha, [G, K]."""

    def __init__(self, domain: Simplex, start: Tensor) -> None:
        self.alpha = start
        self._domain = domain
        self._weight, self._nat = 0.0, 0.0  # totals of the quadratics
        self._curvature = torch.zeros(1, start.numel(), start.numel(), dtype=torch.float64)  # per fold
        self._linear = torch.zeros(1, start.numel(), dtype=torch.float64)

    def add(self, curvature: Tensor, linear: Tensor, nat: float, *, kept: float) -> None:
        """Add a quadratic, x . curvature . x / 2 - linear . x; those before it keep the share `kept` of their weight.

        Args:
            curvature: [F, G K, G K], linear: [F, G K]; the quadratic is their sum over the folds.
            nat: as in `Quadratic`, in the same unit.
        """
        self._weight, self._nat = kept * self._weight + 1, kept * self._nat + nat
        self._curvature = kept * self._curvature + curvature
        self._linear = kept * self._linear + linear
        whole = self._curvature.sum(0)
        damping = _DAMPING * whole.diagonal().mean()
        self.alpha = self._domain.minimise(
            whole + damping * torch.eye(len(whole)), self._linear.sum(0) + damping * self.alpha.flatten(), self.alpha
        )

    def shrunk(self, anchor: Tensor, n_examples: float) -> Shrunk:
        """Return the estimate pulled towards an anchor [G, K], for quadratics from `n_examples` examples."""
        if not self._weight:
            return Shrunk(self.alpha, self.alpha[None])
        curvature, linear = self._curvature / self._weight, self._linear / self._weight
        nat = self._nat / self._weight
        return shrink(self._domain, curvature / nat, linear / nat, anchor, self.alpha, n_examples)

    def state(self) -> State:
        sums = {"curvature": self._curvature, "linear": self._linear, "weight": self._weight, "nat": self._nat}
        return {"alpha": self.alpha, **sums}

    def restore(self, state: State) -> None:
        self.alpha, self._weight, self._nat = state["alpha"], state["weight"], state["nat"]
        self._curvature, self._linear = state["curvature"], state["linear"]
