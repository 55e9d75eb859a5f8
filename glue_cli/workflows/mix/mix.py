"""Blend the experts with the coefficients that the plan's method chooses, and write the prior."""

import gc
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glue_cli import __version__
from glue_cli.blend.relatedness import unrelated_experts
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import short_names
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


def _unrelated(plan: MixPlan) -> list[str]:
    """Return what to say of experts that have nothing in common; adapters have their base in common."""
    if plan.adapters or plan.like:
        return []
    counted = plan.coefficients.alpha or (1.0,) * len(plan.experts)
    return unrelated_experts([e for e, share in zip(plan.experts, counted, strict=True) if share], plan.tensors.recipe)


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
            _begin(keeper, plan, target)
            setting = make_setting(plan, keeper.as_before(plan.spec), target, experts, run)
            keeper.precision = setting.compute.precision
            with keeper.steps():
                setting.follow(keeper.keep)
            _help_to_refresh(plan, target, experts, run)
        return
    run.ranks.check_alike(_identity(plan, target))
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


def described(plan: MixPlan) -> dict[str, Any]:
    """Return the part of the blend's metadata that is known before the work begins."""
    if plan.like:
        return dict(plan.like.blend.glue)
    given = {} if plan.coefficients.alpha is None else {"alpha": list(plan.coefficients.alpha)}
    return {"glue": __version__, "kind": "prior", "method": plan.method, **given, "seed": plan.seed}


def described_in_full(plan: MixPlan, hashes: Sequence[StreamedHash], run: Run) -> dict[str, Any]:
    """Return what distinguishes the plan's blend from others; reads the data, and takes the experts' sha256."""
    if plan.like:
        return described(plan)
    digests: list[str | None] = [streamed.finish() for streamed in hashes] or _without_hashes(plan)
    sections = plan.spec.model_dump(include={"mix", "loss", "objective"}) if plan.spec else {}
    settings = sections if plan.coefficients.is_search else {}
    return {
        **described(plan),
        "experts": _experts_of(plan, digests),
        "settings": settings,
        "recipe": plan.record,
        **_inputs(plan, target_of(plan, run)),
    }


def _without_hashes(plan: MixPlan) -> list[str | None]:
    """Return, in place of each expert's sha256, whether its files are younger than the output, as make would."""
    written_ns = max((path.stat().st_mtime_ns for path in plan.destination.paths if path.exists()), default=0)
    return [
        "changed since" if any(stamp.changed_ns > written_ns for stamp in expert.stamps) else None
        for expert in plan.experts
    ]


def _inputs(plan: MixPlan, target: "Target | None") -> dict[str, Any]:
    """Return what the blend is made from beside the experts, for its metadata; empty if it takes no data."""
    takes_data = plan.coefficients.needs_data or plan.tensors.statistics != "averaged"
    if plan.spec is None or target is None or not takes_data:
        return {}
    from glue_cli.workflows.inputs import inputs_of

    read = inputs_of(plan.spec, train=target["train"], val=target["val"])
    return {"inputs": {"model": plan.spec.model.model_dump(), "batchnorm": plan.tensors.statistics, **read}}


def _experts_of(plan: MixPlan, digests: Sequence[str | None]) -> list[dict[str, Any]]:
    sizes = plan.coefficients.sizes or [expert.glue.get("examples") for expert in plan.experts]
    names = short_names([expert.path for expert in plan.experts])
    return [
        {
            "name": name,
            "sha256": digest,
            "examples": size,
            **({"weights": expert.weights} if expert.weights else {}),
        }
        for expert, name, digest, size in zip(plan.experts, names, digests, sizes, strict=True)
    ]


def _mix(plan: MixPlan, run: Run, hashes: Sequence[StreamedHash] | None, keeper: "Keeper | None") -> MixResult:
    began = time.perf_counter()
    make_repeatable(find_device(run.device))  # fails on a missing GPU before the data are read
    for note in plan.like.notes if plan.like else ():
        run.progress(Noted(note))
    for note in (*plan.tensors.notes, *repeated_files(plan.experts), *_unrelated(plan)):
        run.progress(Noted(note, warning=True))
    experts = gather_experts(plan)
    target = target_of(plan, run)
    if keeper and target:
        _begin(keeper, plan, target)
    elif target and run.ranks.size > 1:
        run.ranks.check_alike(_identity(plan, target))
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
    made: dict[str, Tensor] = chosen.made or {}
    refreshed = chosen.refreshed_on
    afterwards = chosen.afterwards
    is_refreshed = "refreshed" in (plan.tensors.statistics, chosen.statistics)
    run.ranks.tell(chosen.alpha if is_refreshed and chosen.made is None else None)
    if is_refreshed and chosen.made is None:
        from glue_cli.workflows.mix.refresh import refresh  # this imports the models and data too

        assert plan.spec is not None and target is not None
        before, clock = replace(chosen.cost), time.perf_counter()
        made, chosen, refreshed = refresh(plan, plan.spec, target, experts, chosen, run)
        after = passes_since(before, chosen.cost, clock)
        afterwards = afterwards.plus(after) if afterwards else after
    settings = {**chosen.settings, "batchnorm": "refresh"} if is_refreshed else chosen.settings
    alpha, groups = by_expert(chosen.alpha), by_group(plan, chosen.alpha)
    recorded_recipe = {**plan.record, **_base(plan), **({"refreshed": refreshed} if refreshed else {})}
    sizes = plan.coefficients.sizes or [expert.glue.get("examples") for expert in plan.experts]

    def describe(digests: Sequence[str | None]) -> dict[str, Any]:
        if plan.like:
            return plan.like.blend.glue
        return {
            **described(plan),
            **_shared_by_all(plan),
            "alpha": alpha,
            **({"groups": groups} if groups else {}),
            "experts": _experts_of(plan, digests),
            "settings": settings,
            **_measured(plan, chosen),
            "recipe": recorded_recipe,
            **_inputs(plan, target),
        }

    hashes = hashes_of_plan(plan, run) if hashes is None else hashes
    gc.collect()  # the search's experts and blends, which models and their hooks refer to in circles
    digests = experts.write(chosen.alpha, made, describe, hashes, run)
    remember(hashes, run)
    for note in repeated_weights(plan.experts, digests):
        run.progress(Noted(note, warning=True))
    wall_s = time.perf_counter() - began
    return MixResult(
        method=plan.method,
        alpha=alpha,
        groups=groups,
        experts=[
            BlendedExpert(path=expert.name, sha256=digest, examples=size, weights=expert.weights)
            for expert, digest, size in zip(plan.experts, digests, sizes, strict=True)
        ],
        output=str(plan.destination.result),
        loss=chosen.loss,
        cost=MixCost(**asdict(chosen.cost), wall_s=wall_s, peak_bytes=_peak_bytes(run)),
        seed=plan.seed,
        settings=settings,
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
        afterwards=afterwards,
    )


def _begin(keeper: "Keeper", plan: MixPlan, target: "Target") -> None:
    """Tell the keeper what the search depends on."""
    keeper.begin(**_identity(plan, target))


def _identity(plan: MixPlan, target: "Target") -> dict[str, Any]:
    """Return what a blend depends on, by names."""
    from glue_cli.checkpoints.run_state import fingerprint_of_checkpoint
    from glue_cli.data.identity import identity_of
    from glue_cli.workflows.inputs import code_of

    assert plan.spec is not None
    sections = plan.spec.model_dump(include={"model", "loss", "objective", "mix", "precision"})
    return {
        **code_of(plan.spec),
        "command": "mix",
        **described(plan),
        **sections,
        "recipe": plan.record,
        "statistics": plan.tensors.statistics,
        "experts": {str(k): fingerprint_of_checkpoint(expert) for k, expert in enumerate(plan.experts)},
        **{split: identity_of(target[split]) for split in ("train", "val")},
    }


def target_of(plan: MixPlan, run: Run) -> "Target | None":
    """Return the target's data, which are read only when they are used; None if nothing needs them."""
    if plan.spec is None:
        return None
    from glue_cli.data.classes import Classes
    from glue_cli.data.target import Target

    hint = "give the blend a head for them: --head PATTERN --head-policy align --classes NAME,..."
    return Target(plan.spec, run, Classes(plan.tensors.classes, "the blend", hint))


def _base(plan: MixPlan) -> dict[str, str]:
    """Return the sha256 of the model that adapters are merged into; empty if there is none or no hash is wanted.

    Raises:
        CheckpointError: a blend is made again, and its base was another.
    """
    if plan.adapters is None or not plan.adapters.merges or not plan.writing.hashing:
        return {}
    assert plan.adapters.adapted is not None
    wanted = plan.like.said.recipe.base if plan.like else None
    return {"base": StreamedHash(plan.adapters.adapted.base, wanted).finish()}


def _measured(plan: MixPlan, chosen: Choice) -> dict[str, Any]:
    """Return the figures that a search measured of the blend, and on which data; empty if nothing was measured."""
    measured = chosen.objective or chosen.loss
    if plan.spec is None or measured is None or measured.val is None:
        return {}
    figures = {"objective": plan.spec.objective, "val": measured.val, "val_uniform": measured.val_uniform}
    return {"measured": {**figures, "data": plan.spec.data.model_dump(exclude={"root"})}}


def _shared_by_all(plan: MixPlan) -> dict[str, Any]:
    """Return the metadata that all experts share and that hold for the blend too: the model and the classes."""
    shared: dict[str, Any] = {}
    models = [expert.glue.get("model") for expert in plan.experts]
    if models[0] is not None and all(model == models[0] for model in models):
        shared["model"] = models[0]
    if plan.tensors.head_classes:
        shared.pop("model", None)  # its number of classes may differ
    if plan.tensors.classes:
        shared["class_names"] = list(plan.tensors.classes)
    return shared


def _peak_bytes(run: Run) -> int:
    """Return the run's peak memory: on the GPU if it used one, else the process's resident set."""
    device = find_device(run.device)
    if device.type == "cuda" and (on_gpu := torch.cuda.max_memory_allocated(device)):
        return on_gpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
