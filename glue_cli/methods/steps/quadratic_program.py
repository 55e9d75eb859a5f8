"""The least value of a quadratic over a product of simplices."""

import math

import torch
from torch import Tensor

_ITERATIONS = 500
_PRECISION = 1e-7
_FLAT = 1e-12  # a curvature that is none, of losses about 1: experts alike, or outputs sure beyond float32


def minimise_quadratic(curvature: Tensor, linear: Tensor, start: Tensor) -> Tensor:
    """Return argmin of x . curvature . x / 2 - linear . x over alpha [G, K] with x = alpha flattened.

    By accelerated projected gradients (Beck and Teboulle 2009) whose momentum starts anew where it leads up
    (O'Donoghue and Candes 2015), to a step of 1e-7 or 500 iterations.

    Args:
        curvature: [G K, G K], symmetric, with no negative eigenvalue, float64; linear: [G K]. All finite.
        start: [G, K], on the simplex.
    """
    rate = 1 / torch.linalg.matrix_norm(curvature, 2).clamp_min(_FLAT)
    alpha = ahead = start
    momentum = 1.0
    for _ in range(_ITERATIONS):
        slope = (curvature @ ahead.flatten() - linear).view_as(start)
        found = project_to_simplex(ahead - rate * slope)
        if ((ahead - found) * (found - alpha)).sum() > 0:
            momentum = 1.0
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        step = (found - ahead).abs().max()  # from alpha it can be 0 anywhere: momentum led out of a corner, and back
        ahead = found + (momentum - 1) / grown * (found - alpha)
        alpha, momentum = found, grown
        if step < _PRECISION:
            break
    return alpha


def project_to_simplex(x: Tensor) -> Tensor:
    """Return the nearest point on the simplex of each row of x [G, K]: Held, Wolfe and Crowder 1974."""
    x = x - x.amax(-1, keepdim=True)  # or the 1 is lost beside large entries
    falling = x.sort(-1, descending=True)[0]
    excess = (falling.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1)
    n_positive = (falling > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, n_positive - 1)).clamp_min(0)
