"""Blend the experts with the coefficients that the plan's method chooses, and write the prior."""

import gc
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from glue_cli.blend.relatedness import unrelated_experts
from glue_cli.blend.weight_norm import weights_off_the_mean
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.foundation.threads import restored_threads
from glue_cli.plans.mix import MixPlan
from glue_cli.results.history import writing_history
from glue_cli.results.mix import BlendedExpert, MixCost, MixResult
from glue_cli.results.provenance import origin_of
from glue_cli.running.device import find_device, make_repeatable
from glue_cli.workflows.hashes import remember, repeated_files, repeated_weights
from glue_cli.workflows.mix.choice import Choice, by_expert, by_group, passes_since
from glue_cli.workflows.mix.choose import choose_alpha
from glue_cli.workflows.mix.experts import gather_experts
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.hashes import hashes_of_plan
from glue_cli.workflows.mix.metadata import identity_of_mix, inputs_of_mix, metadata_of, recipe_of, sizes_of
from glue_cli.workflows.mix.target import target_of

if TYPE_CHECKING:
    from glue_cli.data.target import Target
    from glue_cli.workflows.keeper import Keeper


@restored_threads()
def mix(plan: MixPlan, run: Run, hashes: Sequence[StreamedHash] | None = None) -> MixResult:
    """Choose alpha by the plan's method and write the blend.

    Args:
        hashes: the experts' sha256 that `hashing_experts` has begun; None to begin them here.
    Raises:
        CheckpointError: an expert is damaged, or does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other.
        NumericalError: a loss is not finite.
        ResourceError: the output cannot be written, or the device is not there.
    """
    if not plan.coefficients.is_search:
        return _mix(plan, run, hashes, None)
    from glue_cli.workflows.resuming import keeping

    with keeping(plan.destination.result, run) as keeper:
        return _mix(plan, run, hashes, keeper)


@restored_threads()
def help_mix(plan: MixPlan, run: Run) -> None:
    """Share the forwards of a mix that another process of the job makes and writes.

    Raises:
        CheckpointError, SpecError, DataError, NumericalError, ResourceError: as `mix` does.
        Stopped: the job was asked to stop, or the other process has ended.
    """
    from glue_cli.workflows.mix.accuracy import choose_by_accuracy
    from glue_cli.workflows.mix.search import make_setting
    from glue_cli.workflows.resuming import keeping

    make_repeatable(find_device(run.device))
    experts, target = gather_experts(plan), target_of(plan, run)
    assert plan.spec is not None and target is not None
    if plan.coefficients.is_search:
        with keeping(plan.destination.result, run) as keeper:
            keeper.begin(**identity_of_mix(plan, target))
            setting = make_setting(plan, keeper.as_before(plan.spec), target, experts, run)
            keeper.precision = setting.compute.precision
            with keeper.steps():
                setting.follow(keeper.keep)
            _help_to_refresh(plan, target, experts, run)
        return
    run.ranks.check_alike(identity_of_mix(plan, target))
    if plan.coefficients.needs_data:
        choose_by_accuracy(plan, plan.spec, target, experts, run, lambda line: None)
    _help_to_refresh(plan, target, experts, run)


def _help_to_refresh(plan: MixPlan, target: "Target", experts: Experts, run: Run) -> None:
    """Share the passes that take BatchNorm's statistics anew, if the process that mixes tells of which alpha."""
    from glue_cli.workflows.mix.refresh import refresh

    alpha = run.ranks.hear()
    if alpha is not None:
        assert plan.spec is not None
        refresh(plan, plan.spec, target, experts, Choice(alpha), run)


def _mix(plan: MixPlan, run: Run, hashes: Sequence[StreamedHash] | None, keeper: "Keeper | None") -> MixResult:
    began = time.perf_counter()
    make_repeatable(find_device(run.device))  # fails on a missing GPU before the data are read
    _tell_of(plan, run)
    experts, target = gather_experts(plan), target_of(plan, run)
    if keeper and target:
        keeper.begin(**identity_of_mix(plan, target))
    elif target and run.ranks.size > 1:
        run.ranks.check_alike(identity_of_mix(plan, target))
    with writing_history(
        run.history,
        replace=plan.destination.force,
        resumes=run.saving.resumes,
        kept_bytes=keeper.history_bytes if keeper else None,
        command="mix",
        method=plan.method,
        seed=plan.seed,
    ) as write:
        chosen = choose_alpha(plan, target, experts, run, write, keeper)
    chosen = _with_statistics(plan, target, experts, chosen, run)
    describe = partial(metadata_of, plan, chosen, recipe_of(plan, chosen), inputs_of_mix(plan, target))
    hashes = hashes_of_plan(plan, run) if hashes is None else hashes
    gc.collect()  # the search's experts and blends, which models and their hooks refer to in circles
    digests = experts.write(chosen.alpha, chosen.made or {}, describe, hashes, run)
    remember(hashes, run)
    for note in repeated_weights(plan.experts, digests):
        run.progress(Noted(note, warning=True))
    cost = MixCost(**asdict(chosen.cost), wall_s=time.perf_counter() - began, peak_bytes=_peak_bytes(run))
    return _result_of(plan, chosen, digests, cost)


def _tell_of(plan: MixPlan, run: Run) -> None:
    """Tell the user what was noticed of the experts."""
    for note in plan.like.notes if plan.like else ():
        run.progress(Noted(note))
    for note in (*plan.tensors.notes, *repeated_files(plan.experts), *_of_weights(plan)):
        run.progress(Noted(note, warning=True))


def _of_weights(plan: MixPlan) -> list[str]:
    """Return what a sample of the weights of the experts that take part says; adapters have their base in common."""
    if plan.adapters or plan.like:
        return []
    shares = plan.coefficients.alpha or (1.0,) * len(plan.experts)
    used = [expert for expert, share in zip(plan.experts, shares, strict=True) if share]
    return [*unrelated_experts(used, plan.tensors.recipe), *weights_off_the_mean(used, plan.tensors.recipe.apart)]


def _with_statistics(plan: MixPlan, target: "Target | None", experts: Experts, chosen: Choice, run: Run) -> Choice:
    """Return the choice with BatchNorm's statistics taken anew, if they are wanted and not made yet."""
    is_refreshed = "refreshed" in (plan.tensors.statistics, chosen.statistics)
    is_due = is_refreshed and chosen.made is None
    run.ranks.tell(chosen.alpha if is_due else None)
    if is_due:
        from glue_cli.workflows.mix.refresh import refresh  # this imports the models and data too

        assert plan.spec is not None and target is not None
        before, clock, afterwards = replace(chosen.cost), time.perf_counter(), chosen.afterwards
        chosen = refresh(plan, plan.spec, target, experts, chosen, run)
        after = passes_since(before, chosen.cost, clock)
        chosen = replace(chosen, afterwards=afterwards.plus(after) if afterwards else after)
    return replace(chosen, settings={**chosen.settings, "batchnorm": "refresh"}) if is_refreshed else chosen


def _result_of(plan: MixPlan, chosen: Choice, digests: Sequence[str | None], cost: MixCost) -> MixResult:
    return MixResult(
        method=plan.method,
        alpha=by_expert(chosen.alpha),
        groups=by_group(plan, chosen.alpha),
        experts=[
            BlendedExpert(path=expert.name, sha256=digest, examples=size, weights=expert.weights)
            for expert, digest, size in zip(plan.experts, digests, sizes_of(plan), strict=True)
        ],
        output=str(plan.destination.result),
        loss=chosen.loss,
        cost=cost,
        seed=plan.seed,
        settings=chosen.settings,
        statistics=chosen.statistics,
        **origin_of(plan.spec),
        like=str(plan.like.blend.path) if plan.like else None,
        val_accuracies=chosen.val_accuracies,
        steps=chosen.steps,
        stopped=chosen.stopped,
        precision=chosen.precision,
        threads=chosen.threads,
        objective=chosen.objective,
        search=chosen.search,
        skipped=chosen.skipped,
        left_out=chosen.left_out,
        before_refresh=chosen.before_refresh,
        afterwards=chosen.afterwards,
    )


def _peak_bytes(run: Run) -> int:
    """Return the run's peak memory: on the GPU if it used one, else the process's resident set."""
    device = find_device(run.device)
    if device.type == "cuda" and (on_gpu := torch.cuda.max_memory_allocated(device)):
        return on_gpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
