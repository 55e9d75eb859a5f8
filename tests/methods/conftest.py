"""A target loss without any model."""

import pytest
import torch


class Quadratic:
    """L(alpha) = |alpha - target|^2, the same on every minibatch; keeps account like the real objective."""

    def __init__(self, target):
        self.target = torch.tensor(target, dtype=torch.float64)
        self.n_experts = len(target)
        self.probed, self.differentiated, self.validated = [], [], []

    def loss(self, alphas):
        return (alphas - self.target).square().sum(-1)

    def probe_losses(self, alphas, step):
        self.probed.append((len(alphas), step))
        return self.loss(alphas)

    def gradient(self, alpha, step):
        self.differentiated.append(step)
        slope = 2 * (alpha - self.target)
        return self.loss(alpha).item(), slope - alpha @ slope

    def validation_loss(self, alpha):
        self.validated.append(alpha)
        return self.loss(alpha).item()


@pytest.fixture
def quadratic():
    return Quadratic
