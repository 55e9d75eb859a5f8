"""Descent on the logits beta by any estimate of the gradient, eq. (7): what fullgrad and spsa share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from glue_cli.core.errors import NumericalError
from glue_cli.core.spec import MixSpec

# A smaller relative improvement of the validation loss counts as none when the plateau is looked for.
_MIN_IMPROVEMENT = 1e-3


class Objective(Protocol):
    """The target loss as a function of alpha; `glue_cli.core.objective.BlendObjective` is the real one."""

    n_groups: int
    n_experts: int

    def probe_losses(self, alphas: Tensor, step: int) -> Tensor: ...

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]: ...

    def validation_loss(self, alpha: Tensor) -> float: ...


@dataclass(frozen=True)
class Estimate:
    """An estimate of grad_beta L on a step's minibatch, [G, K], float64, and the loss there."""

    gradient: Tensor
    loss: float


@dataclass(frozen=True)
class StepRecord:
    """One step as it is shown and written down: alpha [G, K] behind it; `val_loss` only where validation was due."""

    step: int
    loss: float | None
    alpha: Tensor
    val_loss: float | None = None


@dataclass(frozen=True)
class Learned:
    """A learned alpha [G, K], a simplex a group of tensors: the one with the lowest validation loss on the way.

    Attributes:
        val_loss: its validation loss; val_loss_start: that of the uniform blend, where the search starts.
        n_steps: steps made.
        stopped: "plateau" or "steps".
    """

    alpha: Tensor
    val_loss: float | None
    val_loss_start: float | None
    n_steps: int
    stopped: str


@dataclass
class _Best:
    alpha: Tensor
    val_loss: float
    plateau_loss: float = field(default=math.inf)
    n_stale: int = 0

    def update(self, alpha: Tensor, val_loss: float) -> None:
        if val_loss < self.val_loss:
            self.alpha, self.val_loss = alpha, val_loss
        if val_loss < self.plateau_loss * (1 - _MIN_IMPROVEMENT):
            self.plateau_loss, self.n_stale = val_loss, 0
        else:
            self.n_stale += 1


def descend(
    objective: Objective,
    estimate: Callable[[Tensor, int], Estimate],
    settings: MixSpec,
    observe: Callable[[StepRecord], None],
) -> Learned:
    """Minimise the target loss over alpha = softmax(beta) from the uniform blend, eqs. (7) and (8).

    Args:
        estimate: the gradient at beta [G, K] on the minibatch of a step.
        observe: told of every step as it ends.
    Raises:
        NumericalError: a loss is not finite.
    """
    beta = torch.zeros(objective.n_groups, objective.n_experts, dtype=torch.float64)
    if objective.n_experts == 1:
        return Learned(softmax(beta), None, None, 0, "steps")
    optimizer = _make_optimizer(beta, settings)
    alpha = softmax(beta)
    start = _validate(objective, alpha, 0)
    best = _Best(alpha, start, plateau_loss=start)
    observe(StepRecord(0, None, alpha, start))
    step, stopped = 0, "steps"
    while step < settings.steps and stopped == "steps":
        found = estimate(beta, step)
        _check_finite(found.loss, step, "loss")
        beta.grad = found.gradient
        optimizer.step()
        step += 1
        alpha, val_loss = softmax(beta), None
        if step % settings.validate_every == 0 or step == settings.steps:
            val_loss = _validate(objective, alpha, step)
            best.update(alpha, val_loss)
            if best.n_stale >= settings.patience:
                stopped = "plateau"
        observe(StepRecord(step, found.loss, alpha, val_loss))
    return Learned(best.alpha, best.val_loss, start, step, stopped)


def softmax(beta: Tensor) -> Tensor:
    """Return alpha = softmax(beta) along the last dimension."""
    return torch.softmax(beta, -1)


def _make_optimizer(beta: Tensor, settings: MixSpec) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam([beta], lr=settings.lr, betas=(settings.betas[0], settings.betas[1]))
    return torch.optim.SGD([beta], lr=settings.lr, momentum=settings.momentum)


def _validate(objective: Objective, alpha: Tensor, step: int) -> float:
    val_loss = objective.validation_loss(alpha)
    _check_finite(val_loss, step, "validation loss")
    return val_loss


def _check_finite(loss: float, step: int, what: str) -> None:
    if not math.isfinite(loss):
        raise NumericalError(f"the {what} is {loss} at mixing step {step}", hint="evaluate the experts one by one")
