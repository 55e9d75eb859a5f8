"""Random directions of unit length in the space of the logits."""

from typing import Literal

import torch
from torch import Tensor


def draw_directions(
    n: int, n_experts: int, kind: Literal["gaussian", "rademacher"], *, zero_sum: bool, generator: torch.Generator
) -> Tensor:
    """Draw n independent directions, [n, K], float64, each of length 1.

    Zero-sum directions are the same draws projected onto sum(u) = 0: they spend nothing on the direction along which
    the softmax does not change. A projected Rademacher draw can vanish (half of them at K = 2); it is drawn again.

    Args:
        n_experts: K, at least 2 when `zero_sum`.
    Source: section 3.2 of the paper.
    """
    assert n_experts >= 2 or not zero_sum
    directions = _draw(n, n_experts, kind, zero_sum, generator)
    lengths = directions.norm(dim=1)
    while (vanished := lengths < 1e-9).any():
        directions[vanished] = _draw(int(vanished.sum()), n_experts, kind, zero_sum, generator)
        lengths = directions.norm(dim=1)
    unit: Tensor = directions / lengths[:, None]
    return unit


def _draw(n: int, n_experts: int, kind: str, zero_sum: bool, generator: torch.Generator) -> Tensor:
    draws: Tensor
    if kind == "gaussian":
        draws = torch.randn(n, n_experts, generator=generator, dtype=torch.float64)
    else:
        draws = torch.randint(0, 2, (n, n_experts), generator=generator, dtype=torch.float64) * 2 - 1
    return draws - draws.mean(dim=1, keepdim=True) if zero_sum else draws
