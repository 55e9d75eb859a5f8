"""A single expert: no alpha is searched, but it is judged as it would be written, with each kind of statistics."""

import math

from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned
from glue_cli.methods.skips import not_finite
from glue_cli.methods.staged.guard import Candidate, guard
from glue_cli.results.mix import UNIFORM
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def most_forwards(objective: Objective) -> int:
    """Return how many forwards `judge_only_expert` makes at most without a budget."""
    return sum(objective.n_written_forwards(kind) for kind in objective.kinds)


def judge_only_expert(objective: Objective, settings: MixSpec) -> Learned:
    """Return the only expert, with BatchNorm statistics of the target's data if they are better by the guard's rule.

    Raises:
        NumericalError: its validation loss is not finite with any statistics.
    """
    only = Simplex.of(objective).uniform()
    first, *others = (Candidate(UNIFORM, only, kind) for kind in objective.kinds)
    verdict = guard(objective, Purse(settings.parsed_budget, objective.cost, settings.batch_size), first, others)
    if verdict.loss is not None and not math.isfinite(verdict.loss):
        raise not_finite("the validation loss of the only expert", 0, only)
    return Learned(
        only,
        verdict.loss,
        verdict.end_loss,
        0,
        "steps",
        statistics=verdict.returned.statistics,
        is_as_written=verdict.is_whole and objective.n_folds == 1,
    )
