"""Random directions of unit length in the space of the logits."""

from typing import Literal

import torch
from torch import Tensor


def draw_directions(
    n: int,
    shape: tuple[int, int],
    kind: Literal["gaussian", "rademacher"],
    *,
    zero_sum: bool,
    generator: torch.Generator,
) -> Tensor:
    """Draw n independent directions, [n, G, K], float64, each of length 1.

    Zero-sum directions are the same draws, projected onto sum(u) = 0 in each group: this removes the part along which
    the softmax does not change. A projected Rademacher draw can be zero (half of them at K = 2); it is drawn again.

    Args:
        shape: (G, K), K at least 2 when `zero_sum`.
    Source: section 3.2 of the paper.
    """
    assert shape[1] >= 2 or not zero_sum
    directions = _draw(n, shape, kind, zero_sum, generator)
    lengths = directions.norm(dim=(1, 2))
    while (vanished := lengths < 1e-9).any():
        directions[vanished] = _draw(int(vanished.sum()), shape, kind, zero_sum, generator)
        lengths = directions.norm(dim=(1, 2))
    unit: Tensor = directions / lengths[:, None, None]
    return unit


def _draw(n: int, shape: tuple[int, int], kind: str, zero_sum: bool, generator: torch.Generator) -> Tensor:
    draws: Tensor
    if kind == "gaussian":
        draws = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    else:
        draws = torch.randint(0, 2, (n, *shape), generator=generator, dtype=torch.float64) * 2 - 1
    return draws - draws.mean(dim=2, keepdim=True) if zero_sum else draws
