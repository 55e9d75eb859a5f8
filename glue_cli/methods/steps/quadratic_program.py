"""The least value of a quadratic over a convex set."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_ITERATIONS = 500
_PRECISION = 1e-7
_FLAT = 1e-12  # a curvature that is none, of losses about 1: experts alike, or outputs sure beyond float32


def minimise_quadratic(
    curvature: Tensor, linear: Tensor, start: Tensor, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the point of a convex set, [G, K], with the least x . curvature . x / 2 - linear . x, x that flattened.

    By accelerated projected gradients (Beck and Teboulle 2009) whose momentum starts anew where it leads up
    (O'Donoghue and Candes 2015), to a step of 1e-7 or 500 iterations.

    Args:
        curvature: [G K, G K], symmetric, with no negative eigenvalue, float64; linear: [G K]. All finite.
        start: [G, K], a point of the set.
        project: returns the point of the set that is nearest to a point [G, K].
    """
    rate = 1 / torch.linalg.matrix_norm(curvature, 2).clamp_min(_FLAT)
    alpha = ahead = start
    momentum = 1.0
    for _ in range(_ITERATIONS):
        slope = (curvature @ ahead.flatten() - linear).view_as(start)
        found = project(ahead - rate * slope)
        if ((ahead - found) * (found - alpha)).sum() > 0:
            momentum = 1.0
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        step = (found - ahead).abs().max()  # from alpha it can be 0 anywhere: momentum led out of a corner, and back
        ahead = found + (momentum - 1) / grown * (found - alpha)
        alpha, momentum = found, grown
        if step < _PRECISION:
            break
    return alpha
