"""Minimises quadratics over a convex set."""

from collections.abc import Callable

import torch
from torch import Tensor

_ITERATIONS = 500
_PRECISION = 1e-7
_FLAT = 1e-12  # counts as no curvature, for losses about 1: equal experts, or outputs too sure for float32


def minimise_quadratic(
    curvature: Tensor, linear: Tensor, start: Tensor, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the points of a convex set with the least x . curvature . x / 2 - linear . x, x flattened: [..., G, K].

    By accelerated projected gradients (Beck and Teboulle 2009) whose momentum is reset where it leads uphill
    (O'Donoghue and Candes 2015), until a step is below 1e-7 or for 500 iterations. Solves many problems at once.

    Args:
        curvature: [..., G K, G K], symmetric, with no negative eigenvalue, float64; linear: [..., G K]. All finite.
        start: [G, K], a point of the set, where all problems start.
        project: returns the points of the set that are nearest to points [..., G, K].
    """
    norm = torch.linalg.matrix_norm(curvature, 2).clamp_min(_FLAT)
    rate = (1 / norm)[..., None, None]
    alpha = ahead = start.expand(*curvature.shape[:-2], *start.shape)
    momentum = torch.ones_like(rate)
    for _ in range(_ITERATIONS):
        slope = ((curvature @ ahead.flatten(-2)[..., None])[..., 0] - linear).view(alpha.shape)
        landed = project(ahead - rate * slope)
        leads_up = ((ahead - landed) * (landed - alpha)).sum((-2, -1), keepdim=True) > 0
        momentum = torch.where(leads_up, 1.0, momentum)
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        # Not from alpha: momentum can leave a corner and the projection return to it, which would be 0 anywhere.
        step = (landed - ahead).abs().max()
        ahead = landed + (momentum - 1) / grown * (landed - alpha)
        alpha, momentum = landed, grown
        if step < _PRECISION:
            break
    return alpha
