"""Searches for alpha that run step by step, so that one can stop after any step and resume in another process."""

from collections.abc import Callable
from typing import Protocol

from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.state import SaveState, State
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned, StepRecord

# Called with every step that is to be shown and logged.
Observe = Callable[[StepRecord], None]


class StepwiseSearch(Protocol):
    """A search for alpha; its state holds all that later steps depend on."""

    def step(self) -> Learned | None:
        """Make a step, and return what was learned if it was the last one."""

    def state(self) -> State:
        """Return all that later steps depend on, including how much of the budget is spent."""

    def restore(self, state: State) -> None:
        """Load the state of a search with the same settings, seed and objective, to continue it."""


def run(domain: Simplex, search: StepwiseSearch, save_state: SaveState, state: State | None) -> Learned:
    """Run a search to its end, from the beginning or from a state, and return what was learned.

    Raises:
        NumericalError: the alpha is outside the domain, as one that is not finite always is.
    """
    if state is not None:
        search.restore(state)
    while (learned := search.step()) is None:
        save_state(search.state)
    if not domain.contains(learned.alpha):
        message = f"alpha is {learned.alpha.tolist()} after {learned.n_steps} mixing steps"
        raise NumericalError(message, hint="evaluate the experts one by one")
    return learned


def unobserved(record: StepRecord) -> None:
    """Do nothing with a step."""
