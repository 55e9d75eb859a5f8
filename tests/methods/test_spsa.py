"""The estimator's mathematics; see the paper's equations (3) to (6), (12) and (13)."""

import math

import pytest
import torch

from glue_cli.foundation.seeds import generator
from glue_cli.methods.spsa import spsa
from glue_cli.methods.steps.directions import draw_directions
from glue_cli.methods.steps.spsa_steps import estimate_from, probe_betas
from glue_cli.spec.schema import MixSpec

KINDS = ["gaussian", "rademacher"]
N_DRAWS = 600
SHAPES = [(1, 2), (1, 5), (1, 16), (2, 2), (3, 5)]  # G and K


def draw(shape, *purpose):
    return torch.randn(shape, generator=generator(0, *purpose), dtype=torch.float64)


def centred(logits):
    return logits - logits.mean(-1, keepdim=True)


def subspace(shape, zero_sum):
    """Return the number of dimensions in which directions [G, K] lie."""
    return shape[0] * (shape[1] - 1 if zero_sum else shape[1])


def estimate_gradient(losses_at, beta, directions, *, mu, zero_sum):
    """Return the estimate by probe pairs along the directions, by the losses [2n] of all probes."""
    losses = losses_at(torch.softmax(probe_betas(beta, directions, mu=mu), -1))
    n_dimensions = subspace(beta.shape, zero_sum)
    return estimate_from(losses, directions, mu=mu, n_dimensions=n_dimensions)


def quadratic_in_beta(shape):
    """Return a loss of alphas that is quadratic in the logits of all groups, a beta, and the gradient there."""
    beta, slope, n = draw(shape, "beta"), draw(shape, "slope"), shape[0] * shape[1]
    matrix = torch.stack([draw(n, "row", k) for k in range(n)])
    curvature = matrix @ matrix.T / n

    def losses_at(alphas):
        z = centred(alphas.log()).flatten(1)
        return z @ slope.flatten() + (z @ curvature * z).sum(-1) / 2

    gradient = slope + (curvature @ centred(beta).flatten()).view(shape)
    return losses_at, beta, centred(gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("mu", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (3, 4)])
def test_slope_is_exact_on_a_loss_linear_in_beta(kind, zero_sum, mu, shape):
    beta, slope = draw(shape, "beta"), draw(shape, "slope")
    directions = draw_directions(3, shape, kind, zero_sum=zero_sum, generator=generator(7))
    found = estimate_gradient(
        lambda alphas: (centred(alphas.log()) * slope).sum((1, 2)), beta, directions, mu=mu, zero_sum=zero_sum
    )
    along = (directions * centred(slope)).sum((1, 2), keepdim=True)
    wanted = subspace(shape, zero_sum) * along * directions
    torch.testing.assert_close(found.gradient, wanted.mean(0), rtol=1e-9, atol=1e-9)
    assert found.loss == pytest.approx((centred(beta) * slope).sum().item())  # the two sides cancel


@pytest.mark.parametrize("shape", [(1, 6), (2, 3)])
def test_a_basis_of_directions_gives_the_gradient(shape):
    losses_at, beta, gradient = quadratic_in_beta(shape)
    basis = torch.linalg.qr(torch.stack([draw(6, "basis", k) for k in range(6)]))[0].view(6, *shape)
    found = estimate_gradient(losses_at, beta, basis, mu=0.5, zero_sum=False)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-9, atol=1e-9)


def test_zero_sum_estimates_are_zero_sum_by_group():
    losses_at, beta, _ = quadratic_in_beta((3, 4))
    directions = draw_directions(5, (3, 4), "gaussian", zero_sum=True, generator=generator(0))
    found = estimate_gradient(losses_at, beta, directions, mu=0.3, zero_sum=True)
    assert found.gradient.sum(1).abs().max() < 1e-12 < 1e-3 < found.gradient.abs().min()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 16])
def test_mean_and_covariance_on_a_quadratic(kind, zero_sum, shape, n):
    """On a quadratic of beta the two-point difference is exact for any mu, so eq. (13) holds without O(mu^2).

    With c the factor, G K or G (K - 1), and E[u u^T] = I/c (on the subspace): E|c (u . grad) u|^2 = c^2 E(u . grad)^2
    = c |grad|^2, since |u| = 1, for Gaussian and Rademacher directions alike; less |mean|^2 that is (c - 1) |grad|^2.
    """
    losses_at, beta, gradient = quadratic_in_beta(shape)
    directions = draw_directions(N_DRAWS * n, shape, kind, zero_sum=zero_sum, generator=generator(n, kind))
    found = torch.stack(
        [
            estimate_gradient(losses_at, beta, some, mu=0.3, zero_sum=zero_sum).gradient
            for some in directions.view(N_DRAWS, n, *shape)
        ]
    )
    errors = found - gradient
    standard_errors = errors.std(0) / math.sqrt(N_DRAWS)
    assert (errors.mean(0).abs() <= 5 * standard_errors + 1e-9).all()
    squares = errors.square().sum((1, 2))
    wanted = (subspace(shape, zero_sum) - 1) / n * gradient.square().sum()  # eq. (13)
    assert (squares.mean() - wanted).abs() <= 5 * squares.std() / math.sqrt(N_DRAWS) + 1e-9


def quadratic_in_alpha(shape):
    """Return a loss quadratic in alpha = softmax(beta), a beta, and the gradient with respect to it."""
    n = shape[0] * shape[1]
    matrix = torch.stack([draw(n, "row", k) for k in range(n)])
    slope, beta = draw(n, "slope"), draw(shape, "beta").requires_grad_()

    def losses_at(alphas):
        flat = alphas.flatten(1)
        return flat @ slope + (flat @ matrix).square().sum(-1)

    losses_at(torch.softmax(beta, 1)[None]).sum().backward()
    return losses_at, beta.detach(), beta.grad


@pytest.mark.parametrize("kind", KINDS)
def test_zero_sum_directions_have_no_variance_at_two_experts(kind):
    losses_at, beta, gradient = quadratic_in_alpha((1, 2))
    for directions in draw_directions(20, (1, 2), kind, zero_sum=True, generator=generator(0))[:, None]:
        found = estimate_gradient(losses_at, beta, directions, mu=1e-4, zero_sum=True)
        torch.testing.assert_close(found.gradient, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 5), (1, 16), (2, 2), (3, 5)])
@pytest.mark.parametrize("n", [1, 4])
def test_zero_sum_directions_on_a_quadratic_of_alpha(kind, shape, n):
    losses_at, beta, gradient = quadratic_in_alpha(shape)
    assert gradient.sum(1).abs().max() < 1e-12  # the softmax's null directions
    directions = draw_directions(N_DRAWS * n, shape, kind, zero_sum=True, generator=generator(n, kind))
    found = torch.stack(
        [
            estimate_gradient(losses_at, beta, some, mu=1e-4, zero_sum=True).gradient
            for some in directions.view(N_DRAWS, n, *shape)
        ]
    )
    errors = found - gradient
    tolerance = 1e-6 * gradient.norm()  # for the O(mu^2)
    assert (errors.mean(0).abs() <= 5 * errors.std(0) / math.sqrt(N_DRAWS) + tolerance).all()
    squares = errors.square().sum((1, 2))
    wanted = (subspace(shape, zero_sum=True) - 1) / n * gradient.square().sum()
    assert (squares.mean() - wanted).abs() <= 5 * squares.std() / math.sqrt(N_DRAWS) + tolerance


def test_the_error_of_the_slope_falls_with_the_square_of_mu():
    losses_at, beta, gradient = quadratic_in_alpha((1, 5))
    directions = draw_directions(1, (1, 5), "gaussian", zero_sum=True, generator=generator(0))
    exact = 4 * (directions * gradient).sum() * directions

    def error(mu):
        found = estimate_gradient(losses_at, beta, directions, mu=mu, zero_sum=True)
        return (found.gradient - exact[0]).norm().item()

    assert error(0.02) / error(0.01) == pytest.approx(4, rel=0.05)


def test_all_probes_of_a_step_are_asked_for_at_once(quadratic):
    objective = quadratic([0.2, 0.3, 0.5])
    settings = MixSpec.model_validate({"steps": 4, "n_directions": 3, "validate_every": 100, "search": "plain"})
    spsa(objective, settings, seed=0)
    assert objective.probed == [(6, step) for step in range(4)]


@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [[[0.1, 0.6, 0.05, 0.25]], [[0.3, 0.7], [0.75, 0.25]]])
def test_finds_the_optimum_of_a_quadratic(quadratic, kind, zero_sum, target):
    keys = {"steps": 400, "lr": 0.05, "validate_every": 10, "patience": 1000, "search": "plain"}
    settings = MixSpec.model_validate(keys | {"directions": kind, "zero_sum": zero_sum})
    learned = spsa(quadratic(target), settings, seed=0)
    assert learned.val_loss < 1e-4 < learned.val_loss_start
    torch.testing.assert_close(learned.alpha, torch.tensor(target, dtype=torch.float64), rtol=0, atol=0.02)
