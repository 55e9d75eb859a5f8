"""Choose alpha: give a method the sizes, accuracies or objective that it works from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glue_cli.core.cost import Cost
from glue_cli.methods import METHODS
from glue_cli.workflows.experts import Experts
from glue_cli.workflows.history import Write
from glue_cli.workflows.plan import Run
from glue_cli.workflows.plan_mix import MixPlan


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


def choose_alpha(plan: MixPlan, experts: Experts, run: Run, write: Write) -> Choice:
    """Give the plan's method what it needs, and return its alpha with the account.

    Args:
        write: gets a line a step of a search, or an expert that is evaluated.
    """
    if plan.alpha is not None:
        return _given(plan.alpha)
    method = METHODS[plan.method]
    if method.needs == "count":
        return _given(method.load()(len(plan.experts)))
    if method.needs == "sizes":
        return _given(method.load()(plan.sizes))
    from glue_cli.workflows.search import choose_by_accuracy, search  # which bring models and data along

    assert plan.spec is not None
    if method.needs == "accuracies":
        return choose_by_accuracy(plan, plan.spec, experts, run, write)
    return search(plan, plan.spec, experts, run, write)


def _given(alpha: object) -> Choice:
    return Choice(torch.tensor([alpha], dtype=torch.float64))


def by_expert(alpha: Tensor) -> list[float]:
    """Return one coefficient an expert, [K]: the mean over the groups of alpha [G, K]."""
    return alpha.mean(0).tolist()


def by_group(plan: MixPlan, alpha: Tensor) -> dict[str, Any]:
    """Return each group's coefficients under `groups`, where there are several groups."""
    groups = plan.recipe.groups
    return {"groups": dict(zip(groups, alpha.tolist(), strict=True))} if len(groups) > 1 else {}
