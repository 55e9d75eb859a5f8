"""GLUE: coefficients by two-point SPSA, configuration 4 of the paper's section 5, with forward passes alone."""

from collections.abc import Callable

from torch import Tensor

from glue_cli.methods.result import Learned, StepRecord
from glue_cli.methods.staged.search import Strategy, search
from glue_cli.methods.steps.descent import descend
from glue_cli.methods.steps.gauss_newton import GaussNewton
from glue_cli.methods.steps.spsa_steps import SpsaDescent, SurrogateFirst, _make_estimate
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def spsa(
    objective: Objective, settings: MixSpec, *, seed: int, observe: Callable[[StepRecord], None] = lambda record: None
) -> Learned:
    """Learn alpha with forward passes alone, eq. (9) right.

    A plain search is the paper's: n probe pairs a step, 2n forwards, from the uniform blend. A staged one takes
    Gauss-Newton's steps, which get more out of the same forwards, unless the settings name an optimizer: all of its
    way where the objective is the loss, half of it where that leads to about the same place.
    """
    if settings.search == "plain":
        estimate = _make_estimate(objective, settings, seed)
        return descend(objective, estimate, settings, observe, n_forwards=2 * settings.n_directions)

    def make_strategy(start: Tensor) -> Strategy:
        if settings.optimizer == "auto" and objective.is_smooth:
            return GaussNewton(objective, start, seed=seed)
        if settings.optimizer == "auto" and objective.follows_loss:
            return SurrogateFirst(objective, start, settings, seed)
        return SpsaDescent(objective, start, settings, seed)

    return search(objective, settings, make_strategy, seed=seed, observe=observe)
