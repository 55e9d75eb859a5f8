"""Choose alpha by each expert's accuracy on the target's validation data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glue_cli.data.loader import Batches
from glue_cli.data.target import Target
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.errors import NumericalError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Started
from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS
from glue_cli.plans.mix import MixPlan
from glue_cli.results.history import Write
from glue_cli.results.mix import name_of_expert, name_with
from glue_cli.running.batchnorm import has_batchnorm
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.refreshing import refresh_from_few
from glue_cli.search.account import Cost
from glue_cli.search.held_out import charged
from glue_cli.spec.goal import goal_named
from glue_cli.spec.schema import Spec
from glue_cli.workflows.compute import evaluation_compute
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.mix.choice import Choice, skipped_in
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.labels import share_out


def choose_by_accuracy(plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run, write: Write) -> Choice:
    """Evaluate every expert on the target's validation data, and let the method turn the accuracies into alpha.

    If either kind of BatchNorm statistics may be used, this is done with both, and the blend with the lower loss on
    the validation data is chosen. An expert whose loss is not finite gets no weight.

    Raises:
        NumericalError: no expert has a finite loss.
    """
    val = target["val"]
    if val.dataset.labels is None:
        raise SpecError(
            f"--method {plan.method} needs accuracies, which these data do not have",
            hint="use --method spsa",
        )
    judge = _Judge(plan, spec, target, experts, run)
    kinds: list[Statistics] = ["averaged", "refreshed"] if judge.may_refresh else ["averaged"]
    run.progress(Started("evaluate experts", len(kinds) * len(plan.experts), "experts"))
    candidates, lost = [], []
    for number, kind in enumerate(kinds):
        accuracies: list[float] = []
        for one_hot in torch.eye(len(plan.experts), dtype=torch.float64):
            figures = judge.evaluate(one_hot[None], kind).figures
            is_sound = math.isfinite(figures["loss"])
            if not is_sound:
                lost.append(name_with(name_of_expert(len(accuracies)), kind))
            accuracies.append(figures["accuracy"] if is_sound else 0.0)
            line = {"expert": len(accuracies) - 1, **{f"val_{name}": value for name, value in figures.items()}}
            write(line | ({"statistics": kind} if len(kinds) > 1 else {}))
            run.progress(Advanced(number * len(plan.experts) + len(accuracies)))
        alpha = torch.tensor([METHODS[plan.method].load()(accuracies)], dtype=torch.float64)
        candidates.append((alpha, accuracies, kind, judge.evaluate(alpha, kind) if len(kinds) > 1 else None))
    run.progress(Finished())
    if len(lost) == len(kinds) * len(plan.experts):
        hint = "look for experts whose weights are far too large, and leave them out"
        raise NumericalError("no expert has a finite loss on the validation data", hint=hint)
    alpha, accuracies, kind, blend = min(candidates, key=lambda one: _loss_of(one[3]))
    return Choice(
        alpha,
        settings=judge.compute.recorded,
        cost=judge.cost,
        val_accuracies=accuracies,
        **judge.compute.recorded,
        statistics=kind if blend else None,
        skipped=skipped_in(0, lost),
    )


@dataclass(frozen=True)
class _Evaluated:
    model: nn.Module
    figures: dict[str, float]


def _loss_of(blend: _Evaluated | None) -> float:
    """Return a loss to compare blends by; infinite if it is not finite, and 0 if there is nothing to compare."""
    loss = blend.figures["loss"] if blend else 0.0
    return loss if math.isfinite(loss) else math.inf


class _Judge:
    """Evaluates blends on the validation data, and counts the cost."""

    def __init__(self, plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run) -> None:
        self._plan, self._spec, self._target, self._experts = plan, spec, target, experts
        self._ranks = run.ranks
        model = self._model(torch.eye(len(plan.experts), dtype=torch.float64)[:1])
        check_fits_data(model, target["val"], spec.loss, spec.data.where)
        self.compute: Compute = evaluation_compute(spec, model, target["val"], run)
        self.cost = Cost()
        self._val: Batches = target["val"].on(self.compute)
        self.may_refresh = plan.tensors.statistics == "auto" and has_batchnorm(model)

    def evaluate(self, alpha: Tensor, statistics: Statistics) -> _Evaluated:
        """Return the blend for alpha [1, K] with the given kind of statistics, and its figures."""
        model = self.compute.to_device(self._model(alpha)).eval()
        if statistics == "refreshed":
            goal, settings = goal_named("loss"), self._spec.mix
            labels = share_out(self._target, goal, settings, self.compute, seed=self._plan.seed, may_fold=False)
            refresh_from_few(model, charged(labels.refreshing.again(), self.cost.charge), self._forward, self._ranks)
        figures = evaluate_model(model, self._val, loss=self._spec.loss, compute=self.compute, ranks=self._ranks)
        self.cost.forwards += self._val.n_in_order
        self.cost.validation_forwards += self._val.n_in_order
        self.cost.examples += len(self._val)
        return _Evaluated(model, figures)

    def _model(self, alpha: Tensor) -> nn.Module:
        return self._experts.model(self._spec, alpha)

    def _forward(self, model: nn.Module, batch: Batch) -> None:
        with self.compute.autocast():
            outputs_of(model, batch[0])
