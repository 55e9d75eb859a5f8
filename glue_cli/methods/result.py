"""What the methods search, and what they find."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.errors import NumericalError


@dataclass(frozen=True)
class StepRecord:
    """One step as it is shown and logged: alpha [G, K] after it, and `val_loss` if a validation was due."""

    step: int
    loss: float | None
    alpha: Tensor
    val_loss: float | None = None


@dataclass(frozen=True)
class Learned:
    """A learned alpha [G, K], with one simplex for each group of tensors.

    Attributes:
        val_loss: its validation loss; val_loss_start: that of the uniform blend. A staged search takes both on
            held-out data.
        n_steps: steps made.
        stopped: "plateau", "steps", "budget" or "converged".
        account: how it was found, as it is written down.
        statistics: the BatchNorm statistics to write the blend with.
        is_as_written: whether `val_loss` is the loss of the blend as written to a file, on all validation data.
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
        NumericalError: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise NumericalError(f"the {what} is {loss} at mixing step {step}", hint="evaluate the experts one by one")
    return loss
