"""The stage that gives every group of tensors its own alpha, from where one alpha for all has ended."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.state import State, part_of, prefixed
from glue_cli.methods.staged.guard import Candidate
from glue_cli.methods.steps.shrinkage import Shrunk
from glue_cli.methods.steps.strategy import Shrinks, Strategy
from glue_cli.results.mix import ONE_ALPHA

SHARE = 0.25  # of a budget
# Without a budget: a share of the forwards that the race and the descent of one alpha have taken. On spoken and
# handwritten digits, reviews and CIFAR-10 with 25 and 100 labels, the whole search then takes 1.04 to 1.49 times the
# forwards of a search for one alpha.
_OF_DESCENT = 0.5
_FEWEST_STEPS = 4


class GroupStrategy(Strategy, Shrinks, Protocol):
    """A strategy that pulls an estimate which its examples do not support back to where the search began."""


# Returns a strategy from a start and an anchor that its estimate is pulled towards; both are alphas [G, K].
MakeGroups = Callable[[Tensor, Tensor], GroupStrategy]


class ByGroup:
    """The descent of all groups.

    Args:
        one: the end of the search with one alpha for all groups; anchor: where the search began, [G, K].
        n_forwards: how many it may take in total.
    """

    def __init__(self, make: MakeGroups, one: Candidate, anchor: Tensor, n_forwards: float) -> None:
        self.one, self._anchor = one, anchor
        self.strategy = make(one.alpha, anchor)
        self._n_steps = count_steps(n_forwards, self.strategy)
        self._forwards_a_step = n_forwards / self._n_steps
        self.n_made = 0

    @property
    def is_done(self) -> bool:
        return self.n_made >= self._n_steps

    @property
    def forwards_a_step(self) -> float:
        """How many forwards the next step may take; never fewer than a step needs."""
        return max(self._forwards_a_step, self.strategy.least_forwards)

    def candidate(self, n_examples: int) -> Candidate:
        """Return the estimate, pulled back as far as `n_examples` examples call for."""
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
        """Restore the stage from its state."""
        one = Candidate(ONE_ALPHA, state["one"], state["statistics"], state["without"])
        stage = cls(make, one, state["anchor"], 0)
        stage._n_steps, stage._forwards_a_step = state["n_steps"], state["forwards_a_step"]
        stage.n_made = state["n_made"]
        stage.strategy.restore(part_of(state, "strategy"))
        return stage


def share_of_descent(n_forwards: float) -> float:
    """Return how many forwards the groups may take without a budget, after `n_forwards` for one alpha."""
    return _OF_DESCENT * n_forwards


def count_steps(n_forwards: float, strategy: Strategy) -> int:
    """Return how many steps the groups make with `n_forwards`."""
    return max(_FEWEST_STEPS, int(n_forwards / strategy.n_forwards))


def fits(strategy: Strategy, n_forwards: float) -> bool:
    """Tell whether the stage can make enough steps with `n_forwards`."""
    return n_forwards >= _FEWEST_STEPS * strategy.least_forwards


def candidate_of(name: str, estimate: Shrunk, statistics: Statistics) -> Candidate:
    """Return an estimate as a candidate for the guard."""
    return Candidate(name, estimate.alpha, statistics, estimate.without if len(estimate.without) > 1 else None)
