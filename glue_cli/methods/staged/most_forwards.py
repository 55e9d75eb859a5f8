"""How many forwards a staged search makes at most that has no budget, stage by stage; for a plan of it."""

import math

from glue_cli.methods.staged import by_group, contenders
from glue_cli.methods.staged.screening import N_FINALISTS
from glue_cli.methods.steps.strategy import Strategy
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

ROUNDS = 3  # Gauss-Newton's `n_rounds`, for which `validate_every` is meant


def most_forwards(
    objective: Objective, settings: MixSpec, strategy: Strategy, n_forwards: int, groups: Strategy | None
) -> int:
    """Return how many forwards a search makes that ends by its steps, if no kind of statistics is left out.

    Args:
        strategy: that of the race and the descent; groups: that of an alpha for each group, if there is one.
        n_forwards: of a step of `strategy`, at most.
    """
    n_experts, n_kinds = objective.n_experts, len(objective.kinds)
    written = [objective.n_written_forwards(kind) for kind in objective.kinds]
    # The uniform blend twice; half-way to each expert; by these losses or each expert alone; the finalists again.
    screening = n_kinds * (2 + 2 * n_experts + N_FINALISTS)
    race, n_raced = _race(n_kinds, settings.steps, strategy.n_rounds)
    race *= n_forwards
    descent = (settings.steps - n_raced) * n_kinds * n_forwards
    n_validations = settings.steps // validation_interval(settings, strategy)
    judging = n_validations * objective.n_validation_batches + (sum(written) if n_kinds > 1 else 0)
    of_groups = 0
    if groups:
        share = by_group.share_of_descent(race + descent / n_kinds + judging)
        of_groups = groups.n_forwards * by_group.count_steps(share, groups)
    # Each expert for the best one, with each kind. The guard's end, start, runner-up, and the one alpha before groups;
    # and of each kind the uniform blend and that expert.
    guard = n_experts * n_kinds + (4 if groups else 3) * max(written) + 2 * sum(written)
    return screening + race + descent + judging + of_groups + guard


def validation_interval(settings: MixSpec, strategy: Strategy) -> int:
    """Return after how many steps a validation is due: less often for a strategy that needs more steps."""
    return settings.validate_every * math.ceil(strategy.n_rounds / ROUNDS)


def _race(n_kinds: int, n_steps: int, n_rounds: int) -> tuple[int, int]:
    """Return how many steps all contenders of a race make together at most, and how many the first makes."""
    n_contenders, n_together, n_raced = contenders.MOST, 0, 0
    while n_contenders > n_kinds and n_raced < n_steps:
        n = min(n_rounds, n_steps - n_raced)
        n_together, n_raced = n_together + n * n_contenders, n_raced + n
        # The better half, and the first of each other kind
        n_contenders = min(n_contenders - 1, (n_contenders + 1) // 2 + n_kinds - 1)
    return n_together, n_raced
