"""The least value of quadratics over a convex set."""

from collections.abc import Callable

import torch
from torch import Tensor

_ITERATIONS = 500
_PRECISION = 1e-7
_FLAT = 1e-12  # a curvature that is none, of losses about 1: experts alike, or outputs sure beyond float32


def minimise_quadratic(
    curvature: Tensor, linear: Tensor, start: Tensor, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the points of a convex set with the least x . curvature . x / 2 - linear . x, x flattened: [..., G, K].

    By accelerated projected gradients (Beck and Teboulle 2009) whose momentum starts anew where it leads up
    (O'Donoghue and Candes 2015), to a step of 1e-7 or 500 iterations. Many problems go side by side.

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
        found = project(ahead - rate * slope)
        leads_up = ((ahead - found) * (found - alpha)).sum((-2, -1), keepdim=True) > 0
        momentum = torch.where(leads_up, 1.0, momentum)
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        step = (found - ahead).abs().max()  # from alpha it can be 0 anywhere: momentum led out of a corner, and back
        ahead = found + (momentum - 1) / grown * (found - alpha)
        alpha, momentum = found, grown
        if step < _PRECISION:
            break
    return alpha
