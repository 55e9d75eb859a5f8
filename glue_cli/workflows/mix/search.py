"""The methods that run the model: by each expert's accuracy, and by searching the target loss."""

import math
import time
from dataclasses import asdict, replace
from typing import Any

import torch
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
from glue_cli.search.blended import BatchNormMode, ResidentBlends
from glue_cli.search.criterion import criterion_of
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.spec.goal import Goal
from glue_cli.spec.schema import PRESETS, MixSpec, Spec
from glue_cli.workflows.compute import mixing_compute
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.mix.choice import Choice, by_expert, by_group, passes_since, search_of
from glue_cli.workflows.mix.experts import Experts

# What the steps of an optimizer depend on, and those of Gauss-Newton do not.
_OF_OPTIMIZERS = ("lr", "betas", "momentum", "n_directions", "directions", "zero_sum", "mu")


def search(plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run, write: Write) -> Choice:
    """Let the method search for the alpha [G, K] with the least loss on the target's data."""
    settings = spec.mix
    criterion = criterion_of(spec.objective, spec.loss, spec.path("."))
    goal = criterion.goal
    n_experts = len(plan.experts)
    first = torch.eye(n_experts, dtype=torch.float64)[:1].expand(len(plan.tensors.recipe.groups), n_experts)
    model = experts.model(spec, first)
    for split in ("train", "val"):
        check_fits_data(model, target[split], spec.loss, spec.data.where)
    compute = mixing_compute(spec, model, target["train"], run)
    train, val = target["train"].on(compute), target["val"].on(compute)
    blends = ResidentBlends(
        compute.to_device(model),
        experts.bank(compute, n_blends=_count_blends(plan.method, settings), run=run),
        compute,
        seed=plan.seed,
        batchnorm=BatchNormMode(settings.bn_statistics, settings.bn_gradient),
        make_tensors=experts.make_tensors,
    )
    size = validation_size(goal, settings, len(val))
    minibatches = Minibatches(
        at_step=lambda step: train.at_step(step, settings.batch_size, plan.seed),
        validation=lambda: val.in_random_order(size, plan.seed),
        n_validation=val.n_in_random_order(size),
    )
    objective = BlendObjective(blends, criterion, minibatches, seed=plan.seed)
    budget, began = settings.parsed_budget, time.monotonic()
    total, unit = (math.ceil(budget.limit), budget.unit) if budget else (settings.steps, "steps")
    if plan.method == "greedy":
        total, unit = n_experts, "steps"
    _warn_of_idle_settings(plan.method, settings, goal, run)
    run.progress(Started(f"mix by {plan.method}", total, unit))
    shown: dict[str, float] = {}

    def observe(record: StepRecord) -> None:
        for name, loss in (("", record.loss), ("val ", record.val_loss)):
            if loss is not None:
                shown[name + goal.label] = goal.figure(loss)
        alpha = by_expert(record.alpha)
        line = {"step": record.step, "loss": record.loss, "alpha": alpha, "val_loss": record.val_loss}
        write({**line, **_groups_of(plan, record.alpha), **asdict(objective.cost)})
        spent = {
            "steps": record.step,
            "forwards": objective.cost.equivalents,
            "examples": objective.cost.examples,
            "seconds": int(time.monotonic() - began),
        }
        run.progress(Advanced(min(total, spent[unit]), dict(shown), tuple(alpha)))

    learned: Learned = METHODS[plan.method].load()(objective, settings, seed=plan.seed, observe=observe)
    run.progress(Finished())
    objective_found, losses = None, Losses(val=learned.val_loss, val_uniform=learned.val_loss_start)
    if not goal.is_smooth:
        objective_found = Objective(
            name=goal.name, val=_figure(goal, losses.val), val_uniform=_figure(goal, losses.val_uniform)
        )
    found = search_of(learned.account)
    searched = {"forwards": objective.cost.equivalents, "stopped": learned.stopped}
    searched |= {key: learned.account[key] for key in ("start", "returned") if key in learned.account}
    left_out, explained = None, None
    if plan.search.explains:
        before, clock = replace(objective.cost), time.perf_counter()
        left_out = [LeftOut(**without) for without in leave_one_out(objective, learned.alpha)]
        explained = passes_since(before, objective.cost, clock)
        if isinstance(found, StagedSearch):
            found.stages.append(Stage(stage="explain", forwards=explained.forwards))
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
        explained=explained,
        loss=losses if goal.is_smooth else None,
        steps=learned.n_steps,
        stopped=learned.stopped,
        **compute.recorded,
        objective=objective_found,
        search=found,
        left_out=left_out,
    )


def _figure(goal: Goal, mean: float | None) -> float | None:
    return None if mean is None else goal.figure(mean)


def _groups_of(plan: MixPlan, alpha: Tensor) -> dict[str, Any]:
    groups = by_group(plan, alpha)
    return {"groups": groups} if groups else {}


def validation_size(goal: Goal, settings: MixSpec, n_examples: int) -> int:
    """Return how many examples a validation batch has; few enough for four, where a batch has one term in all."""
    return settings.batch_size if goal.has_example_terms else min(settings.batch_size, -(-n_examples // 4))


def _warn_of_idle_settings(method: str, settings: MixSpec, goal: Goal, run: Run) -> None:
    """Say which settings that differ from their preset have no part in this search."""
    preset = PRESETS[settings.preset]
    if makes_gauss_newton_steps(method, settings, goal):
        idle = [f"mix.{key}" for key in _OF_OPTIMIZERS if getattr(settings, key) != preset[key]]
        if idle:
            text = f"{', '.join(idle)}: of no effect on Gauss-Newton's steps; with mix.optimizer: adam it has"
            run.progress(Noted(text, warning=True))


def _count_blends(method: str, settings: MixSpec) -> int:
    """Return how many float32 models a search holds: its blends, of spsa for each pair of probes, and one more."""
    return 1 + METHODS[method].n_blends * (settings.n_directions if method == "spsa" else 1)
