"""A target loss without any model."""

import pytest
import torch

from glue_cli.search.account import Cost
from glue_cli.search.secants import Quadratic as ToSecondOrder


class Quadratic:
    """L(alpha) = |alpha - target|^2, the same on every minibatch; keeps account like the real objective.

    Args:
        target: [G, K], or [K] for one group.
    """

    is_smooth, n_validation_batches = True, 1

    def __init__(self, target):
        self.cost = Cost()
        self.target = torch.atleast_2d(torch.tensor(target, dtype=torch.float64))
        self.n_groups, self.n_experts = self.target.shape
        self.probed, self.differentiated, self.validated = [], [], []

    def loss(self, alphas):
        return (alphas - self.target).square().sum((-2, -1))

    def probe_losses(self, alphas, step):
        self.probed.append((len(alphas), step))
        self.cost.forwards += len(alphas)
        return self.loss(alphas)

    def quadratic(self, alpha, coordinates, radius, step):
        self.cost.forwards += len(coordinates) + 1
        directions = torch.eye(alpha.numel(), dtype=torch.float64)[coordinates]  # [n, G K]
        groups = coordinates // self.n_experts
        for direction, group in zip(directions.view(-1, *alpha.shape), groups, strict=True):
            direction[group] -= alpha[group]
        slope = 2 * (alpha - self.target).flatten()
        return ToSecondOrder(self.loss(alpha).item(), directions @ slope, 2 * directions @ directions.T)

    def gradient(self, alpha, step):
        self.differentiated.append(step)
        self.cost.forwards += 1
        self.cost.backwards += 1
        slope = 2 * (alpha - self.target)
        return self.loss(alpha).item(), slope - (alpha * slope).sum(1, keepdim=True)

    def validation_loss(self, alpha, n_batches=None):
        return self.validation_terms(alpha).item()

    def validation_terms(self, alpha, n_batches=None):
        self.validated.append(alpha)
        self.cost.forwards += 1
        self.cost.validation_forwards += 1
        return self.loss(alpha)[None]


@pytest.fixture
def quadratic():
    return Quadratic
