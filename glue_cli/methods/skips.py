"""Steps that a search cannot make, as a loss is not finite: they are skipped and counted. Too many end the search."""

import math
from collections.abc import Sequence

from torch import Tensor

from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.state import GOOD, State

# The radius of probes halves with each skipped step: ten of them reach blends a thousand times nearer.
MOST_IN_A_ROW = 10


class Skips:
    """Counts a search's skipped steps.

    Attributes:
        n_steps: how many there were, those of every contender in a race included.
    """

    def __init__(self) -> None:
        self.n_steps = self._n_in_a_row = 0

    def count(self, losses: Sequence[float], step: int, alpha: Tensor) -> None:
        """Count a step that one contender or several have made, or skipped where the loss is not finite.

        Args:
            alpha: the estimate of the contender in the lead, [G, K].
        Raises:
            NumericalError: none of the contenders could make one of the last `MOST_IN_A_ROW` steps.
        """
        n_skipped = sum(not math.isfinite(loss) for loss in losses)
        self.n_steps += n_skipped
        self._n_in_a_row = self._n_in_a_row + 1 if n_skipped == len(losses) else 0
        if self._n_in_a_row == MOST_IN_A_ROW:
            raise not_finite(f"the loss, as at the {MOST_IN_A_ROW - 1} steps before,", step, alpha)

    def state(self) -> State:
        return {"n_steps": self.n_steps, "n_in_a_row": self._n_in_a_row, GOOD: self._n_in_a_row == 0}

    def restore(self, state: State) -> None:
        self.n_steps, self._n_in_a_row = state["n_steps"], state["n_in_a_row"]


def not_finite(what: str, step: int, alpha: Tensor) -> NumericalError:
    """Return the error for a figure that is NaN or infinite near alpha [G, K], as it is to be shown."""
    rows = [[round(a, 4) for a in row] for row in alpha.tolist()]
    where = f"{rows[0] if len(rows) == 1 else rows}"
    hint = "evaluate the experts one by one, and leave out those whose loss is not finite; an objective of your own "
    hint += "has to return a number for every blend"
    return NumericalError(f"{what} is not finite at mixing step {step}, near alpha {where}", hint=hint)
