"""A target loss without any model."""

import pytest
import torch


class Quadratic:
    """L(alpha) = |alpha - target|^2, the same on every minibatch; keeps account like the real objective.

    Args:
        target: [G, K], or [K] for one group.
    """

    def __init__(self, target):
        self.target = torch.atleast_2d(torch.tensor(target, dtype=torch.float64))
        self.n_groups, self.n_experts = self.target.shape
        self.probed, self.differentiated, self.validated = [], [], []

    def loss(self, alphas):
        return (alphas - self.target).square().sum((-2, -1))

    def probe_losses(self, alphas, step):
        self.probed.append((len(alphas), step))
        return self.loss(alphas)

    def gradient(self, alpha, step):
        self.differentiated.append(step)
        slope = 2 * (alpha - self.target)
        return self.loss(alpha).item(), slope - (alpha * slope).sum(1, keepdim=True)

    def validation_loss(self, alpha):
        self.validated.append(alpha)
        return self.loss(alpha).item()


@pytest.fixture
def quadratic():
    return Quadratic
