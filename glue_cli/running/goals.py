"""What mixing searches for in place of the loss: accuracy, macro F1, or a function of the user's.

Importing this module does not import torch: the objective is checked before.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.user_code import PREFIX, call_function, load_function

if TYPE_CHECKING:
    from torch import Tensor

    from glue_cli.running.losses import Loss, Score


# Scores that are best about where the loss is least, so that a search may go down the loss first.
LIKE_THE_LOSS = ("accuracy", "f1")


def load_score(objective: str, loss: "Loss", folder: Path) -> "Score | None":
    """Return what mixing minimises in place of the loss, or None where it is the loss.

    - accuracy: a term an example, or a predicted token, float32: 0 where the prediction is right, else 1.
    - f1: one term a minibatch, float64 [1]: 1 - macro F1, over the classes that occur in targets or predictions.
    - python:MODULE:FUNCTION: one term a minibatch, float64 [1]: minus what `function(outputs, targets)` returns, one
      number, of which more is better, as of the scorers of scikit-learn. It gets the tensors as the model and the
      data give them: on their device, in the precision of the forward pass, without a gradient.

    Args:
        objective: as `Spec.objective`; folder: the spec's own, where a module is looked up first.
    Raises:
        SpecError: there is no such function, or it does not take outputs and targets; or labels are needed and the
            loss is for numbers. The score itself raises one where the function fails or returns something else.
    """
    if objective.startswith(PREFIX):
        function = load_function(objective.removeprefix(PREFIX), folder, key="objective")
        _check_signature(objective, function)
        return partial(_minus_value, objective, function)
    if objective == "loss":
        return None
    if loss == "mse":
        raise SpecError(
            f"objective: {objective} is for labels and tokens, and loss: mse for numbers",
            hint=f"set objective: loss, or a function of your own, {PREFIX}MODULE:FUNCTION",
        )
    return {"accuracy": _mistakes, "f1": _one_minus_f1}[objective]


def figure_of(objective: str, loss: float | None) -> float | None:
    """Return the figure, of which more is better, that a score's mean of terms stands for."""
    if loss is None or objective == "loss":
        return loss
    return -loss if objective.startswith(PREFIX) else 1 - loss


def _mistakes(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    predicted, wanted, zeros = _predictions(outputs, targets)
    return (predicted != wanted) + zeros


def _one_minus_f1(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    predicted, wanted, zeros = _predictions(outputs, targets)
    labels = (wanted[predicted == wanted], predicted, wanted)
    n_hits, n_predicted, n_wanted = (part.bincount(minlength=outputs.shape[-1]) for part in labels)
    f1 = 2 * n_hits.double() / (n_predicted + n_wanted)  # [n_classes]; NaN for a class that does not occur
    return 1 - f1.nanmean()[None] + zeros.sum()


def _predictions(outputs: "Tensor", targets: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Return predicted and wanted labels of all that counts, int64 [n], and zeros, float32 [n].

    In place of a zero stands NaN where the outputs are not finite, which no label would show.
    """
    from glue_cli.running.losses import IGNORED

    largest, predicted = outputs.max(-1)
    counts = targets != IGNORED
    return predicted[counts], targets[counts], 0 * largest[counts].float()


def _minus_value(objective: str, function: Callable[..., Any], outputs: "Tensor", targets: "Tensor") -> "Tensor":
    import torch

    found = call_function(function, outputs, targets, name=f"objective '{objective}'", hint="mend the function")
    value = found.item() if getattr(found, "ndim", None) == 0 else found  # torch's and numpy's numbers
    if not isinstance(value, int | float) or not math.isfinite(value):
        shape = f" {list(found.shape)}" if getattr(found, "ndim", 0) else ""
        what = str(value) if isinstance(value, float) else f"a {type(found).__name__}{shape}"
        raise SpecError(
            f"objective '{objective}' returns {what}, wanted one finite number",
            hint="return a figure of the minibatch, of which more is better",
        )
    return torch.tensor([-value], dtype=torch.float64, device=outputs.device)


def _check_signature(objective: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind("outputs", "targets")
    except TypeError as error:
        raise SpecError(
            f"objective: '{objective}' is called with (outputs, targets): {error}", hint=f"it takes {signature}"
        ) from None
