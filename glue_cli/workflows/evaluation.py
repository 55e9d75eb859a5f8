"""Figures of a model on the batches of a data set."""

import torch
from torch import Tensor, nn

from glue_cli.data.loader import Batches
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.device import Compute
from glue_cli.running.evaluation import N_MEASURED, Evaluation
from glue_cli.running.forward import outputs_of
from glue_cli.running.losses import Loss
from glue_cli.running.metrics import usual_metrics


def evaluate_model(
    model: nn.Module, batches: Batches, *, loss: Loss, compute: Compute, ranks: Ranks | None = None
) -> dict[str, float]:
    """Return the loss and the figures of merit on all examples, in eval mode.

    Args:
        ranks: the processes that share the batches; all of them get the figures.
    """
    evaluation = Evaluation(loss, usual_metrics(loss))
    add_all(evaluation, model, batches, compute, ranks or Ranks())
    return evaluation.figures()


@torch.no_grad()
def add_all(evaluation: Evaluation, model: nn.Module, batches: Batches, compute: Compute, ranks: Ranks) -> None:
    """Add a model's outputs on all examples, in eval mode, to an evaluation.

    Several processes share the batches, and each of them adds what all have found, in the order of the batches: the
    figures do not depend on how many there are.
    """
    model.eval()
    found: list[Tensor] = []
    for inputs, targets in batches.in_order(numbers=ranks.share(batches.n_in_order)):
        with compute.autocast():
            outputs = outputs_of(model, inputs)
        measured = evaluation.measured(outputs, targets)
        if ranks.size == 1:
            evaluation.count(measured)
        else:
            found += measured
    of_all = ranks.gather(found)
    for start in range(0, len(of_all), N_MEASURED):
        evaluation.count(of_all[start : start + N_MEASURED])
