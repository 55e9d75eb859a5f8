"""Figures of a model on a data set: loss, accuracy, perplexity, and the metrics that were asked for."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glue_cli.running.losses import Loss, example_losses
from glue_cli.running.means import ExampleSums
from glue_cli.running.metrics import BY_CLASS, MakeMetric, value_of


class Measured(NamedTuple):
    """What one batch contributes; a tensor is empty where nobody asks for it, or the task has none of it.

    Attributes:
        total: the sum of the losses, float64 []; n_terms: of how many, int64 [].
        by_class: the numbers of examples and of right ones, [2, n_classes].
        losses, loss_counts: each example's, as in `ExampleSums`; right, right_counts: the same of the right answers.
        outputs, targets: what metrics are computed from.
    """

    total: Tensor
    n_terms: Tensor
    by_class: Tensor
    losses: Tensor
    loss_counts: Tensor
    right: Tensor
    right_counts: Tensor
    outputs: Tensor
    targets: Tensor


def _are_right(outputs: Tensor, labels: Tensor) -> Tensor:
    """Tell of which examples the largest output is the label's, bool [N]; NaN is no answer."""
    return (outputs.argmax(1) == labels) & ~outputs.isnan().any(1)


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
        self._total, self._n_terms = torch.zeros((), dtype=torch.float64), 0  # of the losses
        self._by_class: Tensor | None = None  # [2, n_classes]: the numbers of examples and of right ones
        self._metrics: dict[str, Any] = {}
        self._has_nan = False  # among the outputs, which torchmetrics takes for the first class

    def measured(self, outputs: Tensor, targets: Tensor) -> Measured:
        """Return what one batch contributes, which another process can `count`.

        Outputs and targets are as for `example_losses`.
        """
        losses = example_losses(self._loss, outputs, targets)
        total, n = losses.sum(dtype=torch.float64), torch.tensor(len(losses))
        nothing = torch.empty(0)
        has_labels = self._loss == "cross_entropy" and targets.dim() == 1
        kept = [nothing] * 4
        if self._kept is not None:
            right = _are_right(outputs, targets).float() if has_labels else nothing
            by_example = ExampleSums.of(losses, targets), ExampleSums.of(right, targets if has_labels else nothing)
            kept = [tensor for sums in by_example for tensor in (sums.sums, sums.counts)]
        if self._loss == "mse":
            outputs, targets = outputs.double().reshape(targets.shape), targets.double()
            outputs, targets = (x.flatten(1).squeeze(1) if x.dim() > 1 else x for x in (outputs, targets))  # [N, n]
        by_class = nothing
        if has_labels:
            outputs = outputs.float()
            right = targets[_are_right(outputs, targets)]
            by_class = torch.stack([labels.bincount(minlength=outputs.shape[1]) for labels in (targets, right)])
        if has_labels and self._make_metrics:
            outputs = outputs.double().softmax(1)  # else torchmetrics takes those that are all in [0, 1] for these
        judged = [outputs, targets] if self._make_metrics else [nothing, nothing]
        return Measured(total, n, by_class, *kept, *judged)

    def count(self, measured: Measured) -> None:
        """Add what one batch contributes, from `measured`."""
        self._total, self._n_terms = self._total + measured.total, self._n_terms + int(measured.n_terms)
        if len(measured.by_class):
            self._by_class = measured.by_class if self._by_class is None else self._by_class + measured.by_class
        losses = ExampleSums(measured.losses, measured.loss_counts)
        right = ExampleSums(measured.right, measured.right_counts)
        for name, sums in (("loss", losses), ("accuracy", right)):
            if self._kept is not None and len(sums.sums):
                self._kept.setdefault(name, []).append(sums)
        outputs, targets = measured.outputs, measured.targets
        self._has_nan = self._has_nan or bool(outputs.isnan().any())
        for name, make in self._make_metrics.items() if not self._has_nan else ():
            if name not in self._metrics:
                about: dict[str, Any] = {"num_classes": outputs.shape[1]} if self._loss == "cross_entropy" else {}
                about |= {"average": None} if name in BY_CLASS else {}
                # Every process counts all batches, so that torchmetrics has nothing to exchange.
                self._metrics[name] = make(**about, sync_on_compute=False).to(outputs.device)
            self._metrics[name].update(outputs, targets)

    def figures(self) -> dict[str, float]:
        """Return the mean loss; accuracy, perplexity or mse, depending on the task; and the metrics asked for.

        These are NaN if an output is.
        """
        loss = (self._total / self._n_terms).item()
        figures = {"loss": loss}
        if self._loss == "mse":
            figures["mse"] = loss
        elif self._by_class is None:
            figures["perplexity"] = math.exp(loss) if loss < 700 else math.inf
        else:
            n_examples, n_correct = self._by_class.sum(1).tolist()
            figures["accuracy"] = n_correct / n_examples
        if self._has_nan:
            return figures | dict.fromkeys(self._make_metrics, math.nan)
        n_by_class = None if self._by_class is None else self._by_class[0]
        return figures | {name: value_of(metric, n_by_class) for name, metric in self._metrics.items()}

    def by_example(self) -> dict[str, Tensor]:
        """Return each example's contribution to the loss and the accuracy, float64 [N], in the order of the batches.

        The mean of the contributions is the figure.
        """
        return {name: ExampleSums.join(parts).shares for name, parts in (self._kept or {}).items()}

    def class_accuracies(self) -> list[float | None]:
        """Return the accuracy of each class, [n_classes], None for one without examples; empty without labels."""
        counts = self._by_class.T.tolist() if self._by_class is not None else []
        return [n_correct / n_examples if n_examples else None for n_examples, n_correct in counts]
