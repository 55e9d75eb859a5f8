"""What a search minimises: the loss, or the opposite of a score: accuracy, macro F1, or a function of the user's.

Importing this module does not import torch, since an objective is checked before torch is needed.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.user_code import PREFIX, call_function, load_function
from glue_cli.spec.goal import Goal, goal_named

if TYPE_CHECKING:
    from torch import Tensor

    from glue_cli.running.losses import Loss

Terms = Callable[["Tensor", "Tensor"], "Tensor"]  # outputs and targets -> terms, whose mean is minimised


@dataclass(frozen=True)
class Criterion:
    """What a search measures: the goal, and the functions of outputs and targets that express it.

    Attributes:
        loss: the loss that the model was trained with; if the goal has no slope, the search follows that of the loss.
        terms: the mean of these is minimised: one for every example or token, or one for the whole minibatch.
    """

    goal: Goal
    loss: "Loss"
    terms: Terms


def criterion_of(objective: str, loss: "Loss", folder: Path) -> Criterion:
    """Return the criterion of a spec's objective. The terms of each objective are:

    - loss: those of `example_losses`.
    - accuracy: a term for each example or predicted token, float32: 0 if the prediction is right, else 1.
    - f1: one term for each minibatch, float64 [1]: 1 - macro F1, over the classes in targets or predictions.
    - python:MODULE:FUNCTION: one term for each minibatch, float64 [1]: minus what `function(outputs, targets)`
      returns, one number, where more is better, as with scorers of scikit-learn; one that is not finite counts as
      infinitely bad. The function gets the tensors as
      the model and the data give them: on their device, in the precision of the forward pass, without a gradient.

    Args:
        folder: the folder of the spec, where a module is looked up first.
    Raises:
        SpecError: there is no such function, or it does not take outputs and targets; or labels are needed and the
            loss is for numbers. The terms themselves raise one where the function fails or returns something else.
    """
    goal = goal_named(objective)
    if objective.startswith(PREFIX):
        function = load_function(objective.removeprefix(PREFIX), folder, key="objective")
        _check_signature(objective, function)
        return Criterion(goal, loss, partial(_minus_value, objective, function, folder))
    if goal.is_smooth:
        return Criterion(goal, loss, partial(_losses, loss))
    if loss == "mse":
        raise SpecError(
            f"objective: {objective} is for labels and tokens, and loss: mse for numbers",
            hint=f"set objective: loss, or a function of your own, {PREFIX}MODULE:FUNCTION",
        )
    return Criterion(goal, loss, {"accuracy": _mistakes, "f1": _one_minus_f1}[objective])


def _losses(loss: "Loss", outputs: "Tensor", targets: "Tensor") -> "Tensor":
    from glue_cli.running.losses import example_losses

    return example_losses(loss, outputs, targets)


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
    """Return the predicted and the true labels of all that counts, int64 [n], and zeros, float32 [n].

    A zero becomes NaN if the outputs are not finite, which the labels would not show.
    """
    from glue_cli.running.losses import IGNORED

    largest, predicted = outputs.max(-1)
    counts = targets != IGNORED
    return predicted[counts], targets[counts], 0 * largest[counts].float()


def _minus_value(
    objective: str, function: Callable[..., Any], folder: Path, outputs: "Tensor", targets: "Tensor"
) -> "Tensor":
    import torch

    name = f"objective '{objective}'"
    returned = call_function(function, outputs, targets, folder=folder, name=name, hint="mend the function")
    value = returned.item() if getattr(returned, "ndim", None) == 0 else returned  # torch's and numpy's numbers
    if not isinstance(value, int | float):
        shape = f" {list(returned.shape)}" if getattr(returned, "ndim", 0) else ""
        raise SpecError(
            f"objective '{objective}' returns a {type(returned).__name__}{shape}, wanted one number",
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
