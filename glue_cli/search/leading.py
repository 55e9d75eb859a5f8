"""One process searches, the others help it: it tells them each question before all of them work on the answer.

Only the first process has a strategy, a budget, a guard and a clock. Whatever it decides, by its time or by numbers
that another machine would round differently, the others cannot disagree: they know questions, not the search. Of the
search they have its state after each step, which they save if the first process is lost.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.stopping import Stopped
from glue_cli.search.objective import BlendObjective
from glue_cli.search.secants import Quadratic

# The questions to an objective: methods of `BlendObjective` whose forwards are shared.
_QUESTIONS = ("probe_losses", "pair_losses", "quadratic", "gradient", "validation_terms", "written_terms")

Answers = Mapping[str, Callable[..., object]]


class LedObjective:
    """The objective as the first process's search sees it; see `Objective`. Alone, it tells nobody.

    Args:
        own: answers this process's part; kind: of its statistics.
    """

    def __init__(self, own: BlendObjective, ranks: Ranks, kind: Statistics) -> None:
        self.n_groups, self.n_experts = own.n_groups, own.n_experts
        self.is_smooth, self.follows_loss = own.is_smooth, own.follows_loss
        self.kinds, self.n_examples, self.n_folds, self.cost = own.kinds, own.n_examples, own.n_folds, own.cost
        self._own, self._ranks, self._kind = own, ranks, kind

    def with_statistics(self, statistics: Statistics) -> "LedObjective":
        return LedObjective(self._own.with_statistics(statistics), self._ranks, statistics)

    def probe_losses(self, alphas: Tensor, step: int) -> Tensor:
        self._tell("probe_losses", alphas, step)
        return self._own.probe_losses(alphas, step)

    def pair_losses(self, alphas: Tensor, step: int) -> Tensor:
        self._tell("pair_losses", alphas, step)
        return self._own.pair_losses(alphas, step)

    def quadratic(
        self, alpha: Tensor, coordinates: Tensor, radius: float, step: int, *, is_tied: bool = False
    ) -> Quadratic:
        self._tell("quadratic", alpha, coordinates, radius, step, is_tied=is_tied)
        return self._own.quadratic(alpha, coordinates, radius, step, is_tied=is_tied)

    def nat_at(self, loss: float) -> float:
        return self._own.nat_at(loss)

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]:
        self._tell("gradient", alpha, step)
        return self._own.gradient(alpha, step)

    @property
    def n_validation_batches(self) -> int:
        return self._own.n_validation_batches

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float:
        return self.validation_terms(alpha, n_batches).mean().item()

    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor:
        self._tell("validation_terms", alpha, n_batches)
        return self._own.validation_terms(alpha, n_batches)

    def written_terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None = None) -> Tensor:
        self._tell("written_terms", alphas, statistics, n_batches)
        return self._own.written_terms(alphas, statistics, n_batches)

    def n_written_forwards(self, statistics: Statistics, n_batches: int | None = None) -> int:
        return self._own.n_written_forwards(statistics, n_batches)

    @property
    def n_held_out_batches(self) -> int:
        return self._own.n_held_out_batches

    def _tell(self, question: str, *arguments: object, **named: object) -> None:
        tell(self._ranks, question, self._kind, *arguments, **named)


def answers_of(objective: BlendObjective) -> Answers:
    """Return what answers the questions of a `LedObjective` in another process, whose objective is `objective`."""

    def answering(question: str) -> Callable[..., object]:
        def answer(kind: Statistics, *arguments: object, **named: object) -> object:
            return getattr(objective.with_statistics(kind), question)(*arguments, **named)

        return answer

    return {question: answering(question) for question in _QUESTIONS}


def tell(ranks: Ranks, question: str, *arguments: object, **named: object) -> None:
    """Tell the other processes a question; its arguments are tensors and JSON values, or hold them."""
    if ranks.size > 1:
        ranks.tell({"question": question, "arguments": arguments, "named": named})


def dismiss(ranks: Ranks) -> None:
    """Tell the other processes that there are no more questions."""
    ranks.tell({})


def follow(ranks: Ranks, answers: Answers) -> None:
    """Work on the answer to each question of the first process, until it has no more.

    Raises:
        Stopped: the job was asked to stop, and its state is saved.
    """
    while told := ranks.hear():
        if "stopped_by" in told:
            raise Stopped(told["stopped_by"])
        answers[told["question"]](*told["arguments"], **told["named"])
