"""Choose alpha by each expert's accuracy on the target's validation data."""

import torch

from glue_cli.data.target import Target
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.progress import Advanced, Finished, Started
from glue_cli.foundation.run import Run
from glue_cli.methods import METHODS
from glue_cli.plans.mix import MixPlan
from glue_cli.results.history import Write
from glue_cli.search.account import Cost
from glue_cli.spec.schema import Spec
from glue_cli.workflows.compute import evaluation_compute
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.mix.choice import Choice
from glue_cli.workflows.mix.experts import Experts


def choose_by_accuracy(plan: MixPlan, spec: Spec, target: Target, experts: Experts, run: Run, write: Write) -> Choice:
    """Evaluate every expert on the target's validation data, and let the method weigh the accuracies."""
    val = target["val"]
    if val.dataset.labels is None:
        raise SpecError(
            f"--method {plan.method} needs accuracies, which these data do not have",
            hint="use --method spsa",
        )
    accuracies: list[float] = []
    n_forwards = 0
    run.progress(Started("evaluate experts", len(plan.experts), "experts"))
    for one_hot in torch.eye(len(plan.experts), dtype=torch.float64):
        model = experts.model(spec, one_hot[None])
        if not accuracies:
            check_fits_data(model, val, spec.loss, spec.data.where)
            compute = evaluation_compute(spec, model, val, run)
            batches = val.on(compute)
        figures = evaluate_model(compute.to_device(model), batches, loss=spec.loss, compute=compute)
        accuracies.append(figures["accuracy"])
        write({"expert": len(accuracies) - 1, **{f"val_{name}": value for name, value in figures.items()}})
        n_forwards += batches.n_in_order
        run.progress(Advanced(len(accuracies)))
    run.progress(Finished())
    cost = Cost(forwards=n_forwards, validation_forwards=n_forwards, examples=len(accuracies) * len(val))
    alpha = METHODS[plan.method].load()(accuracies)
    return Choice(
        torch.tensor([alpha], dtype=torch.float64),
        settings=compute.recorded,
        cost=cost,
        val_accuracies=accuracies,
        **compute.recorded,
    )
