"""Losses, computed in float32 or wider whatever the precision of the forward pass is."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross_entropy", "mse"]
IGNORED = -100  # the target of a token that has no loss; torch uses the same number


def example_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each example, or of each token that a language model predicts: the terms of eq. (2).

    Args:
        outputs: [N, n_classes] for labels, [N, T, n_tokens] for tokens, the shape of `targets` for mse (a trailing 1
            may be left out).
        targets: labels, int64 [N]; tokens, int64 [N, T], `IGNORED` where none counts; or float32 [N, ...] for mse.
    Returns:
        float32, [N], or [number of targets that are not ignored].
    """
    if loss == "mse":
        errors = outputs.float().reshape(targets.shape) - targets
        return errors.square().unsqueeze(-1).flatten(1).mean(1)  # targets [N] have no second dimension to flatten
    if targets.dim() == 1:
        return F.cross_entropy(outputs.float(), targets, reduction="none")
    # One text at a time: float32 copies of all [N, T, n_tokens] would fill the memory and take 3 times as long.
    rows = zip(outputs, targets, strict=True)
    by_text = [F.cross_entropy(row.float(), wanted, ignore_index=IGNORED, reduction="none") for row, wanted in rows]
    return torch.stack(by_text)[targets != IGNORED]


def n_terms(targets: Tensor) -> int:
    """Return how many losses `example_losses` gives: one for each example, or for each token that is not ignored."""
    return int((targets != IGNORED).sum()) if targets.dim() > 1 and not targets.is_floating_point() else len(targets)
