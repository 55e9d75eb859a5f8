"""Figures of a model on a data set: loss, accuracy, perplexity, and the metrics that were asked for."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glue_cli.running.losses import Loss, example_losses
from glue_cli.running.means import ExampleSums, Mean
from glue_cli.running.metrics import MakeMetric, value_of


class Evaluation:
    """Adds up batches, and computes the figures from the sums.

    Args:
        metrics: further figures by name; see `running.metrics`.
        keeps_examples: whether to keep each example's contribution, for `by_example`.
    """

    def __init__(
        self, loss: Loss, metrics: Mapping[str, MakeMetric] | None = None, *, keeps_examples: bool = False
    ) -> None:
        self._loss, self._make_metrics = loss, metrics or {}
        self._kept: dict[str, list[ExampleSums]] | None = {} if keeps_examples else None
        self._mean_loss = Mean()
        self._by_class: Tensor | None = None  # [2, n_classes]: the numbers of examples and of right ones
        self._metrics: dict[str, Any] = {}

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add one batch; outputs and targets as for `example_losses`."""
        losses = example_losses(self._loss, outputs, targets)
        self._mean_loss.add(losses)
        if self._kept is not None:
            self._kept.setdefault("loss", []).append(ExampleSums.of(losses, targets))
            if self._loss == "cross_entropy" and targets.dim() == 1:
                right = (outputs.argmax(1) == targets).float()
                self._kept.setdefault("accuracy", []).append(ExampleSums.of(right, targets))
        if self._loss == "mse":
            outputs, targets = outputs.double().view_as(targets), targets.double()
            outputs, targets = (x.flatten(1).squeeze(1) if x.dim() > 1 else x for x in (outputs, targets))  # [N, n]
        elif targets.dim() == 1:
            outputs = outputs.float()
            right = targets[outputs.argmax(1) == targets]
            counts = torch.stack([labels.bincount(minlength=outputs.shape[1]) for labels in (targets, right)])
            self._by_class = counts if self._by_class is None else self._by_class + counts
        for name, make in self._make_metrics.items():
            if name not in self._metrics:
                n_classes = {"num_classes": outputs.shape[1]} if self._loss == "cross_entropy" else {}
                self._metrics[name] = make(**n_classes).to(outputs.device)
            self._metrics[name].update(outputs, targets)

    def figures(self) -> dict[str, float]:
        """Return the mean loss; accuracy, perplexity or mse, depending on the task; and the metrics asked for."""
        loss = self._mean_loss.value.item()
        figures = {"loss": loss}
        if self._loss == "mse":
            figures["mse"] = loss
        elif self._by_class is None:
            figures["perplexity"] = math.exp(loss) if loss < 700 else math.inf
        else:
            n_examples, n_correct = self._by_class.sum(1).tolist()
            figures["accuracy"] = n_correct / n_examples
        return figures | {name: value_of(metric) for name, metric in self._metrics.items()}

    def by_example(self) -> dict[str, Tensor]:
        """Return each example's contribution to the loss and the accuracy, float64 [N], in the order of the batches.

        The mean of the contributions is the figure.
        """
        return {name: ExampleSums.join(parts).shares for name, parts in (self._kept or {}).items()}

    def class_accuracies(self) -> list[float | None]:
        """Return the accuracy of each class, [n_classes], None for one without examples; empty without labels."""
        counts = self._by_class.T.tolist() if self._by_class is not None else []
        return [n_correct / n_examples if n_examples else None for n_examples, n_correct in counts]
