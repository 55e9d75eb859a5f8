"""A chosen alpha, and how it is shown."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from glue_cli.plans.mix import MixPlan
from glue_cli.search.account import Cost


@dataclass(frozen=True)
class Choice:
    """A chosen alpha [G, K], float64, and its account.

    Attributes:
        settings: what it takes to choose it again.
        loss: validation losses of a search.
        details: what else the method has to say.
    """

    alpha: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    loss: dict[str, float | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def refreshed(self, figure: float) -> "Choice":
        """Return the choice of a search after BatchNorm's statistics were taken anew.

        Args:
            figure: what the blend as it is written has on validation data: its loss, or what else was searched for.
        """
        searched = self.details.get("objective", self.loss)
        before = {key: searched[key] for key in ("val", "val_uniform")}
        details = {**self.details, "before_refresh": before}
        if self.loss:
            return replace(self, loss={**self.loss, "val": figure}, details=details)
        return replace(self, details={**details, "objective": {**searched, "val": figure}})


def by_expert(alpha: Tensor) -> list[float]:
    """Return one coefficient an expert, [K]: the mean over the groups of alpha [G, K]."""
    return alpha.mean(0).tolist()


def by_group(plan: MixPlan, alpha: Tensor) -> dict[str, Any]:
    """Return each group's coefficients under `groups`, where there are several groups."""
    groups = plan.tensors.recipe.groups
    return {"groups": dict(zip(groups, alpha.tolist(), strict=True))} if len(groups) > 1 else {}
