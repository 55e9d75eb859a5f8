"""The interface of the descents: each step asks one question, and is told the answer."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from glue_cli.foundation.state import State
from glue_cli.methods.steps.questions import Answer, Question, answer
from glue_cli.methods.steps.shrinkage import Shrunk
from glue_cli.search.protocol import Objective


class Strategy(Protocol):
    """A descent from a start. It runs no model: each step asks one question, and is told the answer.

    All randomness in step t follows from the seed and t, or is part of the state. The state is that after the last
    answer, even while a question is open: a step can be abandoned and asked for again.

    Attributes:
        alpha: the estimate so far, [G, K].
        n_forwards: of a full step; least_forwards: the fewest that a step can be made with.
        n_rounds: steps after which contenders can be told apart.
        has_converged: whether further steps are useless.
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
        """Return the question of step number `step`, about the minibatch of that step.

        It costs at most `n_forwards`, or `least_forwards` if that is more.
        """

    def tell(self, answer: Answer) -> float:
        """Make the step with the answer to the last question; return the loss near the old alpha.

        If a loss in the answer is not finite, the step is skipped, and the next one is tried nearer to where losses
        were finite; the loss returned is then not finite either.
        """

    def state(self) -> State:
        """Return all that later steps depend on."""

    def restore(self, state: State) -> None:
        """Load the state of another strategy with the same settings and seed, to continue it."""


@runtime_checkable
class Shrinks(Protocol):
    """A strategy that knows how far its examples support its estimate."""

    def shrunk(self, n_examples: int) -> Shrunk:
        """Return the estimate, pulled back as far as `n_examples` examples do not support it."""


def make_step(strategy: Strategy, objective: Objective, step: int, n_forwards: float) -> float:
    """Make a strategy's step on the minibatch of `step` with at most `n_forwards`; return the loss from `tell`."""
    return strategy.tell(answer(objective, strategy.ask(step, n_forwards), step))
