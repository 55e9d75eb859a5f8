"""A way down the target loss that asks for what it needs, and is told."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from glue_cli.foundation.state import State
from glue_cli.methods.steps.questions import Answer, Question, answer
from glue_cli.methods.steps.shrinkage import Shrunk
from glue_cli.search.protocol import Objective


class Strategy(Protocol):
    """A way down from a start. It runs no model: it asks one question a step, and is told the answer.

    Whatever is random in step t follows from the seed and t, or is part of the state. The state is that behind the
    last step that was told, also while a question is open: a step can be given up and asked for again.

    Attributes:
        alpha: the estimate so far, [G, K].
        n_forwards: of a whole step; least_forwards: the fewest that a step can be made with.
        n_rounds: steps after which contenders can be told apart.
        has_converged: whether further steps serve nothing.
    """

    n_rounds: int

    @property
    def n_forwards(self) -> int: ...

    @property
    def least_forwards(self) -> int: ...

    @property
    def has_converged(self) -> bool: ...

    @property
    def alpha(self) -> Tensor: ...

    def ask(self, step: int, n_forwards: float) -> Question:
        """Return what step number `step` has to know; it costs at most `n_forwards`, if these are the fewest or more.

        It is about the minibatch of that step.
        """

    def tell(self, answer: Answer) -> float:
        """Make the step by the answer to the last question; return the loss near the old alpha."""

    def state(self) -> State:
        """Return all that later steps depend on."""

    def restore(self, state: State) -> None:
        """Take on the state of another strategy with the same settings and seed, to go on in its place."""


@runtime_checkable
class Shrinks(Protocol):
    """A strategy that knows how far its examples bear its estimate out."""

    def shrunk(self, n_examples: int) -> Shrunk:
        """Return the estimate of as many examples as were seen."""


def make_step(strategy: Strategy, objective: Objective, step: int, n_forwards: float) -> float:
    """Make a strategy's step on the minibatch of `step` with at most `n_forwards`; return the loss that it tells."""
    return strategy.tell(answer(objective, strategy.ask(step, n_forwards), step))
