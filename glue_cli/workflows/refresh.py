"""BatchNorm's statistics of a blend, taken anew on the target's data."""

from torch import Tensor, nn

from glue_cli.core.batchnorm import refresh_statistics, statistics_of
from glue_cli.core.cost import Cost
from glue_cli.core.forward import Batch, outputs_of
from glue_cli.core.progress import Noted
from glue_cli.core.spec import AugmentSpec, Spec
from glue_cli.workflows.compute import forward_compute
from glue_cli.workflows.examples import read_target
from glue_cli.workflows.experts import Experts
from glue_cli.workflows.plan import Run
from glue_cli.workflows.plan_mix import MixPlan
from glue_cli.workflows.weights import check_fits_data


def refresh(plan: MixPlan, spec: Spec, experts: Experts, alpha: Tensor, cost: Cost, run: Run) -> dict[str, Tensor]:
    """Return BatchNorm's statistics of the blend on the target's training data, by forward passes alone.

    Args:
        cost: charged with the passes.
    """
    model = experts.model(spec, alpha)
    if not statistics_of(model):
        run.progress(Noted("--batchnorm refresh: the model has no BatchNorm, nothing is refreshed", warning=True))
        return {}
    train = read_target(spec, ["train"], run)["train"]
    check_fits_data(model, train, spec.loss, spec.data.where)
    compute = forward_compute(spec, model, train, run)

    def forward(module: nn.Module, batch: Batch) -> None:
        with compute.autocast():
            outputs_of(module, batch[0])
        cost.forwards += 1
        cost.examples += len(batch[1])

    batches = train.on(compute).epoch(spec.mix.batch_size, plan.seed, 0, AugmentSpec())
    refresh_statistics(compute.place(model).eval(), batches, forward)
    return {name: tensor.cpu() for name, tensor in statistics_of(model).items()}
