"""Take a blend's BatchNorm statistics anew on the target's data, and measure the blend with them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from glue_cli.data.target import Target
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS
from glue_cli.plans.mix import MixPlan
from glue_cli.results.blend import Sample
from glue_cli.running.batchnorm import statistics_of
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.means import ExampleSums
from glue_cli.running.refreshing import refresh_statistics
from glue_cli.search.account import Cost
from glue_cli.search.criterion import criterion_of
from glue_cli.search.held_out import Judge, charged
from glue_cli.search.sharing import gathered_sums
from glue_cli.spec.schema import AugmentSpec, Spec
from glue_cli.workflows.compute import mixing_compute
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.mix.choice import Choice
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.labels import refreshing_batches, sampled, validation_size
from glue_cli.workflows.mix.refreshed_on import check_same, identity
from glue_cli.workflows.mix.setting import as_written

Forward = Callable[[nn.Module, Batch], Tensor]


def refresh(plan: MixPlan, spec: Spec, target: Target, experts: Experts, chosen: Choice, run: Run) -> Choice:
    """Take the chosen blend's BatchNorm statistics on the target's training data, by forward passes alone.

    All processes of a job share the passes, and have to call this with the same alpha. A search chose alpha with the
    earlier statistics; its figure is measured again, so that the reported one is that of the blend as it is written.

    Returns:
        the choice with the statistics made, the new figure, the cost of these passes, and the model and data that the
        statistics were taken with.
    Raises:
        SpecError, DataError: a blend is made again, and was refreshed with another model or other data.
    """
    model = experts.model(spec, chosen.alpha)
    if not statistics_of(model):
        run.progress(Noted("--batchnorm refresh: the model has no BatchNorm, nothing is refreshed", warning=True))
        return chosen
    train = target["train"]
    check_fits_data(model, train, spec.loss, spec.data.where)
    compute = mixing_compute(spec, model, train, run)
    record = {**identity(spec, train), **compute.recorded}
    if plan.like and (recorded := plan.like.said.recipe.refreshed):
        check_same({**record, **identity(spec, sampled(target, recorded.sample))}, recorded.model_dump())
        torch.set_num_threads(recorded.threads)  # the number of threads decides the order of sums
        if recorded.sample != "train":
            made = _repeat_search(plan, spec, target, experts, chosen, compute, recorded.sample, run)
            return replace(chosen, made=made)
    forward = _forward_with(compute)
    model = compute.to_device(model).eval()
    batches = train.on(compute).epoch(spec.mix.batch_size, plan.seed, 0, AugmentSpec())
    refresh_statistics(model, charged(batches, chosen.cost.charge), forward, run.ranks)
    if plan.method in METHODS and METHODS[plan.method].is_search:
        before = chosen.cost.forwards
        figure = _measure(model, spec, target, compute, plan.seed, forward, chosen.cost, run.ranks)
        chosen.cost.validation_forwards += chosen.cost.forwards - before
        chosen = chosen.refreshed(figure)
    made = {name: tensor.cpu() for name, tensor in statistics_of(model).items()}
    return replace(chosen, made=made, refreshed_on=record)


def _repeat_search(
    plan: MixPlan,
    spec: Spec,
    target: Target,
    experts: Experts,
    chosen: Choice,
    compute: Compute,
    sample: Sample,
    run: Run,
) -> dict[str, Tensor]:
    """Take statistics again in the way that the recorded search took them of its blend in memory."""
    blend = as_written(plan, experts, experts.blends(spec, run, seed=plan.seed, n_blends=1))
    batches = refreshing_batches(target, sample, spec.mix.batch_size, compute, plan.seed)
    judge = Judge(blend, criterion_of(spec.objective, spec.loss, spec.path(".")), run.ranks)
    judge.load(chosen.alpha, batches, chosen.cost.charge)
    return blend.statistics()


def _forward_with(compute: Compute) -> Forward:
    def forward(model: nn.Module, batch: Batch) -> Tensor:
        with compute.autocast():
            return outputs_of(model, batch[0])

    return forward


@torch.no_grad()
def _measure(
    model: nn.Module,
    spec: Spec,
    target: Target,
    compute: Compute,
    seed: int,
    forward: Forward,
    cost: Cost,
    ranks: Ranks,
) -> float:
    """Return the figure of the spec's objective, on the same validation batches that a search uses."""
    criterion = criterion_of(spec.objective, spec.loss, spec.path("."))
    val = target["val"].on(compute)
    size = validation_size(criterion.goal, spec.mix, len(val))
    own = ranks.share(val.n_in_random_order(size))
    batches = charged(val.in_random_order(size, seed), cost.charge)
    mine = [batch for number, batch in enumerate(batches) if number in own]
    sums = [ExampleSums.of(criterion.terms(forward(model, batch), batch[1]), batch[1]) for batch in mine]
    return criterion.goal.figure(ExampleSums.join(gathered_sums(sums, ranks)).shares.mean().item())
