"""A target loss without any model, which keeps account like the real one."""

import torch

from glue_cli.search.account import Cost
from glue_cli.search.secants import Quadratic


class Bowl:
    """|alpha - target|^2 and a floor, with noise that is the same for all blends of a minibatch.

    Args:
        target: [G, K], or [K] for one group.
        noise: its standard deviation.
    Attributes:
        probed: the number of blends and the step of each call for losses; differentiated: the steps of gradients.
        validated: the alphas that were validated; n_batches: on how many batches, as it was asked for.
        clock: what the time would be if forwards took `seconds_a_forward`.
    """

    is_smooth, follows_loss = True, False
    kinds, n_folds, n_examples = ("averaged",), 1, 1
    n_validation_batches, batch_size = 1, 1
    seconds_a_forward, floor = 0.0, 0.0

    def __init__(self, target, noise=0.0):
        self.target = torch.atleast_2d(torch.tensor(target, dtype=torch.float64))
        self.n_groups, self.n_experts = self.target.shape
        self.noise, self.cost, self.clock = noise, Cost(), 1000.0
        self.probed, self.differentiated, self.validated, self.n_batches = [], [], [], []
        self.validation_noise = self.draw(1, self.n_validation_batches * self.batch_size)

    def loss(self, alphas):
        """Return the loss of alphas [..., G, K] without noise, [...]."""
        return self.floor + (alphas - self.target).square().sum((-2, -1))

    def draw(self, seed, n):
        return self.noise * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def noise_at(self, step):
        return self.draw(step, 1)

    def charge(self, n):
        self.cost.forwards += n
        self.cost.examples += n * self.batch_size
        self.clock += n * self.seconds_a_forward

    def probe_losses(self, alphas, step):
        self.probed.append((len(alphas), step))
        self.charge(len(alphas))
        return self.loss(alphas) + self.noise_at(step)

    def pair_losses(self, alphas, step):
        return self.probe_losses(alphas, step)

    def with_statistics(self, statistics):
        assert statistics in self.kinds
        return self

    def quadratic(self, alpha, coordinates, radius, step, *, is_tied=False):
        self.charge(len(coordinates) + 1)
        ways = self.ways(alpha, coordinates, is_tied)
        loss = (self.loss(alpha) + self.noise_at(step)).item()
        return Quadratic(loss, 2 * (ways @ (alpha - self.target).flatten())[None], 2 * (ways @ ways.T)[None])

    def nat_at(self, loss):
        return 1.0

    def ways(self, alpha, coordinates, is_tied=False):
        """Return the directions towards experts, [n, G K]."""
        if is_tied:
            return (torch.eye(self.n_experts, dtype=torch.float64)[coordinates][:, None] - alpha).flatten(1)
        ways = torch.eye(alpha.numel(), dtype=torch.float64)[coordinates]
        for way, group in zip(ways.view(-1, *alpha.shape), coordinates // self.n_experts, strict=True):
            way[group] -= alpha[group]
        return ways

    def gradient(self, alpha, step):
        self.differentiated.append(step)
        self.charge(1)
        self.cost.backwards += 1
        slope = 2 * (alpha - self.target)
        return (self.loss(alpha) + self.noise_at(step)).item(), slope - (alpha * slope).sum(1, keepdim=True)

    def validation_terms(self, alpha, n_batches=None):
        self.validated.append(alpha)
        self.n_batches.append(n_batches)
        n = self.n_validation_batches if n_batches is None else min(n_batches, self.n_validation_batches)
        self.charge(n)
        self.cost.validation_forwards += n
        return self.loss(alpha) + self.validation_noise[: n * self.batch_size]

    def validation_loss(self, alpha, n_batches=None):
        return self.validation_terms(alpha, n_batches).mean().item()

    def written_terms(self, alphas, statistics, n_batches=None):
        return self.validation_terms(alphas, n_batches)

    def n_written_forwards(self, statistics, n_batches=None):
        return min(n_batches or self.n_validation_batches, self.n_validation_batches)

    @property
    def n_held_out_batches(self):
        return self.n_validation_batches
