import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.methods.domains import Simplex
from glue_cli.methods.steps import shrinkage
from glue_cli.methods.steps.shrinkage import shrink

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def around(targets, curvature=1.0):
    """Return the quadratics curvature / 2 |x - target|^2 of some folds, whose targets are [F, G, K]."""
    n_folds, size = len(targets), targets[0].numel()
    curvatures = curvature / n_folds * torch.eye(size, dtype=F64).expand(n_folds, -1, -1)
    return curvatures, (curvatures @ targets.flatten(1)[..., None])[..., 0]


def corner(k, n_groups=1, n_experts=3):
    return Simplex(n_groups, n_experts).corner(k)


def uniform(n_groups=1, n_experts=3):
    return Simplex(n_groups, n_experts).uniform()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 5), st.floats(0, 1e4), st.integers(0, 2**20))
def test_estimates_are_points_of_the_domain(n_groups, n_experts, n_folds, n_examples, seed):
    domain, size = Simplex(n_groups, n_experts), n_groups * n_experts
    roots = draw(n_folds, size, size, seed=seed)
    found = shrink(
        domain, roots @ roots.mT, draw(n_folds, size, seed=seed), domain.uniform(), domain.corner(0), n_examples
    )
    assert domain.contains(found.alpha) and found.without.shape == (n_folds, n_groups, n_experts)
    assert all(domain.contains(alpha) for alpha in found.without)


def test_folds_that_agree_are_believed():
    found = shrink(Simplex(1, 3), *around(corner(2).expand(5, 1, 3)), uniform(), uniform(), n_examples=10_000)
    torch.testing.assert_close(found.alpha, corner(2), rtol=0, atol=0.02)
    torch.testing.assert_close(found.without, corner(2).expand(5, 1, 3), rtol=0, atol=0.02)


def test_folds_that_contradict_each_other_are_drawn_to_the_anchor():
    targets = torch.stack([corner(fold % 3) for fold in range(5)])
    anchor = torch.tensor([[0.2, 0.2, 0.6]], dtype=F64)
    found = shrink(Simplex(1, 3), *around(targets), anchor, anchor, n_examples=10_000)
    torch.testing.assert_close(found.alpha, anchor, rtol=0, atol=0.05)


def test_one_fold_says_nothing_of_strengths_and_is_not_drawn():
    found = shrink(Simplex(1, 3), *around(corner(2)[None]), uniform(), uniform(), n_examples=3)
    torch.testing.assert_close(found.alpha, corner(2), rtol=0, atol=2e-3)
    assert torch.equal(found.without, found.alpha[None])


def test_an_estimate_without_a_fold_does_not_know_that_fold(monkeypatch):
    monkeypatch.setattr(shrinkage, "_STRENGTHS", (0.0,))  # or the weights of the strengths would know it
    targets = draw(4, 1, 3).softmax(-1)
    others = targets.clone()
    others[1] = corner(0)
    one, other = (shrink(Simplex(1, 3), *around(t), uniform(), uniform(), 50) for t in (targets, others))
    torch.testing.assert_close(one.without[1], other.without[1], rtol=0, atol=1e-6)
    assert (one.without[0] - other.without[0]).abs().max() > 0.01


def test_weights_are_the_likelihoods_of_what_was_held_out(monkeypatch):
    """By plain loops, of estimates that lie inside of the simplex, where they have a closed form."""
    monkeypatch.setattr(shrinkage, "_STRENGTHS", strengths := (0.0, 1.0))
    monkeypatch.setattr(shrinkage, "_DAMPING", 0.0)
    targets, n_examples = 0.2 + 0.4 * draw(3, 1, 3).softmax(-1), 40.0
    targets = targets / targets.sum(-1, keepdim=True)
    curvature, linear = around(targets)
    found = shrink(Simplex(1, 3), curvature, linear, uniform(), uniform(), n_examples)
    estimates, likelihoods = [], []
    for strength in strengths:
        loss = 0.0
        for fold, target in enumerate(targets):
            rest = targets[[f for f in range(3) if f != fold]].mean(0)
            alpha = (rest + strength * uniform()) / (1 + strength)
            loss += ((alpha - target).square().sum() / 2 - target.square().sum() / 2).item() / 3
        estimates.append((targets.mean(0) + strength * uniform()) / (1 + strength))
        likelihoods.append(math.exp(-n_examples * loss))
    wanted = sum(w * alpha for w, alpha in zip(likelihoods, estimates, strict=True)) / sum(likelihoods)
    torch.testing.assert_close(found.alpha, wanted, rtol=0, atol=1e-5)


def test_groups_that_differ_by_noise_alone_are_drawn_together():
    noise = 0.3 * draw(5, 4, 3)
    targets = torch.tensor([0.6, 0.3, 0.1], dtype=F64) + noise - noise.mean(-1, keepdim=True)
    domain, anchor = Simplex(4, 3), uniform(4)
    found = shrink(domain, *around(targets), anchor, anchor, n_examples=200).alpha
    loose = domain.minimise(*(part.sum(0) for part in around(targets)), anchor)
    assert (found - found.mean(0)).norm() < 0.5 * (loose - loose.mean(0)).norm()


def test_groups_that_differ_in_every_fold_stay_apart():
    targets = torch.stack([torch.cat([corner(0), corner(2)])] * 5)
    found = shrink(Simplex(2, 3), *around(targets), uniform(2), uniform(2), n_examples=10_000)
    torch.testing.assert_close(found.alpha, targets[0], rtol=0, atol=0.05)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 2, 1, 0]])
def test_the_order_of_the_folds_says_nothing(order):
    curvature, linear = around(draw(4, 2, 3).softmax(-1))
    anchor = uniform(2)
    one = shrink(Simplex(2, 3), curvature, linear, anchor, anchor, 30)
    other = shrink(Simplex(2, 3), curvature[order], linear[order], anchor, anchor, 30)
    torch.testing.assert_close(other.alpha, one.alpha, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.without, one.without[order], rtol=0, atol=1e-6)
