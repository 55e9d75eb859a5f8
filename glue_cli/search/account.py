"""Keep account of what a search has spent and how much of its budget is left. Needs no torch."""

import math
import time
from collections.abc import Sized
from dataclasses import asdict, dataclass

from glue_cli.foundation.state import State
from glue_cli.spec.budget import Budget, in_forwards


@dataclass
class Cost:
    """What a search has spent, in passes over a minibatch; `forwards` includes those for validation."""

    forwards: int = 0
    validation_forwards: int = 0
    backwards: int = 0
    examples: int = 0

    @property
    def in_forwards(self) -> int:
        """All passes, counted in forwards."""
        return in_forwards(self.forwards, self.backwards)

    def charge(self, targets: Sized, n: int = 1) -> None:
        """Charge n forwards on a batch with these targets, whichever process makes them."""
        self.forwards += n
        self.examples += n * len(targets)


class Purse:
    """What is left of a budget while a search spends it; without a budget, the rest is infinite.

    Args:
        batch_size: the number of examples of one forward.
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
        """Measure the pace from now on: the first forward also does setup that later ones do not repeat."""
        self._warm = self._spent, self._elapsed

    def forwards(self, share: float = 1.0) -> float:
        """Return how many forwards are left until this share of the whole budget is spent."""
        if self._budget is None:
            return math.inf
        if self._budget.unit != "seconds":
            return max(0, math.floor(self.worth(share) - self._spent))
        left = share * self._budget.limit - self._elapsed
        return max(0, math.floor(left * self._pace)) if self._pace else float(left > 0)

    def worth(self, share: float = 1.0) -> float:
        """Return how many forwards a share of the budget buys; for a budget of time, at the pace so far."""
        if self._budget is None:
            return math.inf
        per_unit = {"forwards": 1.0, "examples": 1 / self._batch_size, "seconds": self._pace}
        return share * self._budget.limit * per_unit[self._budget.unit]

    def state(self) -> State:
        """Return what is spent: the account's figures, the time, and how much of both came before `warmed_up`."""
        forwards, seconds = self._warm
        return asdict(self._cost) | {"elapsed_s": self._elapsed, "warm_forwards": forwards, "warm_s": seconds}

    def restore(self, state: State) -> None:
        """Continue from a saved state of the purse and its account; the time since it was saved is not charged."""
        for name in asdict(self._cost):
            setattr(self._cost, name, state[name])
        self._began = time.monotonic() - state["elapsed_s"]
        self._warm = state["warm_forwards"], state["warm_s"]

    @property
    def _spent(self) -> float:
        """What is spent; for a budget of examples, in forwards of a whole minibatch."""
        if self._budget and self._budget.unit == "examples":
            return self._cost.examples / self._batch_size + 2 * self._cost.backwards
        return self._cost.in_forwards

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def _pace(self) -> float:
        """Forwards per second; 0 if not yet known."""
        forwards, seconds = self._warm
        seconds = self._elapsed - seconds
        return (self._spent - forwards) / seconds if seconds else 0.0
