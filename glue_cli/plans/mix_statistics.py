"""Which BatchNorm statistics a blend is written with, and which groups of tensors have an alpha of their own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from glue_cli.blend.recipe import Recipe
from glue_cli.blend.rules import Groups
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.batchnorm_names import Statistics, is_statistic
from glue_cli.foundation.errors import SpecError
from glue_cli.methods import makes_gauss_newton_steps
from glue_cli.plans.mix_records import Coefficients
from glue_cli.spec.goal import goal_named

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


def plan_groups(coefficients: Coefficients, n_experts: int, spec: "Spec | None") -> Groups:
    """Return a search's groups: those asked for, or with `auto` the model's blocks if Gauss-Newton steps are made."""
    if spec is None or not coefficients.is_search:
        return {}
    if spec.mix.groups != "auto":
        return spec.mix.named_groups
    by_quadratics = makes_gauss_newton_steps(coefficients.method, spec.mix, goal_named(spec.objective))
    return "blocks" if by_quadratics and n_experts > 1 else {}


def plan_statistics(
    policy: str, experts: Sequence[Checkpoint], recipe: Recipe, coefficients: Coefficients, spec: "Spec | None"
) -> Statistics | Literal["auto"]:
    """Return what --batchnorm means for these experts and this method.

    `auto` lets the data decide if the method uses data, all statistics are blended, and no preset or setting says
    otherwise; if not, it means the experts' own statistics.

    Raises:
        SpecError: the search would use other statistics than the blend is written with.
    """
    if policy == "refresh":
        return "refreshed"
    known = [name for name in experts[0].entries if is_statistic(name)]
    if spec and known and coefficients.is_search and spec.mix.bn_statistics == "batch":
        raise SpecError(
            "mix.bn_statistics: batch searches with BatchNorm's statistics of each minibatch, and the blend would be "
            "written with others",
            hint="add --batchnorm refresh, or leave mix.bn_statistics out",
        )
    is_staged = spec is not None and spec.mix.preset != "paper" and spec.mix.search == "staged"
    if policy == "auto" and coefficients.needs_data and is_staged and known and all(map(recipe.is_blended, known)):
        return "auto"
    return "averaged"
