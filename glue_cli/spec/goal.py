"""The goal of mixing, by the objective's name in the spec. Needs no torch."""

from dataclasses import dataclass

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.user_code import PREFIX


@dataclass(frozen=True)
class Goal:
    """The goal of mixing: the lowest loss, or the highest value of another metric.

    For every goal, a search minimises a mean of terms; `figure` converts this mean into the metric that people read.

    Attributes:
        name: as in the spec: loss, accuracy, f1, or python:MODULE:FUNCTION.
        is_smooth: whether the terms are the model's own loss; only this goal has a gradient in the model's outputs.
        follows_loss: whether a low loss usually means a good value of the metric too, so that a search may first
            minimise the loss.
        has_example_terms: whether there is a term per example or token; otherwise one per minibatch.
        best: the metric is `best` minus the mean of the terms; None if it is the mean itself.
    """

    name: str
    is_smooth: bool = False
    follows_loss: bool = False
    has_example_terms: bool = False
    best: float | None = 1

    def figure(self, mean: float) -> float:
        """Convert a mean of terms into the metric; the same function converts it back."""
        return mean if self.best is None else self.best - mean

    @property
    def label(self) -> str:
        """A short name; for a user's function, the name of the function."""
        return self.name.rpartition(":")[2]


_NAMED = {
    goal.name: goal
    for goal in (
        Goal("loss", is_smooth=True, follows_loss=True, has_example_terms=True, best=None),
        Goal("accuracy", follows_loss=True, has_example_terms=True),
        Goal("f1", follows_loss=True),
    )
}
GOALS = tuple(_NAMED)  # all names except those of users' functions


def goal_named(name: str) -> Goal:
    """Return the goal of an objective; a user's function is not imported.

    Raises:
        SpecError: there is no objective with this name.
    """
    if name.startswith(PREFIX):
        return Goal(name, best=0)
    if name not in _NAMED:
        known = f"{', '.join(GOALS)} or {PREFIX}MODULE:FUNCTION"
        raise SpecError(f"there is no objective '{name}'", hint=f"wanted {known}")
    return _NAMED[name]
