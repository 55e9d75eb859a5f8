import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glue_cli.methods.domains import Simplex

SEEDS = st.integers(0, 2**32)


def minimise_quadratic(curvature, linear, start):
    return Simplex(*start.shape).minimise(curvature, linear, start)


def draws(seed):
    """Return a function that draws normal numbers of a shape, float64."""
    random = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)


def corner(n_groups, n_experts):
    return torch.eye(n_experts, dtype=torch.float64)[:1].repeat(n_groups, 1)


def uniform(n_groups, n_experts):
    return torch.full((n_groups, n_experts), 1 / n_experts, dtype=torch.float64)


def assert_on_the_simplex(alpha):
    assert (alpha >= 0).all()
    torch.testing.assert_close(alpha.sum(-1), torch.ones(len(alpha), dtype=torch.float64), rtol=0, atol=1e-12)


def value(curvature, linear, alpha):
    x = alpha.flatten()
    return (x @ curvature @ x / 2 - linear @ x).item()


def least_value(curvature, linear, n_groups, n_experts):
    """Return the least value by trying every set of experts that may have weight, [G] sets at once."""
    supports = [s for n in range(1, n_experts + 1) for s in itertools.combinations(range(n_experts), n)]
    values = []
    for chosen in itertools.product(supports, repeat=n_groups):
        places = [g * n_experts + k for g, support in enumerate(chosen) for k in support]
        sums = torch.zeros(n_groups, len(places), dtype=torch.float64)
        for i, place in enumerate(places):
            sums[place // n_experts, i] = 1
        zeros = torch.zeros(n_groups, n_groups, dtype=torch.float64)
        system = torch.cat([torch.cat([curvature[places][:, places], sums.T], 1), torch.cat([sums, zeros], 1)])
        wanted = torch.cat([linear[places], torch.ones(n_groups, dtype=torch.float64)])
        part = (torch.linalg.pinv(system) @ wanted)[: len(places)]
        if (part >= -1e-12).all() and (sums @ part - 1).abs().max() < 1e-9:
            x = torch.zeros(n_groups * n_experts, dtype=torch.float64)
            x[places] = part
            values.append(value(curvature, linear, x))
    return min(values)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([(1, 1), (1, 2), (1, 5), (2, 2), (2, 3)]), st.integers(0, 6), st.floats(-3, 3), SEEDS)
@example((1, 4), 3, 0.0, 2030)  # momentum leads out of a corner on the way, and back
def test_no_point_is_lower(shape, rank, log_scale, seed):
    """The curvature may be singular, or zero; the bound is that of accelerated projected gradients."""
    draw, n = draws(seed), shape[0] * shape[1]
    factor = draw(rank, n)
    curvature, linear = 10**log_scale * factor.T @ factor, 10**log_scale * draw(n)
    for start in (uniform(*shape), corner(*shape)):
        alpha = minimise_quadratic(curvature, linear, start)
        assert_on_the_simplex(alpha)
        bound = 2 * torch.linalg.matrix_norm(curvature, 2).item() * 2 * shape[0] / 500**2
        assert value(curvature, linear, alpha) <= least_value(curvature, linear, *shape) + bound + 1e-8 * 10**log_scale


@pytest.mark.parametrize("shape", [(1, 16), (1, 64), (3, 20)])
def test_no_slope_leads_down_from_the_optimum_of_a_stiff_quadratic(shape):
    """With many experts that are alike, damped as Gauss-Newton's: where there is weight, the slope is the least."""
    draw, n = draws(0), shape[0] * shape[1]
    for _ in range(6):
        factor = 2 * draw(3 * n, 1) + draw(3 * n, n) * draw(n).abs().clamp_max(1)
        curvature = factor.T @ factor
        curvature /= curvature.diagonal().mean()
        curvature += 0.03 * torch.eye(n, dtype=torch.float64)
        linear = curvature @ torch.softmax(2 * draw(*shape), -1).flatten() + 0.02 * draw(n)
        alpha = minimise_quadratic(curvature, linear, uniform(*shape))
        assert_on_the_simplex(alpha)
        slopes = (curvature @ alpha.flatten() - linear).view_as(alpha)
        assert ((alpha * slopes).sum(1) - slopes.amin(1)).max() < 3e-5


def test_an_optimum_inside_is_found_from_a_corner():
    curvature = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], dtype=torch.float64)
    wanted = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    found = minimise_quadratic(curvature, curvature @ wanted[0], corner(1, 3))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-30])
def test_without_curvature_all_goes_to_the_steepest(scale):
    curvature = scale * torch.eye(3, dtype=torch.float64)
    linear = torch.tensor([0.0, 1e-3, -5.0], dtype=torch.float64)
    assert minimise_quadratic(curvature, linear, uniform(1, 3)).tolist() == [[0, 1, 0]]


def test_a_flat_quadratic_stays_where_it_is():
    start = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    found = minimise_quadratic(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), start)
    torch.testing.assert_close(found, start, rtol=0, atol=1e-15)


def test_groups_that_are_not_coupled_move_as_they_would_alone():
    draw = draws(0)
    factors = draw(2, 6, 3)
    curvatures, linear = factors.mT @ factors, draw(2, 3)
    together = minimise_quadratic(torch.block_diag(*curvatures), linear.flatten(), uniform(2, 3))
    alone = [minimise_quadratic(c, b, uniform(1, 3)) for c, b in zip(curvatures, linear, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
