"""What `glue check` is asked to do: which experts, and in what they differ, from the headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glue_cli.blend.adapters.adapter import Adapter, adapter_misfits, is_adapter
from glue_cli.blend.classes import compare_classes_of_adapters
from glue_cli.blend.comparing import compare, name_alike
from glue_cli.blend.misfit import Misfit
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.hub import fetch
from glue_cli.checkpoints.read import read_experts
from glue_cli.checkpoints.weight_sets import check_any_has
from glue_cli.foundation.errors import UsageError
from glue_cli.plans.mix import MixPlan, plan_mix
from glue_cli.plans.mix_adapters import read_adapters
from glue_cli.plans.mix_records import Coefficients
from glue_cli.plans.outputs import Outputs

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec

# What a mix would be written to; it never is. An adapter is a folder.
_NEVER_WRITTEN, _ADAPTER_NEVER_WRITTEN = Path("glue-check.safetensors"), Path("glue-check")


@dataclass(frozen=True)
class CheckPlan:
    """What `glue check` is asked to do.

    Attributes:
        adapters: the experts as adapters; empty for whole checkpoints.
        recipe: how a mix without rules of the user's would treat the tensors.
        misfits: why the experts cannot be mixed; empty if they can.
        notes: sentences on what differs and does no harm.
        mix: a mix of the experts by the spec, for what it would take; None without a spec, or if it cannot be.
    """

    experts: tuple[Checkpoint, ...]
    adapters: tuple[Adapter, ...]
    recipe: Recipe
    misfits: tuple[Misfit, ...]
    notes: tuple[str, ...]
    mix: MixPlan | None


def plan_check(paths: Sequence[Path], *, weights: str | None = None, spec: "Spec | None" = None) -> CheckPlan:
    """Read the experts' headers, and compare them in all that decides whether they can be mixed.

    Args:
        weights: which set of weights to read from an expert that has several; None chooses by convention.
    Raises:
        UsageError: an expert does not exist.
        CheckpointError: an expert is no checkpoint or is damaged, or some are adapters and others are not.
        SpecError, DataError: as for `plan_mix`, if there is a spec.
    """
    if not paths:
        raise UsageError("no experts given", hint="name their files: glue check experts/*.safetensors")
    paths = [fetch(path) for path in paths]
    if any(is_adapter(path) for path in paths):
        adapters = read_adapters(paths)
        experts = tuple(adapter.checkpoint for adapter in adapters)
        compared = compare_classes_of_adapters(experts, None)
        misfits = (*adapter_misfits(adapters), *compared.misfits)
        mix = _plan_mix(paths, _ADAPTER_NEVER_WRITTEN, weights, spec, misfits)
        return CheckPlan(experts, adapters, PLAIN, misfits, compared.notes, mix)
    experts = read_experts(paths, [weights] * len(paths))
    check_any_has(experts, weights)
    experts, renamed = name_alike(experts)
    found = compare(experts, PLAIN, dtype_given=False)
    mix = _plan_mix(paths, _NEVER_WRITTEN, weights, spec, found.misfits)
    return CheckPlan(found.experts, (), found.recipe, found.misfits, (*renamed, *found.notes), mix)


def _plan_mix(
    paths: Sequence[Path], output: Path, weights: str | None, spec: "Spec | None", misfits: Sequence[Misfit]
) -> MixPlan | None:
    """Plan a mix by the default search."""
    if spec is None or misfits:
        return None
    outputs = Outputs(output, are_written=False)
    return plan_mix(paths, outputs, Coefficients("spsa"), weights=weights, spec=spec, seed=spec.seed)
