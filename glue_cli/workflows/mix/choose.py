"""Choose alpha: give a method the sizes, accuracies or objective that it works from."""

from typing import TYPE_CHECKING

import torch

from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS
from glue_cli.plans.mix import MixPlan
from glue_cli.results.history import Write
from glue_cli.workflows.mix.choice import Choice
from glue_cli.workflows.mix.experts_interface import Experts

if TYPE_CHECKING:  # not needed at run time if alpha is given
    from glue_cli.data.target import Target
    from glue_cli.workflows.keeper import Keeper


def choose_alpha(
    plan: MixPlan, target: "Target | None", experts: Experts, run: Run, write: Write, keeper: "Keeper | None" = None
) -> Choice:
    """Give the plan's method what it needs, and return the alpha that it chooses.

    Args:
        target: given if the plan has a spec.
        write: gets a line for each step of a search, or for each expert that is evaluated.
        keeper: keeps the state of a search; given if the method is a search.
    """
    coefficients = plan.coefficients
    if plan.like:
        alphas = torch.tensor(plan.like.said.alphas, dtype=torch.float64)
        n_groups = len(plan.tensors.recipe.groups)  # for blocks, a single alpha may have been recorded
        return Choice(alphas.expand(n_groups, -1) if len(alphas) == 1 else alphas)
    if coefficients.alpha is not None:
        return _given(coefficients.alpha)
    method = METHODS[coefficients.method]
    if method.needs == "count":
        return _given(method.load()(len(plan.experts)))
    if method.needs == "sizes":
        return _given(method.load()(coefficients.sizes))
    from glue_cli.workflows.mix.accuracy import choose_by_accuracy
    from glue_cli.workflows.mix.search import search

    assert plan.spec is not None and target is not None
    if method.needs == "accuracies":
        return choose_by_accuracy(plan, plan.spec, target, experts, run, write)
    assert keeper is not None
    return search(plan, keeper.as_before(plan.spec), target, experts, run, write, keeper)


def _given(alpha: object) -> Choice:
    return Choice(torch.tensor([alpha], dtype=torch.float64))
