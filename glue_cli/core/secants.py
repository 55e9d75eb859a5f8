"""A loss to second order along directions, by the model's outputs at their ends: Gauss-Newton without derivatives."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.core.losses import IGNORED, Loss

# Of a vocabulary, so many tokens are drawn at each position; the curvature is their mean, the gradient is exact.
_DRAWN_TOKENS = 64


@dataclass(frozen=True)
class Quadratic:
    """loss + gradient . x + x . curvature . x / 2, for x in units of the n directions.

    Attributes:
        gradient: [n]; curvature: [n, n], symmetric, with no negative eigenvalue; both float64 on the CPU.
    """

    loss: float
    gradient: Tensor
    curvature: Tensor


class Secants:
    """The outputs at a point, and how they change along directions.

    With z the outputs and D_k = (z_k - z) / radius, the mean loss has the slopes <dloss/dz, D_k> and, to the order of
    Gauss and Newton, the curvatures D_k . (d2loss/dz2) . D_l: Schraudolph 2002, with secants for derivatives.

    Args:
        outputs: z at the point, and targets, as `example_losses` takes them.
        draws: what the tokens of a vocabulary are drawn by.
    """

    def __init__(self, loss: Loss, outputs: Tensor, targets: Tensor, *, radius: float, draws: torch.Generator) -> None:
        self._loss, self._radius, self._targets = loss, radius, targets
        self._slopes: list[Tensor] = []
        self._roots: list[Tensor] = []
        self._drawn: Tensor | None = None
        self._outputs = self._rows(outputs)
        if loss == "mse":
            return
        self._probabilities = self._outputs.softmax(-1)
        if targets.dim() > 1:
            uniform = torch.rand(len(self._outputs), _DRAWN_TOKENS, generator=draws)
            self._drawn = _draw(self._probabilities, uniform.to(self._probabilities))

    def add(self, outputs: Tensor) -> None:
        """Add a direction, by the outputs at its end."""
        change = (self._rows(outputs) - self._outputs) / self._radius
        slope, root = self._of_squares(change) if self._loss == "mse" else self._of_labels(change)
        self._slopes.append(slope)
        self._roots.append(root.flatten())

    def _of_squares(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slope, and a root r of the curvatures, which are r_k . r_l."""
        slope = 2 * ((self._outputs - self._targets) * change).mean(dtype=torch.float64)
        return slope, change * math.sqrt(2 / change.numel())

    def _of_labels(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the change of logits [N, C]: the curvature is their covariance under the probabilities."""
        mean = (self._probabilities * change).sum(-1, keepdim=True)
        labels = self._targets[self._targets != IGNORED]
        slope = (mean - change.gather(1, labels[:, None])).mean(dtype=torch.float64)
        if self._drawn is None:
            return slope, (change - mean) * (self._probabilities / len(change)).sqrt()
        return slope, (change.gather(1, self._drawn) - mean) / math.sqrt(self._drawn.numel())

    def quadratic(self, loss: float) -> Quadratic:
        """Return the loss, whose value at the point is given, to second order."""
        roots = torch.stack(self._roots)
        return Quadratic(loss, torch.stack(self._slopes).cpu(), (roots @ roots.T).double().cpu())

    def _rows(self, outputs: Tensor) -> Tensor:
        """Return the outputs that count, float32: as the targets for mse, else [N, C]."""
        return (
            outputs.float().view_as(self._targets)
            if self._loss == "mse"
            else outputs[self._targets != IGNORED].float()
        )


def _draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return classes drawn by their probabilities [N, C] from numbers in [0, 1), [N, n]."""
    return torch.searchsorted(probabilities.cumsum(-1), uniform).clamp_max(probabilities.shape[-1] - 1)
