"""The data that a mix is made for."""

from typing import TYPE_CHECKING

from glue_cli.foundation.run import Run
from glue_cli.plans.mix import MixPlan

if TYPE_CHECKING:
    from glue_cli.data.target import Target


def target_of(plan: MixPlan, run: Run) -> "Target | None":
    """Return the target's data, which are read only when they are used; None if nothing needs them."""
    if plan.spec is None:
        return None
    from glue_cli.data.classes import Classes
    from glue_cli.data.target import Target

    hint = "give the blend a head for them: --head PATTERN --head-policy align --classes NAME,..."
    return Target(plan.spec, run, Classes(plan.tensors.classes, "the blend", hint))
