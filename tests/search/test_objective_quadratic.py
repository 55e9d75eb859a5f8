"""The loss to second order along directions."""

import itertools
from dataclasses import replace

import pytest
import torch
from small_nets import (
    ALPHA,
    ALPHA_OF_TWO,
    Attentive,
    N,
    Noisy,
    Recurrent,
    Speaking,
    batch_of,
    blended,
    conv_net,
    in_turn,
    normed,
    wide_outputs,
)
from torch.nn import functional as F

from glue_cli.blend.recipe import PLAIN
from glue_cli.search import points
from glue_cli.search.bank.matrix import Tile
from glue_cli.search.points import towards_experts
from glue_cli.search.reach import Reach


def quadratic(objective, *arguments):
    """Return the loss to second order, of all examples together."""
    found = objective.quadratic(*arguments)
    return replace(found, gradient=found.gradient.sum(0), curvature=found.curvature.sum(0))


def by_matrices(model, experts, alpha, coordinates, radius, batch, recipe=PLAIN, loss="cross_entropy"):
    """Return the gradient and the curvature along directions, as products of Jacobians by secants, in float64."""
    z = wide_outputs(model, blended(experts, alpha, recipe), batch)
    n_terms, changes = len(z), []
    for group, k in (divmod(place, alpha.shape[1]) for place in coordinates):
        end = alpha.clone()
        end[group] = (1 - radius) * alpha[group] + radius * torch.eye(alpha.shape[1], dtype=torch.float64)[k]
        changes.append((wide_outputs(model, blended(experts, end, recipe), batch) - z) / radius)
    by_output = torch.stack(changes, 1)  # [N, n, n_outputs]
    if loss == "mse":
        residuals, factors = 2 * (z - batch[1]) / z.shape[1], torch.eye(z.shape[1]).double() * 2 / z.shape[1]
        factors = factors.expand(n_terms, -1, -1)
    else:
        p = z.softmax(1)
        residuals, factors = p - F.one_hot(batch[1], z.shape[1]), p.diag_embed() - p[:, :, None] * p[:, None]
    gradient = torch.einsum("inc,ic->n", by_output, residuals) / n_terms
    return gradient, torch.einsum("inc,icd,imd->nm", by_output, factors, by_output) / n_terms


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("make", [conv_net, Recurrent, Attentive, normed])
@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_second_order_is_that_of_the_outputs_at_the_ends(objective_of, make, loss, radius):
    objective, model, experts = objective_of(make, loss)
    found = quadratic(objective, ALPHA, torch.arange(3), radius, 2)
    gradient, curvature = by_matrices(model, experts, ALPHA, range(3), radius, batch_of(2, loss), loss=loss)
    assert found.loss == pytest.approx(objective.probe_losses(ALPHA[None], 2).item(), rel=1e-6)
    assert (found.gradient - gradient).norm() < 1e-3 * gradient.norm()
    assert (found.curvature - curvature).norm() < 1e-3 * curvature.norm()


def test_squared_errors_are_in_nats_by_their_variance(objective_of):
    """-log of a normal distribution's density is error^2 / (2 variance); cross-entropy is in nats as it is."""
    assert objective_of(conv_net, "cross_entropy")[0].nat_at(3.7) == 1
    objective = objective_of(conv_net, "mse")[0]
    assert objective.nat_at(3.7) == 7.4 and objective.nat_at(0.0) == 1
    found = quadratic(objective, ALPHA, torch.arange(3), 0.1, 2)
    assert found.nat == 2 * found.loss


@pytest.mark.parametrize("make", [conv_net, Attentive])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_slopes_near_the_blend_are_the_gradient(objective_of, make, n_groups):
    """That goes through the running statistics as well; the constant of both is the mean over alpha."""
    objective, _, _ = objective_of(make, recipe=in_turn(make, n_groups))
    alpha = ALPHA_OF_TWO[:n_groups]
    found = quadratic(objective, alpha, torch.arange(alpha.numel()), 1e-3, 1)
    loss, by_alpha = objective.gradient(alpha, 1)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert (found.gradient.view_as(alpha) - by_alpha).norm() < 0.02 * by_alpha.norm()


def test_some_directions_of_two_groups_in_any_order(objective_of):
    recipe = in_turn(conv_net, 2)
    objective, model, experts = objective_of(conv_net, recipe=recipe)
    coordinates = torch.tensor([4, 0, 5])
    found = quadratic(objective, ALPHA_OF_TWO, coordinates, 0.2, 1)
    gradient, curvature = by_matrices(
        model, experts, ALPHA_OF_TWO, coordinates.tolist(), 0.2, batch_of(1), recipe=recipe
    )
    assert (found.gradient - gradient).norm() < 1e-3 * gradient.norm()
    assert (found.curvature - curvature).norm() < 1e-3 * curvature.norm()
    whole = quadratic(objective, ALPHA_OF_TWO, torch.arange(6), 0.2, 1)
    torch.testing.assert_close(found.gradient, whole.gradient[coordinates], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.curvature, whole.curvature[coordinates][:, coordinates], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_of_a_large_model_each_expert_is_read_alone(objective_of, monkeypatch, n_groups):
    recipe, alpha = in_turn(conv_net, n_groups), ALPHA_OF_TWO[:n_groups]
    (objective, _, _), (objective_of_its_own, _, _) = (objective_of(conv_net, recipe=recipe) for _ in range(2))
    coordinates = torch.arange(1, alpha.numel())
    wanted = quadratic(objective_of_its_own, alpha, coordinates, 0.1, 0)
    monkeypatch.setattr(points, "_PASS_BYTES", 0)
    blend, blended = Tile.blend, []
    monkeypatch.setattr(
        Tile, "blend", lambda tile, alphas, out: (blended.append(len(alphas)), blend(tile, alphas, out))
    )
    found = quadratic(objective, alpha, coordinates, 0.1, 0)
    assert blended == [1] * n_groups and len(objective._blends._rows._rows) == 2
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    torch.testing.assert_close(found.gradient, wanted.gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.curvature, wanted.curvature, rtol=1e-3, atol=1e-5)


def test_an_end_sees_the_draws_of_the_point(objective_of):
    objective, _, _ = objective_of(Noisy)
    alpha = torch.eye(3, dtype=torch.float64)[1:2]
    found = quadratic(objective, alpha, torch.arange(3), 0.5, 1)  # towards the second expert nothing changes
    assert found.gradient[1].abs() < 1e-4 < found.gradient[[0, 2]].abs().min()
    assert found.curvature[1].abs().max() < 1e-4 < found.curvature.diagonal()[[0, 2]].min()


def test_the_curvature_of_tokens_is_drawn_by_step_and_seed(objective_of, monkeypatch):
    inputs, tokens = batch_of(0)[0], torch.randint(0, 40, (N, 2), generator=torch.Generator().manual_seed(0))
    curvatures = []
    for seed in (0, 1):
        objective, _, _ = objective_of(Speaking, seed=seed)
        fixed = replace(objective._minibatches, at_step=lambda step: (inputs, tokens))
        monkeypatch.setattr(objective, "_minibatches", fixed)
        first, again, other = (quadratic(objective, ALPHA, torch.arange(3), 0.1, step) for step in (0, 0, 1))
        assert torch.equal(first.curvature, again.curvature)
        assert torch.equal(first.gradient, other.gradient)
        curvatures += [first.curvature, other.curvature]
    for one, other in itertools.combinations(curvatures, 2):
        assert 0 < (one - other).norm() < 0.3 * one.norm()


@pytest.mark.parametrize("radius", [0.01, 0.3, 1.0])
def test_points_on_the_way_to_experts(radius):
    before = ALPHA_OF_TWO.clone()
    found = towards_experts(ALPHA_OF_TWO, torch.tensor([5, 0, 1]), radius)
    assert torch.equal(ALPHA_OF_TWO, before)
    for end, (group, k) in zip(found, [(1, 2), (0, 0), (0, 1)], strict=True):
        expert = ALPHA_OF_TWO.clone()
        expert[group] = torch.eye(3, dtype=torch.float64)[k]
        torch.testing.assert_close(end, ALPHA_OF_TWO.lerp(expert, radius), rtol=0, atol=1e-15)


@pytest.mark.parametrize("pass_bytes", [0, 1 << 26])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_each_direction_has_its_own_end_and_that_may_lie_beyond_the_expert(
    objective_of, monkeypatch, pass_bytes, n_groups
):
    monkeypatch.setattr(points, "_PASS_BYTES", pass_bytes)
    objective, _, _ = objective_of(Attentive, recipe=in_turn(Attentive, n_groups))
    alpha, coordinates = ALPHA_OF_TWO[:n_groups], torch.arange(3 * n_groups).flip(0)
    radii = torch.tensor([0.03, 0.5, 1.5, 0.2, 4.0, 1.0], dtype=torch.float64)[: len(coordinates)]
    at, *ends = objective._blends.towards(alpha, coordinates, radii, batch_of(1), 1)
    for end, coordinate, radius in zip(ends, coordinates, radii.tolist(), strict=True):
        other_at, other = objective._blends.towards(alpha, coordinate[None], radius, batch_of(1), 1)
        torch.testing.assert_close(at, other_at, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(end, other, rtol=1e-4, atol=1e-5)


def test_secants_are_divided_by_their_own_radii(objective_of):
    objective, _, _ = objective_of(conv_net)
    far = Reach(torch.tensor([0.01, 0.5, 0.2], dtype=torch.float64), 0.0, is_short=False)
    objective._reach = far
    found = quadratic(objective, ALPHA, torch.arange(3), 0.03, 1)
    objective._reach = None
    for k, radius in enumerate([0.03, 0.5, 0.2]):
        alone = quadratic(objective, ALPHA, torch.tensor([k]), radius, 1)
        assert found.gradient[k].item() == pytest.approx(alone.gradient.item(), rel=1e-4)
        assert found.curvature[k, k].item() == pytest.approx(alone.curvature.item(), rel=1e-4)
