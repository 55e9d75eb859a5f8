"""What a search has spent, and how much of its budget is left. Needs no torch."""

import math
import time
from dataclasses import asdict, dataclass

from glue_cli.foundation.state import State
from glue_cli.spec.budget import Budget


@dataclass
class Cost:
    """What a search has spent, in passes over a minibatch; `forwards` includes those for validation."""

    forwards: int = 0
    validation_forwards: int = 0
    backwards: int = 0
    examples: int = 0

    @property
    def equivalents(self) -> int:
        """Forwards, with a backward counted as two."""
        return self.forwards + 2 * self.backwards


class Purse:
    """What is left of a budget, as a search's account grows; without a budget, all that one could want.

    Args:
        batch_size: examples of a forward.
    """

    def __init__(self, budget: Budget | None, cost: Cost, batch_size: int) -> None:
        self._budget, self._cost, self._batch_size = budget, cost, batch_size
        self._began = time.monotonic()
        self._warm = 0.0, 0.0  # forwards and seconds

    @property
    def is_limited(self) -> bool:
        return self._budget is not None

    @property
    def is_timed(self) -> bool:
        return self._budget is not None and self._budget.unit == "seconds"

    def warmed_up(self) -> None:
        """Leave what was done so far out of the pace: the first forward sets up what the others find ready."""
        self._warm = self._spent, self._elapsed

    def forwards(self, share: float = 1.0) -> float:
        """Return how many forwards are left until a share of the budget, from its start, is spent."""
        if self._budget is None:
            return math.inf
        if self._budget.unit != "seconds":
            return max(0, math.floor(self.worth(share) - self._spent))
        left = share * self._budget.limit - self._elapsed
        return max(0, math.floor(left * self._pace)) if self._pace else float(left > 0)

    def worth(self, share: float = 1.0) -> float:
        """Return how many forwards a share of the budget is; of time, at the pace so far."""
        if self._budget is None:
            return math.inf
        per_unit = {"forwards": 1.0, "examples": 1 / self._batch_size, "seconds": self._pace}
        return share * self._budget.limit * per_unit[self._budget.unit]

    def state(self) -> State:
        """Return what is spent: the account's figures, the time, and what of both was before the pace was taken."""
        forwards, seconds = self._warm
        return asdict(self._cost) | {"elapsed_s": self._elapsed, "warm_forwards": forwards, "warm_s": seconds}

    def restore(self, state: State) -> None:
        """Go on as if the purse and its account were those of that state; time that has passed between is free."""
        for name in asdict(self._cost):
            setattr(self._cost, name, state[name])
        self._began = time.monotonic() - state["elapsed_s"]
        self._warm = state["warm_forwards"], state["warm_s"]

    @property
    def _spent(self) -> float:
        """What is spent, in forwards of a whole minibatch where the budget is one of examples."""
        if self._budget and self._budget.unit == "examples":
            return self._cost.examples / self._batch_size + 2 * self._cost.backwards
        return self._cost.equivalents

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def _pace(self) -> float:
        """Forwards a second; 0 where it cannot be told yet."""
        forwards, seconds = self._warm
        seconds = self._elapsed - seconds
        return (self._spent - forwards) / seconds if seconds else 0.0
