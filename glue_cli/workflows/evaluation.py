"""Figures of a model on the batches of a data set."""

import torch
from torch import nn

from glue_cli.data.loader import Batches
from glue_cli.running.device import Compute
from glue_cli.running.evaluation import Evaluation
from glue_cli.running.forward import outputs_of
from glue_cli.running.losses import Loss
from glue_cli.running.metrics import usual_metrics


def evaluate_model(model: nn.Module, batches: Batches, *, loss: Loss, compute: Compute) -> dict[str, float]:
    """Return the loss and the figures of merit on all examples, in eval mode."""
    evaluation = Evaluation(loss, usual_metrics(loss))
    add_all(evaluation, model, batches, compute)
    return evaluation.figures()


@torch.no_grad()
def add_all(evaluation: Evaluation, model: nn.Module, batches: Batches, compute: Compute) -> None:
    """Add a model's outputs on all examples, in eval mode, to an evaluation."""
    model.eval()
    for inputs, targets in batches.in_order():
        with compute.autocast():
            outputs = outputs_of(model, inputs)
        evaluation.add(outputs, targets)
