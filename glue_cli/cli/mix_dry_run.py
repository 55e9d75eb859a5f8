"""What glue mix would do."""

from typing import TYPE_CHECKING, Any

from glue_cli.methods import makes_gauss_newton_steps
from glue_cli.spec.goal import goal_named

if TYPE_CHECKING:
    from glue_cli.plans.mix import MixPlan
    from glue_cli.spec.schema import Spec


def planned(plan: "MixPlan") -> dict[str, Any]:
    """Return what a plan reads, spends and writes, as the result of a dry run has it."""
    first = plan.experts[0]
    found: dict[str, Any] = {
        "method": plan.method,
        "experts": len(plan.experts),
        "tensors": len(first.entries),
        "bytes_read": sum(expert.n_bytes for expert in plan.experts),
        "output": str(plan.destination.result),
    }
    if plan.tensors.notes:
        found["notes"] = list(plan.tensors.notes)
    if plan.spec and plan.coefficients.is_search:
        found |= _search(plan, plan.spec)
    return found


def _search(plan: "MixPlan", spec: "Spec") -> dict[str, Any]:
    """Return what a search may spend."""
    found: dict[str, Any] = {"budget": spec.mix.budget} if spec.mix.budget else {}
    if plan.method == "greedy":
        n_kinds = 2 if plan.tensors.statistics == "auto" else 1  # of BatchNorm's statistics, each with a soup
        return found | {"validations_at_most": 2 * len(plan.experts) * n_kinds}
    found = found or {"steps_at_most": spec.mix.steps}
    if plan.method == "spsa":
        found |= _spsa_steps(plan, spec)
    return found


def _spsa_steps(plan: "MixPlan", spec: "Spec") -> dict[str, int]:
    """Return the forwards of a step, of the later ones where there are two kinds.

    Those of Gauss-Newton go towards all experts but one, at last in every group; the others probe in pairs.
    """
    if not makes_gauss_newton_steps(plan.method, spec.mix, goal_named(spec.objective)):
        return {"forwards_a_step": 2 * spec.mix.n_directions}
    n_groups, n_directions = len(plan.tensors.recipe.groups), len(plan.experts) - 1
    by_group = {"forwards_a_step_by_group": n_groups * n_directions + 1} if n_groups > 1 else {}
    return {"forwards_a_step": n_directions + 1, **by_group}
