"""Descent on the logits beta by any estimate of the gradient, eq. (7): what fullgrad and spsa share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.methods.result import Learned, StepRecord, check_finite
from glue_cli.methods.steps.plateau import Plateau
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

# Of a budget, what a validation may take at most.
_VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class Estimate:
    """An estimate of grad_beta L on a step's minibatch, [G, K], float64, and the loss there."""

    gradient: Tensor
    loss: float


def descend(
    objective: Objective,
    estimate: Callable[[Tensor, int], Estimate],
    settings: MixSpec,
    observe: Callable[[StepRecord], None],
    *,
    n_forwards: int,
) -> Learned:
    """Minimise the target loss over alpha = softmax(beta) from the uniform blend, eqs. (7) and (8).

    Goes on to a plateau of the validation loss, for `steps`, or, given a budget, until it has no step and validation
    left; returns the alpha with the lowest validation loss on the way.

    Args:
        estimate: the gradient at beta [G, K] on the minibatch of a step.
        observe: told of every step as it ends.
        n_forwards: what a step costs, a backward counted as two.
    Raises:
        NumericalError: a loss is not finite.
    """
    beta = torch.zeros(objective.n_groups, objective.n_experts, dtype=torch.float64)
    if objective.n_experts == 1:
        return Learned(softmax(beta), None, None, 0, "steps")
    optimizer = make_optimizer(beta, settings)  # the first one imports parts of torch, and the clock stands still yet
    purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
    best_alpha = alpha = softmax(beta)
    if purse.is_timed:  # the second one tells the pace, the first sets things up
        _validate(objective, alpha, 0, 1)
        purse.warmed_up()
        _validate(objective, alpha, 0, 1)
    n_batches = int(min(objective.n_validation_batches, max(1, _VALIDATION_SHARE * purse.worth())))
    if purse.forwards() < 2 * n_batches + n_forwards:
        return Learned(alpha, None, None, 0, "budget")
    best = start = _validate(objective, alpha, 0, n_batches)
    plateau = Plateau(settings.patience, start)
    observe(StepRecord(0, None, alpha, start))
    step, stopped = 0, "steps"
    last = math.inf if purse.is_limited else settings.steps
    while step < last and stopped == "steps":
        found = estimate(beta, step)
        check_finite(found.loss, step, "loss")
        beta.grad = found.gradient
        optimizer.step()
        step += 1
        alpha, val_loss = softmax(beta), None
        if purse.forwards() < 2 * n_batches + n_forwards:
            stopped = "budget"
        if step % settings.validate_every == 0 or step == last or stopped == "budget":
            val_loss = _validate(objective, alpha, step, n_batches)
            if val_loss < best:
                best_alpha, best = alpha, val_loss
            if plateau.reached(val_loss) and stopped == "steps":
                stopped = "plateau"
        observe(StepRecord(step, found.loss, alpha, val_loss))
    return Learned(best_alpha, best, start, step, stopped)


def softmax(beta: Tensor) -> Tensor:
    """Return alpha = softmax(beta) along the last dimension."""
    return torch.softmax(beta, -1)


def make_optimizer(beta: Tensor, settings: MixSpec) -> torch.optim.Optimizer:
    """Return the settings' optimizer of the logits beta."""
    if settings.optimizer == "momentum":
        return torch.optim.SGD([beta], lr=settings.lr, momentum=settings.momentum)
    return torch.optim.Adam([beta], lr=settings.lr, betas=(settings.betas[0], settings.betas[1]))


def _validate(objective: Objective, alpha: Tensor, step: int, n_batches: int) -> float:
    return check_finite(objective.validation_loss(alpha, n_batches), step, "validation loss")
