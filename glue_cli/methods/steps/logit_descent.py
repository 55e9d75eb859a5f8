"""Descent on the logits beta along an estimate of the gradient, eq. (7): the part that fullgrad and spsa share."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glue_cli.foundation.state import State, part_of, prefixed
from glue_cli.methods.domains import Simplex
from glue_cli.methods.steps.questions import Answer, Question
from glue_cli.running.optimizer_state import optimizer_state, restore_optimizer
from glue_cli.spec.schema import MixSpec


@dataclass(frozen=True)
class Estimate:
    """An estimate of grad_beta L on a step's minibatch, [G, K], float64, and the loss there."""

    gradient: Tensor
    loss: float


class GradientRule(Protocol):
    """How to estimate the gradient at the logits beta [G, K]: the question to ask, and what the answer gives.

    Attributes:
        n_forwards: its cost; a backward counts as two.
    """

    @property
    def n_forwards(self) -> int: ...

    def ask(self, beta: Tensor, step: int, share: float) -> Question:
        """Return the question; a rule that looks around beta does so within this share of its radius."""

    def tell(self, answer: Answer) -> Estimate: ...


class LogitDescent:
    """A strategy: the settings' optimizer makes steps with a rule's gradients.

    If an estimate is not finite, the step is skipped: the logits go half-way back to those of the last finite
    estimate, and the rule's radius is halved until an estimate is finite again.

    Args:
        beta: where it starts, [G, K], float64; moved in place.
    """

    n_rounds = 10  # before that, minibatch noise hides which basins are poor
    has_converged = False  # minibatch noise keeps it moving

    def __init__(self, domain: Simplex, beta: Tensor, rule: GradientRule, settings: MixSpec) -> None:
        self.n_forwards = self.least_forwards = rule.n_forwards
        self._domain, self._beta, self._rule = domain, beta, rule
        self._optimizer = _make_optimizer(beta, settings)
        self._sound, self._share = beta.clone(), 1.0

    @property
    def alpha(self) -> Tensor:
        """The alpha after the last step, [G, K]."""
        return self._domain.from_logits(self._beta)

    def ask(self, step: int, n_forwards: float) -> Question:
        return self._rule.ask(self._beta, step, self._share)

    def tell(self, answer: Answer) -> float:
        estimate = self._rule.tell(answer)
        if not (math.isfinite(estimate.loss) and estimate.gradient.isfinite().all()):
            self._beta.lerp_(self._sound, 0.5)
            self._share /= 2
            return math.nan
        self._sound.copy_(self._beta)
        self._share = min(1.0, 2 * self._share)
        self._beta.grad = estimate.gradient
        self._optimizer.step()
        return estimate.loss

    def state(self) -> State:
        optimizer = prefixed("optimizer", optimizer_state(self._optimizer))
        return {"beta": self._beta, "sound": self._sound, "share": self._share, **optimizer}

    def restore(self, state: State) -> None:
        self._beta.copy_(state["beta"])
        self._sound.copy_(state["sound"])
        self._share = state["share"]
        restore_optimizer(self._optimizer, part_of(state, "optimizer"))


class AveragedDescent:
    """A strategy: a descent on the logits whose estimate is the mean over the later half of its steps.

    Args:
        start: alpha [G, K].
    Attributes:
        alpha: that mean, [G, K], which averages out the noise of single steps.
    """

    has_converged = False

    def __init__(self, domain: Simplex, start: Tensor, rule: GradientRule, settings: MixSpec) -> None:
        self._descent = LogitDescent(domain, domain.logits_of(start), rule, settings)
        self.n_forwards = self.least_forwards = rule.n_forwards
        self.n_rounds = self._descent.n_rounds
        self._later, self._n_points = [start], 1  # of all points, the start included, the later half

    @property
    def alpha(self) -> Tensor:
        return torch.stack(self._later).mean(0)

    def ask(self, step: int, n_forwards: float) -> Question:
        return self._descent.ask(step, n_forwards)

    def tell(self, answer: Answer) -> float:
        loss = self._descent.tell(answer)
        if not math.isfinite(loss):
            return loss
        self._later.append(self._descent.alpha)
        self._n_points += 1
        n_kept = self._n_points - self._n_points // 2
        del self._later[: len(self._later) - n_kept]
        return loss

    def state(self) -> State:
        later = torch.stack(self._later)
        return {"n_points": self._n_points, "later": later, **prefixed("descent", self._descent.state())}

    def restore(self, state: State) -> None:
        self._n_points, self._later = state["n_points"], [*state["later"].clone()]
        self._descent.restore(part_of(state, "descent"))


def _make_optimizer(beta: Tensor, settings: MixSpec) -> torch.optim.Optimizer:
    if settings.optimizer == "momentum":
        return torch.optim.SGD([beta], lr=settings.lr, momentum=settings.momentum)
    return torch.optim.Adam([beta], lr=settings.lr, betas=(settings.betas[0], settings.betas[1]))
