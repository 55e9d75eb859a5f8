"""Where alpha may be, and where it may go from there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.methods.domains import Simplex

SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 7))


def point(shape, seed, zeros=False):
    """Return a random point of the simplex, with some coefficients of 0 if asked for."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape, generator=random, dtype=torch.float64)
    if zeros:
        weights[:, 1:] *= torch.rand(shape[0], shape[1] - 1, generator=random) < 0.5
    return weights / weights.sum(1, keepdim=True)


def nearest_by_bisection(x):
    """Return the nearest point on the simplex to x [K]: x less the one level at which what is left sums to 1."""
    low, high = x.min() - 1, x.max()
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if (x - level).clamp_min(0).sum() > 1 else (low, level)
    return (x - low).clamp_min(0)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.lists(st.floats(-2, 2), min_size=8, max_size=8))
@settings(deadline=None)
def test_projection_finds_the_nearest_point_of_each_row(far, near):
    rows = torch.tensor([far, near[: len(far)]], dtype=torch.float64)
    found = Simplex(*rows.shape).project(rows)
    torch.testing.assert_close(found, torch.stack([nearest_by_bisection(row) for row in rows]), rtol=0, atol=1e-9)
    torch.testing.assert_close(Simplex(*rows.shape).project(found), found, rtol=0, atol=1e-15)


def test_projection_of_large_numbers():
    rows = torch.tensor([[1e20, 0, 1e20], [-1e300, 1e10, 1e10 - 0.5]], dtype=torch.float64)
    assert Simplex(*rows.shape).project(rows).tolist() == [[0.5, 0, 0.5], [0, 0.75, 0.25]]


@given(SHAPES, st.integers(0, 2**32))
@settings(deadline=None)
def test_every_point_that_is_offered_lies_in_the_domain(shape, seed):
    domain = Simplex(*shape)
    alpha = point(shape, seed)
    experts = [seed % shape[1], (seed // 7) % shape[1]]
    points = [domain.uniform(), domain.corner(experts[0]), domain.mean_of(experts), domain.project(3 * alpha - 1)]
    points += [domain.from_logits(100 * alpha.log()), domain.without(alpha, experts[0])]
    assert all(domain.contains(found) and found.dtype == torch.float64 for found in points)
    assert domain.uniform().tolist() == [[1 / shape[1]] * shape[1]] * shape[0]
    assert domain.corner(experts[0])[:, experts[0]].tolist() == [1] * shape[0]


@pytest.mark.parametrize(
    "wrong",
    [[[0.5, 0.5]], [[0.5, 0.4, 0.1]] * 2, [[0.6, 0.5, -0.1]], [[0.3, 0.3, 0.3]], [[float("nan"), 0.5, 0.5]]],
)
def test_what_is_no_point_of_the_domain(wrong):
    assert not Simplex(1, 3).contains(torch.tensor(wrong, dtype=torch.float64))


@given(SHAPES, st.integers(0, 2**32))
@settings(deadline=None)
def test_logits_lead_back_unless_a_coefficient_is_tiny(shape, seed):
    domain, alpha = Simplex(*shape), point(shape, seed)
    back = domain.from_logits(domain.logits_of(alpha))
    assert domain.contains(back)
    if alpha.min() >= 0.01 / shape[1]:
        torch.testing.assert_close(back, alpha, rtol=1e-12, atol=0)
    corner = domain.from_logits(domain.logits_of(domain.corner(0)))
    assert 0 < corner[:, 1:].min() and corner[:, 0].min() > 0.98


@given(SHAPES, st.integers(0, 2**32))
@settings(deadline=None)
def test_the_gradient_by_logits_is_that_of_autograd(shape, seed):
    domain, beta = Simplex(*shape), point(shape, seed).log().requires_grad_()
    slopes = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alpha = domain.from_logits(beta)
    (alpha * slopes).sum().backward()
    found = domain.gradient_by_logits(alpha.detach(), slopes)
    torch.testing.assert_close(found, beta.grad, rtol=1e-9, atol=1e-12)


def test_without_an_expert_the_others_keep_their_proportions():
    domain = Simplex(2, 3)
    alpha = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(
        domain.without(alpha, 0), torch.tensor([[0, 0.6, 0.4], [0, 0.25, 0.75]], dtype=torch.float64)
    )
    assert domain.without(domain.corner(1), 1) is None


@given(SHAPES, st.integers(0, 2**32), st.booleans())
@settings(deadline=None)
def test_the_slopes_towards_all_experts_follow_from_those_of_all_but_one(shape, seed, zeros):
    domain, alpha = Simplex(*shape), point(shape, seed, zeros)
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    towards = (slope - (alpha * slope).sum(1, keepdim=True)).flatten()  # slope . (e_k - alpha)
    coordinates = domain.coordinates(alpha)
    assert len(coordinates) == domain.n_directions == domain.n_logit_dimensions(zero_sum=True)
    assert domain.n_logit_dimensions(zero_sum=False) == alpha.numel()
    found = domain.spread(alpha, coordinates) @ towards[coordinates]
    torch.testing.assert_close(found, towards, rtol=1e-9, atol=1e-12)
