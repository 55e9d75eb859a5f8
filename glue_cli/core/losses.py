"""Losses and figures of merit, all reduced in float32 or wider whatever the precision of the forward pass."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross_entropy", "mse"]


def example_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each example, [N], float32; the terms of eq. (2).

    Args:
        outputs: [N, n_classes] for cross_entropy, the shape of `targets` for mse (a trailing 1 may be left out).
        targets: labels, int64 [N], or float32 [N, ...].
    """
    if loss == "cross_entropy":
        return F.cross_entropy(outputs.float(), targets, reduction="none")
    errors = outputs.float().view_as(targets) - targets
    return errors.square().unsqueeze(-1).flatten(1).mean(1)  # targets [N] have no second dimension to flatten


def n_correct(outputs: Tensor, targets: Tensor) -> int:
    """Return how many of the labels [N] have the largest of the outputs [N, n_classes]."""
    return int((outputs.argmax(1) == targets).sum())


class Evaluation:
    """Sums over batches, and the figures that follow from them."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.examples = 0
        self._loss_sum = 0.0
        self._n_correct = 0
        self._absolute = self._squared = self._targets = self._targets_squared = 0.0
        self._n_targets = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add one batch."""
        losses = example_losses(self._loss, outputs, targets)
        self.examples += len(targets)
        self._loss_sum += losses.sum(dtype=torch.float64).item()
        if self._loss == "cross_entropy":
            self._n_correct += n_correct(outputs, targets)
            return
        wide = targets.double()
        errors = outputs.double().view_as(wide) - wide
        self._n_targets += wide.numel()
        self._absolute += errors.abs().sum().item()
        self._squared += errors.square().sum().item()
        self._targets += wide.sum().item()
        self._targets_squared += wide.square().sum().item()

    def figures(self) -> dict[str, float]:
        """Return the mean loss, and accuracy, or mse, mae and r2."""
        figures = {"loss": self._loss_sum / self.examples}
        if self._loss == "cross_entropy":
            return {**figures, "accuracy": self._n_correct / self.examples}
        n = self._n_targets
        spread = self._targets_squared - self._targets**2 / n
        r2 = 1 - self._squared / spread if spread > 0 else float("nan")
        return {**figures, "mse": self._squared / n, "mae": self._absolute / n, "r2": r2}
