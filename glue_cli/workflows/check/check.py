"""Check experts before they are mixed: what differs, whether they lie in one basin, and what a mix would take."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from glue_cli.blend.misfit import Misfit
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.foundation.memory import free_memory
from glue_cli.foundation.run import Run
from glue_cli.plans.check import CheckPlan
from glue_cli.results.check import CheckedExpert, CheckedPair, CheckResult, Difference, NonFiniteTensor, PlannedMix
from glue_cli.search.bank.layout import bank_bytes
from glue_cli.workflows.check.basin import Basin, find_basin
from glue_cli.workflows.check.updates import update_products
from glue_cli.workflows.check.verdict import judge
from glue_cli.workflows.check.weights import Weights, read_weights
from glue_cli.workflows.hashes import hashes_of, remember, repeated_files, repeated_weights

if TYPE_CHECKING:
    from glue_cli.workflows.check.trial import Trial


def check(plan: CheckPlan, run: Run) -> CheckResult:
    """Read the experts' weights once; with a spec, also run the model.

    Raises:
        CheckpointError: an expert cannot be read, or does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other.
        ResourceError: the device is not there.
    """
    hashes = hashes_of(plan.experts, run)
    weights = read_weights(
        plan.experts,
        hashes=hashes,
        is_compared=not plan.adapters,
        copied=plan.recipe.apart,
        progress=run.progress,
    )
    remember(hashes, run)
    is_finite = not any(weights.non_finite)
    if plan.adapters and is_finite:
        weights = replace(weights, gram=update_products(plan.adapters))
    basin = find_basin(plan.experts, weights)
    trial = _try(plan, run) if plan.mix and is_finite else None
    names = [expert.name for expert in plan.experts]
    of_weights = None if plan.adapters else basin
    judged = judge(names, plan.misfits, weights.non_finite, of_weights, trial.losses if trial else None)
    n_bytes, free = bank_bytes(plan.experts, plan.recipe), free_memory(torch.device("cpu"))
    return CheckResult(
        verdict=judged.verdict,
        reasons=judged.reasons,
        instead=judged.instead,
        experts=_experts(plan.experts, weights, basin),
        differences=[_difference(misfit) for misfit in plan.misfits],
        notes=(*plan.notes, *repeated_files(plan.experts), *repeated_weights(plan.experts, weights.digests)),
        pairs=_pairs(basin, trial),
        unlike=() if plan.adapters else basin.unlike,
        permuted=basin.is_permuted,
        mix=trial.planned(n_bytes, free) if trial else PlannedMix(experts_bytes=n_bytes, free_bytes=free),
        losses=trial.losses.as_result() if trial else None,
    )


def _try(plan: CheckPlan, run: Run) -> "Trial":
    from glue_cli.workflows.check.trial import try_mix  # this imports the models and data too

    assert plan.mix
    return try_mix(plan.mix, run)


def _experts(experts: Sequence[Checkpoint], weights: Weights, basin: Basin) -> list[CheckedExpert]:
    return [
        CheckedExpert(
            path=expert.name,
            sha256=digest,
            bytes=sum(stamp.n_bytes for stamp in expert.stamps),
            parameters=sum(e.n_elements for e in expert.entries.values() if e.dtype in FLOAT_DTYPES),
            non_finite=[NonFiniteTensor(**tensor._asdict()) for tensor in tensors],
            distance=_known(distance),
            weights=expert.weights,
        )
        for expert, digest, tensors, distance in zip(
            experts, weights.digests, weights.non_finite, basin.mean_distances.tolist(), strict=True
        )
    ]


def _pairs(basin: Basin, trial: "Trial | None") -> list[CheckedPair]:
    midpoints = trial.losses.midpoints if trial else {}
    return [
        CheckedPair(
            experts=(i, j),
            distance=_known(basin.distances[i, j].item()),
            cosine=_known(basin.cosines[i, j].item()),
            difference_cosine=_known(basin.difference_cosines[i, j].item()),
            midpoint=midpoints.get("averaged", {}).get((i, j)),
            midpoint_refreshed=midpoints.get("refreshed", {}).get((i, j)),
        )
        for i, j in combinations(range(len(basin.cosines)), 2)
    ]


def _difference(misfit: Misfit) -> Difference:
    return Difference(about=misfit.about, message=misfit.message, items=misfit.items, hint=misfit.hint)


def _known(value: float) -> float | None:
    """Return a figure, or None for NaN: of an expert with NaN or of zeros alone."""
    return value if value == value else None
