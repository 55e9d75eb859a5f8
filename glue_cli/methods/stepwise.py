"""Searches for alpha that go on step by step, and can stop between two steps and go on in another process."""

from collections.abc import Callable
from typing import Protocol

from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.state import Checkpoint, State
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned, StepRecord

# Told of every step that is to be shown and written down.
Observe = Callable[[StepRecord], None]


class StepwiseSearch(Protocol):
    """A search for alpha: all that later steps depend on is its state."""

    def step(self) -> Learned | None:
        """Make a step, and return what was learned if it was the last one."""

    def state(self) -> State:
        """Return all that later steps depend on, the spent part of the budget included."""

    def restore(self, state: State) -> None:
        """Take on the state of a search with the same settings, seed and objective, to go on in its place."""


def run(domain: Simplex, search: StepwiseSearch, checkpoint: Checkpoint, state: State | None) -> Learned:
    """Make a search's steps to the last, from the beginning or from a state, and return what was learned.

    Raises:
        NumericalError: the alpha is not one of the domain, which one that is not finite never is.
    """
    if state is not None:
        search.restore(state)
    while (learned := search.step()) is None:
        checkpoint(search.state)
    if not domain.contains(learned.alpha):
        message = f"alpha is {learned.alpha.tolist()} after {learned.n_steps} mixing steps"
        raise NumericalError(message, hint="evaluate the experts one by one")
    return learned


def unobserved(record: StepRecord) -> None:
    """Take no notice of a step."""
