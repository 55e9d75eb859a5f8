"""Choose alpha by each expert's accuracy on the target's validation data."""

import math

import torch
from torch import Tensor

from glue_cli.data.loader import Batches
from glue_cli.data.target import Target
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.errors import NumericalError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started
from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS
from glue_cli.methods.result import if_finite
from glue_cli.plans.mix import MixPlan
from glue_cli.results.history import Write
from glue_cli.results.mix import Losses, name_of_expert, name_with
from glue_cli.running.batchnorm import has_batchnorm
from glue_cli.running.device import Compute
from glue_cli.running.evaluation import Evaluation
from glue_cli.running.metrics import usual_metrics
from glue_cli.search.account import Cost
from glue_cli.search.held_out import charged
from glue_cli.spec.goal import goal_named
from glue_cli.spec.schema import Spec
from glue_cli.workflows.compute import fastest_for_blends
from glue_cli.workflows.evaluation import MakeOutputs, add_outputs
from glue_cli.workflows.fits import check_blends_fit_data
from glue_cli.workflows.mix.choice import Choice, skipped_in
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.faithful import check_is_faithful
from glue_cli.workflows.mix.labels import OF_TRAIN, share_out
from glue_cli.workflows.mix.refreshed_on import identity
from glue_cli.workflows.mix.setting import as_written


def choose_by_accuracy(plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run, write: Write) -> Choice:
    """Evaluate every expert on the target's validation data, and let the method turn the accuracies into alpha.

    If either kind of BatchNorm statistics may be used, this is done with both, and the blend with the lower loss on
    the validation data is chosen, with the statistics that it had there. An expert whose loss is not finite gets no
    weight.

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
            figures = judge.evaluate(one_hot[None], kind)
            is_sound = math.isfinite(figures["loss"])
            if not is_sound:
                lost.append(name_with(name_of_expert(len(accuracies)), kind))
            accuracies.append(figures["accuracy"] if is_sound else 0.0)
            line = {"expert": len(accuracies) - 1, **{f"val_{name}": value for name, value in figures.items()}}
            write(line | ({"statistics": kind} if len(kinds) > 1 else {}))
            run.progress(Advanced(number * len(plan.experts) + len(accuracies)))
        alpha = torch.tensor([METHODS[plan.method].load()(accuracies)], dtype=torch.float64)
        blend = judge.evaluate(alpha, kind) if len(kinds) > 1 else None
        candidates.append((alpha, accuracies, kind, blend, judge.statistics() if kind == "refreshed" else None))
    run.progress(Finished())
    if len(lost) == len(kinds) * len(plan.experts):
        hint = "look for experts whose weights are far too large, and leave them out"
        raise NumericalError("no expert has a finite loss on the validation data", hint=hint)
    alpha, accuracies, kind, blend, made = min(candidates, key=lambda one: _loss_of(one[3]))
    sampled_on = {**identity(spec, target["train"]), "sample": OF_TRAIN, **judge.compute.recorded}
    return Choice(
        alpha,
        settings=judge.compute.recorded,
        cost=judge.cost,
        loss=Losses(val=if_finite(blend["loss"])) if blend else None,
        val_accuracies=accuracies,
        **judge.compute.recorded,
        statistics=kind if blend else None,
        made=made,
        refreshed_on=sampled_on if made else {},
        skipped=skipped_in(0, lost),
    )


def _loss_of(figures: dict[str, float] | None) -> float:
    """Return a loss to compare blends by; infinite if it is not finite, and 0 if there is nothing to compare."""
    loss = figures["loss"] if figures else 0.0
    return loss if math.isfinite(loss) else math.inf


class _Judge:
    """Evaluates blends on the validation data, and counts the cost.

    Blends run as in a search, wherever its experts are kept; if BatchNorm's statistics may be refreshed, they run as
    they would be written, in float32, since only those can be.
    """

    def __init__(self, plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run) -> None:
        self._loss, self._ranks = spec.loss, run.ranks
        blends = experts.blends(spec, run, seed=plan.seed, n_blends=1)
        check_blends_fit_data(blends, target["val"], spec.loss, spec.data.where, run.progress)
        if not plan.adapters:
            check_is_faithful(experts, spec, blends, target["val"])
        self.may_refresh = plan.tensors.statistics == "auto" and has_batchnorm(blends.model)
        if self.may_refresh:
            if spec.precision == "bf16":
                text = "precision fp32: BatchNorm's statistics may be refreshed, which is done in float32"
                run.progress(Noted(text, warning=True))
            spec = spec.model_copy(update={"precision": "fp32"})
        self.compute: Compute = fastest_for_blends(spec, blends, target["val"].first_in_order, run)
        self._blends = blends.with_precision(self.compute.precision)
        self._written = as_written(plan, experts, self._blends) if self.may_refresh else None
        self._refreshing = share_out(
            target, goal_named("loss"), spec.mix, self.compute, seed=plan.seed, may_fold=False
        ).refreshing
        self._val: Batches = target["val"].on(self.compute)
        self.cost = Cost()

    def evaluate(self, alpha: Tensor, statistics: Statistics) -> dict[str, float]:
        """Return the figures of the blend for alpha [G, K] with the given kind of statistics."""
        evaluation = Evaluation(self._loss, usual_metrics(self._loss))
        add_outputs(evaluation, self._runs(alpha, statistics), self._val, self._ranks)
        self.cost.forwards += self._val.n_in_order
        self.cost.validation_forwards += self._val.n_in_order
        self.cost.examples += len(self._val)
        return evaluation.figures()

    def statistics(self) -> dict[str, Tensor]:
        """Return BatchNorm's statistics of the blend that was evaluated last, as they were refreshed for it."""
        assert self._written
        return self._written.statistics()

    def _runs(self, alpha: Tensor, statistics: Statistics) -> MakeOutputs:
        if self._written is None:
            return lambda batches: self._blends.outputs(alpha[None], batches, 0)
        self._written.load(alpha)
        if statistics == "refreshed":
            self._written.refresh(charged(self._refreshing.again(), self.cost.charge), self._ranks)
        return self._written.outputs
