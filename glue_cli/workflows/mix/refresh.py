"""BatchNorm's statistics of a blend, taken anew on the target's data, and what the blend is worth with them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glue_cli.data.target import Target
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS
from glue_cli.plans.mix import MixPlan
from glue_cli.running.batchnorm import refresh_statistics, statistics_of
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.means import ExampleSums
from glue_cli.search.account import Cost
from glue_cli.search.criterion import criterion_of
from glue_cli.spec.schema import AugmentSpec, Spec
from glue_cli.workflows.compute import mixing_compute
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.mix.choice import Choice
from glue_cli.workflows.mix.experts import Experts
from glue_cli.workflows.mix.search import validation_size

Forward = Callable[[nn.Module, Batch], Tensor]


def refresh(
    plan: MixPlan, spec: Spec, target: Target, experts: Experts, chosen: Choice, run: Run
) -> tuple[dict[str, Tensor], Choice]:
    """Return BatchNorm's statistics of the chosen blend on the target's training data, by forward passes alone.

    A search chose its alpha by the statistics as they were before. The figure that it found is therefore measured
    again, so that what is reported is that of the blend as it is written.

    Returns:
        the statistics by their names, and the choice with that figure; the passes are charged to its account.
    """
    model = experts.model(spec, chosen.alpha)
    if not statistics_of(model):
        run.progress(Noted("--batchnorm refresh: the model has no BatchNorm, nothing is refreshed", warning=True))
        return {}, chosen
    train = target["train"]
    check_fits_data(model, train, spec.loss, spec.data.where)
    compute = mixing_compute(spec, model, train, run)
    forward = _charging(chosen.cost, compute)
    model = compute.place(model).eval()
    batches = train.on(compute).epoch(spec.mix.batch_size, plan.seed, 0, AugmentSpec())
    refresh_statistics(model, batches, forward)
    if plan.method in METHODS and METHODS[plan.method].is_search:
        before = chosen.cost.forwards
        figure = _measure(model, spec, target, compute, plan.seed, forward)
        chosen.cost.validation_forwards += chosen.cost.forwards - before
        chosen = chosen.refreshed(figure)
    return {name: tensor.cpu() for name, tensor in statistics_of(model).items()}, chosen


def _charging(cost: Cost, compute: Compute) -> Forward:
    """Return a forward pass that is charged to an account."""

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        cost.forwards += 1
        cost.examples += len(batch[1])
        with compute.autocast():
            return outputs_of(model, batch[0])

    return forward


@torch.no_grad()
def _measure(model: nn.Module, spec: Spec, target: Target, compute: Compute, seed: int, forward: Forward) -> float:
    """Return the figure that the spec's objective is about, on the same validation batches as a search has."""
    criterion = criterion_of(spec.objective, spec.loss, spec.path("."))
    val = target["val"].on(compute)
    batches = val.in_random_order(validation_size(criterion.goal, spec.mix, len(val)), seed)
    sums = (ExampleSums.of(criterion.terms(forward(model, batch), batch[1]), batch[1]) for batch in batches)
    return criterion.goal.figure(ExampleSums.join(sums).shares.mean().item())
