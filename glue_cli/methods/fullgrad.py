"""Coefficients by the true gradient, configuration 3 of the paper's section 5: a forward and a backward a step."""

from collections.abc import Callable

from torch import Tensor

from glue_cli.methods.result import Learned, StepRecord
from glue_cli.methods.steps.descent import Estimate, descend, softmax
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def fullgrad(
    objective: Objective, settings: MixSpec, *, seed: int, observe: Callable[[StepRecord], None] = lambda record: None
) -> Learned:
    """Learn alpha by descent along the gradient through the blended network, eq. (9) left.

    The minibatches are those of spsa; nothing is drawn, so `seed` is not used.
    """

    def estimate(beta: Tensor, step: int) -> Estimate:
        alpha = softmax(beta)
        loss, by_alpha = objective.gradient(alpha, step)
        by_beta = alpha * (by_alpha - (alpha * by_alpha).sum(1, keepdim=True))  # chain rule through the softmax
        return Estimate(by_beta, loss)

    return descend(objective, estimate, settings, observe, n_forwards=3)
