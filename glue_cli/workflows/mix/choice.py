"""A chosen alpha, and how results show it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.plans.mix import MixPlan
from glue_cli.results.mix import (
    GreedySearch,
    LeftOut,
    Losses,
    Objective,
    Passes,
    Skipped,
    StagedSearch,
)
from glue_cli.search.account import Cost


@dataclass(frozen=True)
class Choice:
    """A chosen alpha [G, K], float64, and how it was chosen.

    Attributes:
        settings: what is needed to choose it again.
        cost: of the whole choice; afterwards: the part of it that was spent after alpha was chosen.
        loss: as in `MixResult`; objective, steps, stopped, search, skipped, left_out, before_refresh: of a search.
        val_accuracies: the experts' accuracies, if the method uses them.
        statistics: the chosen kind of BatchNorm statistics; None if there was no choice.
        made: tensors to write in place of blended ones; None if there are none.
        refreshed_on: what the BatchNorm statistics in `made` were taken with, for `results.blend.Refreshed`.
    """

    alpha: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    afterwards: Passes | None = None
    loss: Losses | None = None
    val_accuracies: list[float] | None = None
    steps: int | None = None
    stopped: str | None = None
    precision: str | None = None
    threads: int | None = None
    objective: Objective | None = None
    search: StagedSearch | GreedySearch | None = None
    skipped: Skipped | None = None
    left_out: list[LeftOut] | None = None
    before_refresh: Losses | None = None
    statistics: Statistics | None = None
    made: dict[str, Tensor] | None = None
    refreshed_on: dict[str, Any] = field(default_factory=dict)

    def refreshed(self, figure: float) -> "Choice":
        """Return the choice of a search after BatchNorm's statistics were taken anew.

        Args:
            figure: of the written blend on validation data: its loss, or the figure of another objective.
        """
        seen = self.objective or self.loss or Losses()
        before = Losses(val=seen.val, val_uniform=seen.val_uniform)
        if self.objective:
            return replace(self, objective=replace(self.objective, val=figure), before_refresh=before)
        return replace(self, loss=replace(self.loss or Losses(), val=figure), before_refresh=before)


def by_expert(alpha: Tensor) -> list[float]:
    """Return one coefficient per expert, [K]: the mean over the groups of alpha [G, K], exact if all are equal."""
    return (alpha.mean(0) if (alpha != alpha[0]).any() else alpha[0]).tolist()


def by_group(plan: MixPlan, alpha: Tensor) -> dict[str, list[float]] | None:
    """Return each group's coefficients, if there are several groups that differ or were asked for."""
    groups = plan.tensors.recipe.groups
    was_asked_for = plan.spec is not None and bool(plan.spec.mix.named_groups)
    if len(groups) == 1 or not (was_asked_for or (alpha != alpha[0]).any()):
        return None
    return dict(zip(groups, alpha.tolist(), strict=True))


def skipped_in(n_steps: int, blends: Sequence[str]) -> Skipped | None:
    """Return what a choice of alpha has gone on without; None if that is nothing."""
    return Skipped(steps=n_steps, blends=[*blends]) if n_steps or blends else None


def passes_since(before: Cost, cost: Cost, began: float) -> Passes:
    """Return the passes made since the cost was `before` and the clock was at `began`."""
    counts = {name: count - getattr(before, name) for name, count in asdict(cost).items()}
    return Passes(**counts, wall_s=time.perf_counter() - began)
