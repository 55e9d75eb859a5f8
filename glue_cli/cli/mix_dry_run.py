"""The result of glue mix --dry-run."""

from typing import TYPE_CHECKING, Any

from glue_cli.methods import makes_gauss_newton_steps
from glue_cli.spec.goal import goal_named

if TYPE_CHECKING:
    from glue_cli.plans.mix import MixPlan
    from glue_cli.spec.schema import Spec


def planned(plan: "MixPlan") -> dict[str, Any]:
    """Return what a plan would read, spend and write."""
    first = plan.experts[0]
    result: dict[str, Any] = {
        "method": plan.method,
        "experts": len(plan.experts),
        "tensors": len(first.entries),
        "bytes_read": sum(expert.n_bytes for expert in plan.experts),
        "output": str(plan.destination.result),
    }
    if plan.tensors.notes:
        result["notes"] = list(plan.tensors.notes)
    if plan.spec and plan.coefficients.is_search:
        result |= _search(plan, plan.spec)
    return result


def _search(plan: "MixPlan", spec: "Spec") -> dict[str, Any]:
    """Return what a search may spend."""
    spending: dict[str, Any] = {"budget": spec.mix.budget} if spec.mix.budget else {}
    if plan.method == "greedy":
        n_kinds = 2 if plan.tensors.statistics == "auto" else 1  # kinds of BatchNorm statistics; each has its own soup
        return spending | {"validations_at_most": 2 * len(plan.experts) * n_kinds}
    spending = spending or {"steps_at_most": spec.mix.steps}
    if plan.method == "spsa":
        spending |= _spsa_steps(plan, spec)
    return spending


def _spsa_steps(plan: "MixPlan", spec: "Spec") -> dict[str, int]:
    """Return the number of forwards per step, and per step by group if there are such steps.

    A step of Gauss-Newton tries a direction for each expert except one, and later does so in every group. Other steps
    try each direction both ways.
    """
    if not makes_gauss_newton_steps(plan.method, spec.mix, goal_named(spec.objective)):
        return {"forwards_a_step": 2 * spec.mix.n_directions}
    n_groups, n_directions = len(plan.tensors.recipe.groups), len(plan.experts) - 1
    by_group = {"forwards_a_step_by_group": n_groups * n_directions + 1} if n_groups > 1 else {}
    return {"forwards_a_step": n_directions + 1, **by_group}
