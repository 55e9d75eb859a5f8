"""What mixing searches for, by the objective's name in the spec. Needs no torch."""

from dataclasses import dataclass

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.user_code import PREFIX


@dataclass(frozen=True)
class Goal:
    """What mixing searches for: the least loss, or the most of another figure.

    Whatever the goal, a search makes the mean of some terms as small as it can; `figure` turns that mean into the
    number that people read.

    Attributes:
        name: as in the spec: loss, accuracy, f1, or python:MODULE:FUNCTION.
        is_smooth: whether the terms are the model's own loss; no other goal has a slope in the model's outputs.
        follows_loss: whether the goal is reached about where the loss is least, so that a search may go down the loss
            first.
        has_example_terms: whether there is a term for every example or token; else one for a whole minibatch.
        best: what the terms are taken from to give the figure; None where the figure is the mean itself.
    """

    name: str
    is_smooth: bool = False
    follows_loss: bool = False
    has_example_terms: bool = False
    best: float | None = 1

    def figure(self, mean: float) -> float:
        """Return the figure that a mean of terms stands for; it is its own inverse."""
        return mean if self.best is None else self.best - mean

    @property
    def label(self) -> str:
        """A short name: of a user's function, the function's own."""
        return self.name.rpartition(":")[2]


_NAMED = {
    goal.name: goal
    for goal in (
        Goal("loss", is_smooth=True, follows_loss=True, has_example_terms=True, best=None),
        Goal("accuracy", follows_loss=True, has_example_terms=True),
        Goal("f1", follows_loss=True),
    )
}
GOALS = tuple(_NAMED)  # the names that are not a user's function


def goal_named(name: str) -> Goal:
    """Return the goal of an objective; of a user's function, without looking for it.

    Raises:
        SpecError: there is none of that name.
    """
    if name.startswith(PREFIX):
        return Goal(name, best=0)
    if name not in _NAMED:
        known = f"{', '.join(GOALS)} or {PREFIX}MODULE:FUNCTION"
        raise SpecError(f"there is no objective '{name}'", hint=f"wanted {known}")
    return _NAMED[name]
