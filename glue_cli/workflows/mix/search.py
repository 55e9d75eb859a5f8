"""Search for the alpha with the least loss on the target's data, by the method that the plan names."""

import math
import time
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from glue_cli.data.target import Target
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started
from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS, makes_gauss_newton_steps
from glue_cli.methods.leave_one_out import leave_one_out
from glue_cli.methods.result import Learned, StepRecord
from glue_cli.plans.mix import MixPlan
from glue_cli.results.history import Write
from glue_cli.results.mix import LeftOut, Losses, Objective, Stage, StagedSearch
from glue_cli.running.device import Compute
from glue_cli.search.criterion import criterion_of
from glue_cli.search.protocol import BatchNormMode
from glue_cli.spec.goal import Goal
from glue_cli.spec.schema import PRESETS, MixSpec, Spec
from glue_cli.workflows.compute import blending_compute
from glue_cli.workflows.fits import check_blends_fit_data
from glue_cli.workflows.keeper import Keeper
from glue_cli.workflows.mix.choice import Choice, by_expert, by_group, passes_since, skipped_in
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.faithful import check_is_faithful
from glue_cli.workflows.mix.labels import sampled
from glue_cli.workflows.mix.pace import Pace
from glue_cli.workflows.mix.refreshed_on import identity
from glue_cli.workflows.mix.setting import Setting

# Settings that an optimizer's steps depend on, and Gauss-Newton steps do not.
_OF_OPTIMIZERS = ("lr", "betas", "momentum", "n_directions", "directions", "zero_sum", "mu")


def make_setting(plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run) -> Setting:
    """Return what a search works on, and set torch's threads.

    Raises:
        CheckpointError, SpecError, DataError: the experts, the model and the data do not fit each other.
    """
    n_blends = _count_blends(plan.method, spec.mix)
    blends = experts.blends(
        spec,
        run,
        seed=plan.seed,
        n_blends=n_blends,
        batchnorm=_batchnorm(spec.mix),
        needs_gradient=plan.method == "fullgrad",
    )
    check_blends_fit_data(blends, target["train"], spec.loss, spec.data.where, run.progress)
    check_blends_fit_data(blends, target["val"], spec.loss, spec.data.where)
    if not plan.adapters and _batchnorm(spec.mix).statistics == "running":
        check_is_faithful(experts, spec, blends, target["train"])
    compute, reach = blending_compute(spec, blends, target["train"], run)
    criterion = criterion_of(spec.objective, spec.loss, spec.path("."))
    blends = blends.with_precision(compute.precision)
    return Setting(plan, spec.mix, target, experts, blends, reach, criterion, run)


def search(
    plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run, write: Write, keeper: Keeper
) -> Choice:
    """Let the method search for the alpha [G, K] with the least loss on the target's data."""
    settings, n_experts = spec.mix, len(plan.experts)
    setting = make_setting(plan, spec, target, experts, run)
    goal, compute = setting.goal, setting.compute
    objective = setting.objective
    budget, began = settings.parsed_budget, time.monotonic()
    total, unit = (math.ceil(budget.limit), budget.unit) if budget else (settings.steps, "steps")
    if plan.method == "greedy":
        total, unit = n_experts * len(objective.kinds), "steps"
    _warn_of_idle_settings(plan.method, settings, goal, run)
    run.progress(Started(f"mix by {plan.method}", total, unit))
    shown: dict[str, float] = {}
    pace = Pace(setting.blends, run.progress)

    def observe(record: StepRecord) -> None:
        for name, loss in (("", record.loss), ("val ", record.val_loss)):
            if loss is not None:
                shown[name + goal.label] = goal.figure(loss)
        alpha = by_expert(record.alpha)
        line = {"step": record.step, "loss": record.loss, "alpha": alpha, "val_loss": record.val_loss}
        if record.n_skipped:
            line["skipped"] = shown["skipped"] = record.n_skipped
        write({**line, **_groups_of(plan, record.alpha), **asdict(objective.cost)})
        spent = {
            "steps": record.step,
            "forwards": objective.cost.in_forwards,
            "examples": objective.cost.examples,
            "seconds": int(time.monotonic() - began),
        }
        run.progress(Advanced(min(total, spent[unit]), dict(shown), tuple(alpha)))
        pace.step(min(1.0, spent[unit] / total))

    keeper.precision = compute.precision
    method = METHODS[plan.method].load()
    with keeper.steps():
        learned: Learned = method(
            objective,
            setting.settings,
            seed=plan.seed,
            observe=observe,
            save_state=keeper.checkpoint if run.ranks.size == 1 else keeper.checkpoint_and_tell,
            state=keeper.state,
        )
    run.progress(Finished())
    before, clock = replace(objective.cost), time.perf_counter()
    as_written = setting.as_written(learned)
    afterwards = passes_since(before, objective.cost, clock)
    objective_found, losses = None, Losses(val=as_written.val, val_uniform=as_written.val_uniform)
    if not goal.is_smooth:
        objective_found = Objective(
            name=goal.name, val=_figure(goal, losses.val), val_uniform=_figure(goal, losses.val_uniform)
        )
    searched = {"forwards": before.in_forwards, "stopped": learned.stopped}
    stages = [Stage(stage="write", forwards=afterwards.forwards)] if afterwards.forwards else []
    left_out = None
    if plan.search.explains:
        before, clock = replace(objective.cost), time.perf_counter()
        left_out = [LeftOut(**without) for without in leave_one_out(objective, learned.alpha, learned.statistics)]
        explained = passes_since(before, objective.cost, clock)
        afterwards = afterwards.plus(explained)
        stages.append(Stage(stage="explain", forwards=explained.forwards))
    setting.dismiss()
    found = learned.search
    if isinstance(found, StagedSearch):
        searched |= {"start": found.start, "returned": found.returned}
        found = replace(found, stages=[*found.stages, *stages])
    return Choice(
        learned.alpha,
        settings={
            "mix": settings.model_dump(),
            "loss": spec.loss,
            "objective": goal.name,
            "search": searched,
            **compute.recorded,
        },
        cost=objective.cost,
        afterwards=afterwards if afterwards.forwards else None,
        loss=losses if goal.is_smooth else None,
        steps=learned.n_steps,
        stopped=learned.stopped,
        **compute.recorded,
        objective=objective_found,
        search=found,
        skipped=skipped_in(learned.n_skipped, learned.lost),
        left_out=left_out,
        statistics=learned.statistics if len(objective.kinds) > 1 else None,
        made=as_written.made,
        refreshed_on=_refreshed_on(spec, target, setting, compute) if as_written.made else {},
    )


def _batchnorm(settings: MixSpec) -> BatchNormMode:
    return BatchNormMode("running" if settings.search == "staged" else settings.bn_statistics, settings.bn_gradient)


def _count_blends(method: str, settings: MixSpec) -> int:
    """Return how many blends a search has in memory at once; with spsa, so many for each pair of probes."""
    return METHODS[method].n_blends * (settings.n_directions if method == "spsa" else 1)


def _refreshed_on(spec: Spec, target: Target, setting: Setting, compute: Compute) -> dict[str, Any]:
    """Return which model and data a blend's statistics were taken with, for `results.blend.Refreshed`."""
    sample = setting.sample
    return {**identity(spec, sampled(target, sample)), "sample": sample, **compute.recorded}


def _figure(goal: Goal, mean: float | None) -> float | None:
    return None if mean is None else goal.figure(mean)


def _groups_of(plan: MixPlan, alpha: Tensor) -> dict[str, Any]:
    groups = by_group(plan, alpha)
    return {"groups": groups} if groups else {}


def _warn_of_idle_settings(method: str, settings: MixSpec, goal: Goal, run: Run) -> None:
    """Warn of settings that were changed from their preset but have no effect on this search."""
    preset = PRESETS[settings.preset]
    if makes_gauss_newton_steps(method, settings, goal):
        idle = [f"mix.{key}" for key in _OF_OPTIMIZERS if getattr(settings, key) != preset[key]]
        if idle:
            text = f"{', '.join(idle)}: of no effect on Gauss-Newton's steps; with mix.optimizer: adam it has"
            run.progress(Noted(text, warning=True))
