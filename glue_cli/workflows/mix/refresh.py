"""BatchNorm's statistics of a blend, taken anew on the target's data."""

from torch import Tensor, nn

from glue_cli.data.target import Target
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.plans.mix import MixPlan
from glue_cli.running.batchnorm import refresh_statistics, statistics_of
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.search.account import Cost
from glue_cli.spec.schema import AugmentSpec, Spec
from glue_cli.workflows.compute import mixing_compute
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.mix.experts import Experts


def refresh(
    plan: MixPlan, spec: Spec, target: Target, experts: Experts, alpha: Tensor, cost: Cost, run: Run
) -> dict[str, Tensor]:
    """Return BatchNorm's statistics of the blend on the target's training data, by forward passes alone.

    Args:
        cost: charged with the passes.
    """
    model = experts.model(spec, alpha)
    if not statistics_of(model):
        run.progress(Noted("--batchnorm refresh: the model has no BatchNorm, nothing is refreshed", warning=True))
        return {}
    train = target["train"]
    check_fits_data(model, train, spec.loss, spec.data.where)
    compute = mixing_compute(spec, model, train, run)

    def forward(module: nn.Module, batch: Batch) -> None:
        with compute.autocast():
            outputs_of(module, batch[0])
        cost.forwards += 1
        cost.examples += len(batch[1])

    batches = train.on(compute).epoch(spec.mix.batch_size, plan.seed, 0, AugmentSpec())
    refresh_statistics(compute.place(model).eval(), batches, forward)
    return {name: tensor.cpu() for name, tensor in statistics_of(model).items()}
