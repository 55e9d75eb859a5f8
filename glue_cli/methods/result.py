"""What the methods search, and what they find."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.errors import NumericalError


@dataclass(frozen=True)
class StepRecord:
    """One step as it is shown and written down: alpha [G, K] behind it; `val_loss` only where validation was due."""

    step: int
    loss: float | None
    alpha: Tensor
    val_loss: float | None = None


@dataclass(frozen=True)
class Learned:
    """A learned alpha [G, K], a simplex a group of tensors.

    Attributes:
        val_loss: its validation loss; val_loss_start: that of the uniform blend. A staged search takes both on
            held-out data.
        n_steps: steps made.
        stopped: "plateau", "steps", "budget" or "converged".
        account: how it was found, as it is written down.
        statistics: those of BatchNorm that the blend is to be written with.
        is_as_written: whether `val_loss` is that of the file, on all validation data.
    """

    alpha: Tensor
    val_loss: float | None
    val_loss_start: float | None
    n_steps: int
    stopped: str
    account: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics = "averaged"
    is_as_written: bool = False


def check_finite(loss: float, step: int, what: str) -> float:
    """Return a loss.

    Raises:
        NumericalError: it is infinite, or no number.
    """
    if not math.isfinite(loss):
        raise NumericalError(f"the {what} is {loss} at mixing step {step}", hint="evaluate the experts one by one")
    return loss
