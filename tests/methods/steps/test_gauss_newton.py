import math
from dataclasses import replace

import pytest
import torch
from fake_objective import Bowl
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.foundation.seeds import generator
from glue_cli.methods.domains import Simplex
from glue_cli.methods.steps.gauss_newton import GaussNewton
from glue_cli.methods.steps.strategy import make_step
from glue_cli.running.losses import example_losses
from glue_cli.search.account import Cost
from glue_cli.search.points import towards_experts
from glue_cli.search.secants import Quadratic, Secants, quadratic_of


class Linear:
    """A model whose outputs are linear in alpha: those of the experts [K, N, C], weighted.

    Args:
        batch_size: how many of the N examples a step sees; all by default.
    """

    n_groups = 1

    def __init__(self, loss, experts, targets, batch_size=None):
        self.cost, self.loss, self.batch_size, self.asked = Cost(), loss, batch_size, []
        self.experts, self.targets, self.n_experts = experts, targets, len(experts)

    def loss_at(self, alpha):
        outputs = torch.einsum("k,knc->nc", alpha.flatten().float(), self.experts)
        return example_losses(self.loss, outputs, self.targets).mean().item()

    def quadratic(self, alpha, coordinates, radius, step, *, is_tied=False):
        self.cost.forwards += 1 + len(coordinates)
        self.asked.append(coordinates.tolist())
        chosen = torch.randperm(len(self.targets), generator=generator(step))[: self.batch_size]
        alphas = torch.cat([alpha[None], towards_experts(alpha, coordinates, radius)])[:, 0].float()
        z, *ends = torch.einsum("mk,knc->mnc", alphas, self.experts[:, chosen])
        secants = Secants(self.loss, z, self.targets[chosen], radius=radius, draws=generator(step))
        for end in ends:
            secants.add(end)
        loss = example_losses(self.loss, z, self.targets[chosen]).mean().item()
        return quadratic_of(secants.slopes, secants.roots, self.targets[chosen], loss)


def regression(weights, n=50, noise=0.0, batch_size=None):
    """Return a model with squared loss whose least is at the given alpha, where noise is the loss left over."""
    experts = torch.randn(len(weights), n, 2, generator=generator(0))
    targets = torch.einsum("k,knc->nc", torch.tensor(weights), experts)
    return Linear("mse", experts, targets + noise * torch.randn(n, 2, generator=generator(1)), batch_size)


def classification(n_experts=5, n=60, scale=1.0):
    experts = scale * torch.randn(n_experts, n, 4, generator=generator(2))
    return Linear("cross_entropy", experts, torch.randint(0, 4, (n,), generator=generator(3)))


def uniform(n_experts, n_groups=1):
    return torch.full((n_groups, n_experts), 1 / n_experts, dtype=torch.float64)


class Descent(GaussNewton):
    """Gauss-Newton's steps down an objective."""

    def __init__(self, objective, start, seed):
        super().__init__(Simplex(*start.shape), start, seed=seed)
        self.objective = objective

    def step(self, step, n_forwards):
        return make_step(self, self.objective, step, n_forwards)


def start_of(objective, start=None, seed=0):
    return Descent(objective, uniform(objective.n_experts) if start is None else start, seed)


WEIGHTS = [0.5, 0.0, 0.3, 0.2, 0.0]


@pytest.mark.parametrize("start", [[0.2] * 5, [0.0, 0.9, 0.0, 0.0, 0.1]])
def test_one_step_minimises_a_squared_loss_but_for_the_damping(start):
    objective, start = regression(WEIGHTS), torch.tensor([start], dtype=torch.float64)
    descent = start_of(objective, start)
    assert descent.step(0, math.inf) == pytest.approx(objective.loss_at(start), rel=1e-4)
    wanted = torch.tensor([WEIGHTS], dtype=torch.float64)
    ways = objective.experts - torch.einsum("k,knc->nc", start[0].float(), objective.experts)
    damping = 0.03 * 2 * ways.square().mean().item()  # a share of the mean curvature
    # where loss + damping / 2 |alpha - start|^2 is least, it is no more than at the optimum, whose loss is 0
    found = objective.loss_at(descent.alpha) + damping / 2 * (descent.alpha - start).square().sum().item()
    most = damping / 2 * (wanted - start).square().sum().item()
    assert found <= 1.001 * most < 0.2 * objective.loss_at(start)


def test_the_damping_goes_as_steps_are_made():
    objective = regression(WEIGHTS)
    descent = start_of(objective)
    for step in range(6):
        descent.step(step, math.inf)
    torch.testing.assert_close(descent.alpha, torch.tensor([WEIGHTS], dtype=torch.float64), rtol=0, atol=1e-4)


def test_an_optimum_beyond_the_simplex_ends_at_its_edge():
    objective = regression([1.7, -0.7])
    descent = start_of(objective)
    for step in range(3):
        descent.step(step, math.inf)
    assert descent.alpha.tolist() == [[1, 0]]


def test_cross_entropy_falls_to_its_least():
    objective = classification()
    descent = start_of(objective)
    losses = [descent.step(step, math.inf) for step in range(12)]
    assert losses[0] > losses[1] > losses[2]
    found = objective.loss_at(descent.alpha)
    nearby = torch.cat([towards_experts(descent.alpha, torch.arange(5), radius) for radius in (0.01, 0.1, 0.5)])
    assert found < losses[0] - 0.01 and all(objective.loss_at(alpha) > found - 1e-5 for alpha in nearby)


def test_small_minibatches_add_up():
    """A minibatch of eight examples has its least elsewhere; thirty of them know better."""
    objective = regression(WEIGHTS, n=400, noise=1.0, batch_size=8)
    least = objective.loss_at(torch.tensor(WEIGHTS))
    descent, excess = start_of(objective), []
    for step in range(40):
        descent.step(step, math.inf)
        excess.append(objective.loss_at(descent.alpha) - least)
    assert max(excess[-5:]) < 0.2 * excess[0] and max(excess[-5:]) < 0.02


@pytest.mark.parametrize("unit", [2.0**-60, 2.0**-13, 2.0**20])
def test_the_unit_of_a_loss_does_not_tell_how_far_few_examples_are_trusted(unit):
    """As that of a regression's targets: five folds that half agree, in another unit."""
    targets = torch.randn(5, 4, generator=generator(4)).add(torch.arange(4)).softmax(-1)
    bowls = [Bowl(target) for target in targets.tolist()]

    def found(unit):
        descent = GaussNewton(Simplex(1, 4), uniform(4), seed=0)
        for step in range(3):
            asked = descent.ask(step, math.inf)
            parts = [bowl.quadratic(asked.alpha, asked.coordinates, asked.radius, step) for bowl in bowls]
            loss = unit * sum(part.loss for part in parts) / 5
            gradient = unit * torch.cat([part.gradient for part in parts]) / 5
            curvature = unit * torch.cat([part.curvature for part in parts]) / 5
            descent.tell(Quadratic(loss, gradient, curvature, 20, 2 * loss))
        return descent.shrunk(20)

    wanted = found(1.0)
    other = found(unit)
    torch.testing.assert_close(other.alpha, wanted.alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.without, wanted.without, rtol=0, atol=1e-5)
    assert (wanted.alpha - uniform(4)).abs().max() > 0.02


def test_old_quadratics_are_forgotten(quadratic):
    objective = quadratic([0.7, 0.2, 0.1])
    descent = start_of(objective)
    for step in range(4):
        descent.step(step, math.inf)
    torch.testing.assert_close(descent.alpha, objective.target, rtol=0, atol=1e-3)
    objective.target = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    for step in range(4, 24):
        descent.step(step, math.inf)
    torch.testing.assert_close(descent.alpha, objective.target, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("shape", "most", "least"), [((1, 2), 2, 2), ((1, 5), 5, 3), ((1, 64), 64, 33), ((2, 3), 5, 3)]
)
def test_a_step_takes_the_forwards_it_may(quadratic, shape, most, least):
    objective = quadratic(uniform(shape[1], shape[0]).tolist())
    descent = start_of(objective, uniform(shape[1], shape[0]))
    assert (descent.n_forwards, descent.least_forwards) == (most, least)
    spent = 0
    for step, (n_forwards, wanted) in enumerate(
        [(math.inf, most), (most, most), (least, least), (least + 0.5, least), (1000, most)]
    ):
        descent.step(step, n_forwards)
        assert objective.cost.forwards - spent == wanted
        spent = objective.cost.forwards


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**32))
def test_what_leads_to_the_largest_coefficient_follows_from_the_others(n_experts, seed):
    """A step without that direction is the step with all of them, of outputs that are linear in alpha."""
    objective = classification(n_experts)
    drawn = torch.rand(1, n_experts, generator=generator(seed), dtype=torch.float64)
    start = drawn / drawn.sum()
    descent = start_of(objective, start)
    descent.step(0, math.inf)
    assert objective.asked == [[k for k in range(n_experts) if k != start.argmax()]]
    whole = objective.quadratic(start, torch.arange(n_experts), 0.03, 0)
    (curvature,), (gradient,) = whole.curvature, whole.gradient
    damping = 0.03 * curvature.diagonal().mean()
    wanted = Simplex(1, n_experts).minimise(
        curvature + damping * torch.eye(n_experts),
        (curvature @ start[0] - gradient) + damping * start[0],
        start,
    )
    torch.testing.assert_close(descent.alpha, wanted, rtol=0, atol=1e-3)


def test_a_curvature_that_is_taken_for_too_large_does_not_hold_it_up(quadratic):
    """Gauss and Newton leave out what bends the outputs themselves; here they have the eightfold of what is there."""

    class Flat(quadratic):
        def quadratic(self, *arguments, **named):
            found = super().quadratic(*arguments, **named)
            return replace(found, curvature=8 * found.curvature)

    objective = Flat([0.7, 0.2, 0.1])
    descent, start = start_of(objective), uniform(3)
    for step in range(24):
        descent.step(step, math.inf)
    assert (descent.alpha - objective.target).norm() < 0.2 * (start - objective.target).norm()


def test_half_of_the_directions_lead_down_as_well():
    objective = classification(8)
    descent = start_of(objective)
    for step in range(12):
        descent.step(step, descent.least_forwards)
    assert objective.cost.forwards == 12 * 5 and {k for asked in objective.asked for k in asked} == set(range(8))
    assert all(len(set(asked)) == 4 for asked in objective.asked)
    whole = start_of(objective)
    for step in range(12):
        whole.step(step, math.inf)
    before, by_half, by_all = (objective.loss_at(a) for a in (uniform(8), descent.alpha, whole.alpha))
    assert before - by_half > 0.7 * (before - by_all) > 0.02


def test_the_directions_of_a_step_follow_from_the_seed():
    def path(seed, n_forwards):
        descent = start_of(classification(), seed=seed)
        for step in range(3):
            descent.step(step, n_forwards)
        return descent.alpha

    assert torch.equal(path(0, 4), path(0, 4)) and not torch.equal(path(0, 4), path(1, 4))
    assert torch.equal(path(0, 6), path(1, 6))  # all directions leave nothing to draw


def test_every_group_goes_its_own_way(quadratic):
    objective = quadratic([[0.7, 0.2, 0.1], [0.0, 0.4, 0.6]])
    descent = start_of(objective, uniform(3, 2))
    for step in range(4):
        descent.step(step, math.inf)
    torch.testing.assert_close(descent.alpha, objective.target, rtol=0, atol=1e-3)


def test_experts_that_are_all_alike():
    """Any alpha is as good as another, and exactly so where the experts are those of small whole numbers."""
    objective = classification(4)
    for experts in (objective.experts[:1], torch.ones(1, 60, 4)):
        objective.experts = experts.expand(4, -1, -1)
        descent = start_of(objective, uniform(4))
        for step in range(3):
            assert descent.step(step, math.inf) == pytest.approx(objective.loss_at(uniform(4)), rel=1e-6)
        assert (descent.alpha >= 0).all() and descent.alpha.sum().item() == pytest.approx(1)
    torch.testing.assert_close(descent.alpha, uniform(4), rtol=0, atol=1e-12)


def test_an_expert_given_twice():
    objective = regression([0.4, 0.6, 0.0])
    objective.experts = objective.experts[[0, 1, 2, 0]]
    objective.n_experts = 4
    descent = start_of(objective)
    for step in range(6):
        descent.step(step, math.inf)
    a, b, c, again = descent.alpha[0].tolist()
    assert (a + again, b, c) == pytest.approx((0.4, 0.6, 0), abs=1e-3) and a == pytest.approx(again, abs=1e-3)


def test_outputs_so_sure_that_they_show_no_curvature():
    """In float32 a probability is 0 or 1 here: only the slopes say where to go."""
    wrong, right = torch.eye(2)[[0] * 10] * 1000, torch.eye(2)[[1] * 10] * 100
    objective = Linear("cross_entropy", torch.stack([wrong, wrong, right]), torch.ones(10, dtype=torch.int64))
    descent = start_of(objective)
    assert descent.step(0, math.inf) == pytest.approx((2000 - 100) / 3)
    assert descent.alpha.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_outputs_that_are_no_numbers(wrong):
    objective = classification()
    objective.experts[3, 0, 0] = wrong
    descent = start_of(objective)
    assert math.isnan(descent.step(7, math.inf)) and torch.equal(descent.alpha, uniform(5))


def test_an_expert_towards_which_outputs_are_not_finite_is_left_out_of_the_step():
    """The others move as if it were not there."""
    start = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    objective = classification()
    objective.experts[3, 0, 0] = 3e38  # finite, and too large for float32 on the way there
    descent = start_of(objective, start)
    without = Linear("cross_entropy", objective.experts[[0, 1, 2, 4]], objective.targets)
    other = start_of(without, start[:, [0, 1, 2, 4]])
    for step in range(3):
        loss = descent.step(step, math.inf)
        assert loss == pytest.approx(other.step(step, math.inf), rel=0.01)
    assert descent.alpha[0, 3] == 0 and descent.alpha[0].tolist() != start[0].tolist()
    torch.testing.assert_close(descent.alpha[:, [0, 1, 2, 4]], other.alpha, rtol=0, atol=0.02)


def test_a_point_ahead_without_a_finite_loss_goes_back_to_the_last_with_one():
    objective = regression(WEIGHTS)
    descent = start_of(objective)
    asked, finite = [], objective.quadratic

    def quadratic(alpha, *arguments, **named):
        asked.append((alpha, arguments[1]))
        found = finite(alpha, *arguments, **named)
        return replace(found, loss=math.nan) if len(asked) in (2, 3) else found

    objective.quadratic = quadratic
    losses = [descent.step(step, math.inf) for step in range(4)]
    assert [math.isnan(loss) for loss in losses] == [False, True, True, False]
    (first, _), (second, _), (third, _), (fourth, _) = asked
    torch.testing.assert_close(third, (first + second) / 2)
    torch.testing.assert_close(fourth, (first + third) / 2)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 9), st.floats(-3, 2), st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 2**32)
)
def test_alpha_stays_on_the_simplex(n_experts, log_scale, extra_forwards, seed):
    objective = classification(n_experts, 10, 10**log_scale)
    descent = start_of(objective, seed=seed)
    for step, extra in enumerate(extra_forwards):
        assert math.isfinite(descent.step(step, descent.least_forwards + extra))
        assert descent.alpha.shape == (1, n_experts) and descent.alpha.dtype == torch.float64
        assert (descent.alpha >= 0).all() and descent.alpha.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n_forwards", [0, 0.5, 1])
def test_a_step_is_made_where_the_time_has_run_out_since_it_was_begun(n_forwards):
    descent = start_of(regression(WEIGHTS))
    assert math.isfinite(descent.step(0, n_forwards)) and descent.alpha.sum().item() == pytest.approx(1)
