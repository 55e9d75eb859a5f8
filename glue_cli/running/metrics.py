"""Metrics beyond loss and accuracy, by name; torchmetrics, which computes them, is imported only when needed."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.imports import import_with_torchvision

if TYPE_CHECKING:  # the plan of an evaluation reads the names below before torch is imported
    from torch import Tensor

MakeMetric = Callable[..., Any]  # a metric's class; for labels, it takes num_classes

# Loss -> name -> class. Metrics of labels are means over the classes, all with the same weight.
METRICS: dict[str, dict[str, str]] = {
    "cross_entropy": {
        "f1": "classification:MulticlassF1Score",
        "precision": "classification:MulticlassPrecision",
        "recall": "classification:MulticlassRecall",
        "auroc": "classification:MulticlassAUROC",
    },
    "mse": {"mae": "regression:MeanAbsoluteError", "r2": "regression:R2Score"},
}
_DIGITS = 7  # that a float32 has: torchmetrics' 9 of 10 are not 0.9, and would miss a bar there
BY_CLASS = ("auroc",)  # torchmetrics counts a class without examples as 0 in their mean
# The figures for which higher is better, and those for which lower is better.
BARS = {"cross_entropy": ("accuracy", *METRICS["cross_entropy"]), "mse": ("r2",)}
CEILINGS = {"cross_entropy": ("loss", "perplexity"), "mse": ("loss", "mse", "mae")}


def load_metrics(loss: str, names: Sequence[str]) -> dict[str, MakeMetric]:
    """Return the classes of the metrics `names`, which are keys of `METRICS[loss]`.

    Raises:
        UsageError: torchmetrics is not installed, or cannot be imported.
    """
    made: dict[str, MakeMetric] = {}
    for name in names:
        module, _, metric = METRICS[loss][name].partition(":")
        try:
            made[name] = getattr(import_with_torchvision(f"torchmetrics.{module}"), metric)
        except Exception as error:  # it imports torchvision, which fails if it was built for another torch
            why, hint = f"cannot be imported: {error}", "install the torchvision for this torch, or none"
            if isinstance(error, ModuleNotFoundError) and error.name == "torchmetrics":
                why, hint = "is not installed", "pip install 'glue-cli[metrics]'"
            raise UsageError(f"for {', '.join(names)} wanted torchmetrics, which {why}", hint=hint) from error
    return made


def usual_metrics(loss: str) -> dict[str, MakeMetric]:
    """Return the metrics that an evaluation computes by default: for mse all, if torchmetrics is there; else none."""
    try:
        return load_metrics(loss, [*METRICS[loss]] if loss == "mse" else [])
    except UsageError:
        return {}


def value_of(metric: Any, n_by_class: "Tensor | None") -> float:
    """Return a metric's value; NaN if it has none, such as R2 of a single example, or AUROC of a single class.

    Args:
        n_by_class: the number of examples of each class, [n_classes]; None without labels.
    """
    try:
        value: Tensor = metric.compute()
    except ValueError:
        return math.nan
    if value.dim() and n_by_class is not None:  # by class, of which some have no value
        value = value[((n_by_class > 0) & (n_by_class < n_by_class.sum())).to(value.device)]
    mean = float(value.double().mean())
    return mean if value.element_size() == 8 else float(f"{mean:.{_DIGITS}g}")
