"""CMA-ES, the usual search without a derivative, on the logits: by the package cmaes, the extra `search`."""

from collections.abc import Callable

import numpy as np
import torch
from cmaes import CMA
from torch import Tensor

from glue_cli.foundation.seeds import derive_seed
from glue_cli.methods.result import Learned, StepRecord
from glue_cli.methods.staged.search import search
from glue_cli.methods.steps.descent import softmax
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

_SIGMA = 0.3  # the best of 0.3, 0.5, 1 and 2 on the digits and CIFAR-10
_FLOOR = 0.01  # of 1 / K: further down, an expert that a start leaves out would be out of reach


def cmaes(
    objective: Objective, settings: MixSpec, *, seed: int, observe: Callable[[StepRecord], None] = lambda record: None
) -> Learned:
    """Learn alpha with forward passes alone; all that it asks of an objective is a number.

    The search is a staged one in either preset: the paper has no CMA-ES.
    """
    return search(objective, settings, lambda start: CmaEs(objective, start, seed), seed=seed, observe=observe)


class CmaEs:
    """A strategy of a staged search: a generation a step, all of it on the step's minibatch.

    Args:
        start: [G, K], on the simplex.
    Attributes:
        n_forwards: of a step, the population; n_rounds: steps after which a poor basin shows.
    """

    n_rounds = 3

    def __init__(self, objective: Objective, start: Tensor, seed: int) -> None:
        logits = start.clamp_min(_FLOOR / objective.n_experts).log()
        # All G K logits: the package wants two dimensions at least, and K - 1 would be one for two experts.
        self._optimizer = CMA(logits.flatten().numpy(), _SIGMA, seed=derive_seed(seed, "cmaes") % 2**32)
        self.n_forwards = self.least_forwards = self._optimizer.population_size
        self._objective, self._shape = objective, start.shape

    @property
    def has_converged(self) -> bool:
        """Whether its distribution is so narrow that the package would soon divide by rounding errors."""
        return bool(self._optimizer.should_stop())

    @property
    def alpha(self) -> Tensor:
        """The softmax of the distribution's mean, [G, K]."""
        return softmax(torch.from_numpy(self._optimizer.mean).view(self._shape))

    def step(self, step: int, n_forwards: float) -> float:
        """Make a generation on the minibatch of `step`; return its mean loss. Two blends are held at a time."""
        points = [self._optimizer.ask() for _ in range(self.n_forwards)]
        alphas = softmax(torch.from_numpy(np.stack(points)).view(-1, *self._shape))
        losses = torch.cat([self._objective.probe_losses(pair, step) for pair in torch.split(alphas, 2)])
        self._optimizer.tell(list(zip(points, losses.tolist(), strict=True)))
        return losses.mean().item()
