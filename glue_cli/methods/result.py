"""What the methods search, and what they find."""

import math
from dataclasses import dataclass

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.results.mix import GreedySearch, StagedSearch


@dataclass(frozen=True)
class StepRecord:
    """One step as it is shown and logged.

    Attributes:
        loss: None if it is not finite, so that the step was skipped.
        alpha: after the step, [G, K].
        val_loss: None if no validation was due, or its loss is not finite.
        n_skipped: how many steps have been skipped so far.
    """

    step: int
    loss: float | None
    alpha: Tensor
    val_loss: float | None = None
    n_skipped: int = 0


@dataclass(frozen=True)
class Learned:
    """A learned alpha [G, K], with one simplex for each group of tensors.

    Attributes:
        val_loss: its validation loss; val_loss_start: that of the uniform blend. A staged search takes both on
            held-out data.
        n_steps: steps made.
        stopped: "plateau", "steps", "budget" or "converged".
        search: how it was found; None if a method has no stages or ingredients to show.
        statistics: the BatchNorm statistics to write the blend with.
        n_skipped: how many steps were skipped, as a loss was not finite.
        lost: the names of the starts and experts that were left out, as their loss is not finite.
        is_as_written: whether `val_loss` is the loss of the blend as written to a file, on all validation data.
    """

    alpha: Tensor
    val_loss: float | None
    val_loss_start: float | None
    n_steps: int
    stopped: str
    search: StagedSearch | GreedySearch | None = None
    statistics: Statistics = "averaged"
    is_as_written: bool = False
    n_skipped: int = 0
    lost: tuple[str, ...] = ()


def if_finite(loss: float) -> float | None:
    """Return a loss; None if it is NaN or infinite."""
    return loss if math.isfinite(loss) else None
