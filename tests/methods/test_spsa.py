"""The estimator's mathematics; see the paper's equations (3) to (6), (12) and (13)."""

import math

import pytest
import torch

from glue_cli.core.seeds import generator
from glue_cli.core.spec import MixSpec
from glue_cli.methods.directions import draw_directions
from glue_cli.methods.spsa import estimate_gradient, spsa

KINDS = ["gaussian", "rademacher"]
N_DRAWS = 600


def centred_logits(alphas):
    """Return the logits of alphas [m, K] with zero sum: a loss of a blend cannot know more of them."""
    logits = alphas.log()
    return logits - logits.mean(-1, keepdim=True)


def draw(n_experts, *purpose):
    return torch.randn(n_experts, generator=generator(0, *purpose), dtype=torch.float64)


def quadratic_in_beta(n_experts):
    """Return a loss of alphas that is quadratic in the logits, a beta, and the gradient there."""
    beta, slope = draw(n_experts, "beta"), draw(n_experts, "slope")
    matrix = torch.stack([draw(n_experts, "row", k) for k in range(n_experts)])
    curvature = matrix @ matrix.T / n_experts

    def losses_at(alphas):
        z = centred_logits(alphas)
        return z @ slope + (z @ curvature * z).sum(-1) / 2

    gradient = slope + curvature @ (beta - beta.mean())
    return losses_at, beta, gradient - gradient.mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("mu", [1e-3, 0.1, 3.0])
def test_slope_is_exact_on_a_loss_linear_in_beta(kind, zero_sum, mu):
    n_experts = 5
    beta, slope = draw(n_experts, "beta"), draw(n_experts, "slope")
    directions = draw_directions(3, n_experts, kind, zero_sum=zero_sum, generator=generator(7))
    found = estimate_gradient(
        lambda alphas: centred_logits(alphas) @ slope, beta, directions, mu=mu, zero_sum=zero_sum
    )
    factor = n_experts - 1 if zero_sum else n_experts
    wanted = factor * (directions @ (slope - slope.mean()))[:, None] * directions
    torch.testing.assert_close(found.gradient, wanted.mean(0), rtol=1e-9, atol=1e-9)
    assert found.loss == pytest.approx(((beta - beta.mean()) @ slope).item())  # the two sides cancel


def test_a_basis_of_directions_gives_the_gradient():
    losses_at, beta, gradient = quadratic_in_beta(6)
    basis = torch.linalg.qr(torch.stack([draw(6, "basis", k) for k in range(6)]))[0]
    found = estimate_gradient(losses_at, beta, basis, mu=0.5, zero_sum=False)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("n_experts", [2, 5, 16])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_mean_and_covariance_on_a_quadratic(kind, zero_sum, n_experts, n):
    """On a quadratic of beta the two-point difference is exact for any mu, so eq. (13) holds without O(mu^2).

    With c the factor, K or K - 1, and E[u u^T] = I/c (on the subspace): E|c (u . grad) u|^2 = c^2 E(u . grad)^2 =
    c |grad|^2, since |u| = 1, for Gaussian and Rademacher directions alike; less |mean|^2 that is (c - 1) |grad|^2.
    """
    losses_at, beta, gradient = quadratic_in_beta(n_experts)
    directions = draw_directions(N_DRAWS * n, n_experts, kind, zero_sum=zero_sum, generator=generator(n, kind))
    found = torch.stack(
        [
            estimate_gradient(losses_at, beta, some, mu=0.3, zero_sum=zero_sum).gradient
            for some in directions.view(N_DRAWS, n, n_experts)
        ]
    )
    errors = found - gradient
    standard_errors = errors.std(0) / math.sqrt(N_DRAWS)
    assert (errors.mean(0).abs() <= 5 * standard_errors + 1e-9).all()
    squares = errors.square().sum(1)
    wanted = (n_experts - 2 if zero_sum else n_experts - 1) / n * gradient.square().sum()  # eq. (13)
    assert (squares.mean() - wanted).abs() <= 5 * squares.std() / math.sqrt(N_DRAWS) + 1e-9


def quadratic_in_alpha(n_experts):
    """Return a loss quadratic in alpha = softmax(beta), a beta, and the gradient with respect to it."""
    matrix = torch.stack([draw(n_experts, "row", k) for k in range(n_experts)])
    slope, beta = draw(n_experts, "slope"), draw(n_experts, "beta").requires_grad_()

    def losses_at(alphas):
        return alphas @ slope + (alphas @ matrix).square().sum(-1)

    losses_at(torch.softmax(beta, 0)[None]).sum().backward()
    return losses_at, beta.detach(), beta.grad


@pytest.mark.parametrize("kind", KINDS)
def test_zero_sum_directions_have_no_variance_at_two_experts(kind):
    losses_at, beta, gradient = quadratic_in_alpha(2)
    for directions in draw_directions(20, 2, kind, zero_sum=True, generator=generator(0))[:, None]:
        found = estimate_gradient(losses_at, beta, directions, mu=1e-4, zero_sum=True)
        torch.testing.assert_close(found.gradient, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_experts", [5, 16])
@pytest.mark.parametrize("n", [1, 4])
def test_zero_sum_directions_on_a_quadratic_of_alpha(kind, n_experts, n):
    losses_at, beta, gradient = quadratic_in_alpha(n_experts)
    assert abs(gradient.sum()) < 1e-12  # the softmax's null direction
    directions = draw_directions(N_DRAWS * n, n_experts, kind, zero_sum=True, generator=generator(n, kind))
    found = torch.stack(
        [
            estimate_gradient(losses_at, beta, some, mu=1e-4, zero_sum=True).gradient
            for some in directions.view(N_DRAWS, n, n_experts)
        ]
    )
    errors = found - gradient
    tolerance = 1e-6 * gradient.norm()  # for the O(mu^2)
    assert (errors.mean(0).abs() <= 5 * errors.std(0) / math.sqrt(N_DRAWS) + tolerance).all()
    squares = errors.square().sum(1)
    wanted = (n_experts - 2) / n * gradient.square().sum()
    assert (squares.mean() - wanted).abs() <= 5 * squares.std() / math.sqrt(N_DRAWS) + tolerance


def test_the_error_of_the_slope_falls_with_the_square_of_mu():
    losses_at, beta, gradient = quadratic_in_alpha(5)
    directions = draw_directions(1, 5, "gaussian", zero_sum=True, generator=generator(0))
    exact = 4 * (directions @ gradient)[:, None] * directions

    def error(mu):
        found = estimate_gradient(losses_at, beta, directions, mu=mu, zero_sum=True)
        return (found.gradient - exact[0]).norm().item()

    assert error(0.02) / error(0.01) == pytest.approx(4, rel=0.05)


def test_all_probes_of_a_step_are_asked_for_at_once(quadratic):
    objective = quadratic([0.2, 0.3, 0.5])
    settings = MixSpec.model_validate({"steps": 4, "n_directions": 3, "validate_every": 100})
    spsa(objective, settings, seed=0)
    assert objective.probed == [(6, step) for step in range(4)]


@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_optimum_of_a_quadratic(quadratic, kind, zero_sum):
    target = [0.1, 0.6, 0.05, 0.25]
    keys = {"steps": 400, "lr": 0.05, "validate_every": 10, "patience": 1000}
    settings = MixSpec.model_validate(keys | {"directions": kind, "zero_sum": zero_sum})
    learned = spsa(quadratic(target), settings, seed=0)
    assert learned.val_loss < 1e-4 < learned.val_loss_start and learned.alpha == pytest.approx(target, abs=0.02)


def test_one_expert_needs_no_forward(quadratic):
    objective = quadratic([1.0])
    learned = spsa(objective, MixSpec.model_validate({}), seed=0)
    assert learned.alpha == [1.0] and learned.n_steps == 0
    assert objective.probed == objective.validated == []
