"""The stage in which every group of tensors gets an alpha of its own, from where one alpha for all has ended."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.state import State, part_of, prefixed
from glue_cli.methods.staged.guard import Candidate
from glue_cli.methods.steps.shrinkage import Shrunk
from glue_cli.methods.steps.strategy import Shrinks, Strategy

SHARE = 0.25  # of a budget
# Without a budget, a share of what the race and the descent of one alpha have taken. Over spoken and handwritten
# digits, reviews and CIFAR-10 with 25 and 100 labels the whole search then takes 1.04 to 1.49 times the forwards of a
# search for one alpha.
_OF_DESCENT = 0.5
_FEWEST_STEPS = 4


class GroupStrategy(Strategy, Shrinks, Protocol):
    """A strategy whose estimate is drawn to where the search began, as far as few examples do not bear it out."""


# Returns a strategy from a start, whose estimate is drawn to an anchor; both are alphas [G, K].
MakeGroups = Callable[[Tensor, Tensor], GroupStrategy]


class ByGroup:
    """The descent of all groups.

    Args:
        one: where one alpha for all groups has ended; anchor: where the search began, [G, K].
        n_forwards: that it may take in all.
    """

    def __init__(self, make: MakeGroups, one: Candidate, anchor: Tensor, n_forwards: float) -> None:
        self.one, self._anchor = one, anchor
        self.strategy = make(one.alpha, anchor)
        self._n_steps = max(_FEWEST_STEPS, int(n_forwards / self.strategy.n_forwards))
        self._forwards_a_step = n_forwards / self._n_steps
        self.n_made = 0

    @property
    def is_done(self) -> bool:
        return self.n_made >= self._n_steps

    @property
    def forwards_a_step(self) -> float:
        """How many forwards the next step may take; the fewest steps are made whatever they take."""
        return max(self._forwards_a_step, self.strategy.least_forwards)

    def found(self, n_examples: int) -> Candidate:
        """Return the estimate of as many examples as the steps have seen."""
        return candidate_of("an alpha a group", self.strategy.shrunk(n_examples), self.one.statistics)

    def state(self) -> State:
        return {
            "statistics": self.one.statistics,
            "one": self.one.alpha,
            "without": self.one.without,
            "anchor": self._anchor,
            "n_steps": self._n_steps,
            "forwards_a_step": self._forwards_a_step,
            "n_made": self.n_made,
            **prefixed("strategy", self.strategy.state()),
        }

    @classmethod
    def of(cls, state: State, make: MakeGroups) -> "ByGroup":
        """Return the stage that has left a state."""
        one = Candidate("one alpha", state["one"], state["statistics"], state["without"])
        stage = cls(make, one, state["anchor"], 0)
        stage._n_steps, stage._forwards_a_step = state["n_steps"], state["forwards_a_step"]
        stage.n_made = state["n_made"]
        stage.strategy.restore(part_of(state, "strategy"))
        return stage


def share_of_descent(n_forwards: float) -> float:
    """Return how many forwards the groups may take without a budget, after so many for one alpha."""
    return _OF_DESCENT * n_forwards


def fits(strategy: Strategy, n_forwards: float) -> bool:
    """Tell whether so many forwards of a budget are worth the stage."""
    return n_forwards >= _FEWEST_STEPS * strategy.least_forwards


def candidate_of(name: str, found: Shrunk, statistics: Statistics) -> Candidate:
    """Return an estimate as a candidate for the guard."""
    return Candidate(name, found.alpha, statistics, found.without if len(found.without) > 1 else None)
