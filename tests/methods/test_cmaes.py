"""CMA-ES as a strategy of the staged search."""

import math

import pytest
import torch

from glue_cli.methods.cmaes import CmaEs, cmaes
from glue_cli.methods.domains import Simplex
from glue_cli.methods.steps.strategy import make_step
from glue_cli.spec.schema import MixSpec

INF = math.inf


def learn(objective, seed=0, **keys):
    return cmaes(objective, MixSpec.model_validate(keys), seed=seed)


def strategy_from(start, seed=0):
    return CmaEs(Simplex(*start.shape), start, seed)


@pytest.fixture
def uniform():
    return lambda *shape: torch.full(shape, 1 / shape[-1], dtype=torch.float64)


@pytest.fixture
def stairs(quadratic):
    """A target loss in steps of 0.02, which has no slope anywhere."""

    class Stairs(quadratic):
        is_smooth = False

        def loss(self, alphas):
            return (super().loss(alphas) * 50).floor() / 50

        def quadratic(self, alpha, coordinates, radius, step):
            raise AssertionError("there is no derivative")

        gradient = quadratic

    return Stairs


@pytest.mark.parametrize("target", [[[0.7, 0.3]], [[0.1, 0.6, 0.05, 0.25]], [[0.3, 0.7], [0.75, 0.25]]])
def test_finds_the_optimum_of_a_quadratic(quadratic, target):
    learned = learn(quadratic(target), steps=150, validate_every=150)
    torch.testing.assert_close(learned.alpha, torch.tensor(target, dtype=torch.float64), rtol=0, atol=1e-3)
    assert learned.val_loss < 1e-5 < learned.val_loss_start


@pytest.mark.parametrize("shape", [(1, 2), (1, 5), (3, 4), (1, 64)])
def test_a_step_is_a_generation_on_one_minibatch_two_blends_at_a_time(quadratic, uniform, shape):
    objective = quadratic(uniform(*shape).tolist())
    strategy = strategy_from(uniform(*shape))
    population = 4 + math.floor(3 * math.log(math.prod(shape)))  # Hansen 2016, eq. (48)
    assert strategy.n_forwards == strategy.least_forwards == population
    for step in (4, 9):
        objective.probed.clear()
        make_step(strategy, objective, step, INF)
        assert {at for _, at in objective.probed} == {step} and max(m for m, _ in objective.probed) == 2
        assert sum(m for m, _ in objective.probed) == population


def test_a_step_tells_the_mean_loss_of_its_generation(quadratic, uniform):
    objective, losses = quadratic([0.5, 0.2, 0.3]), []
    strategy = strategy_from(uniform(1, 3))
    asked = objective.probe_losses
    objective.probe_losses = lambda alphas, step: losses.append(asked(alphas, step)) or losses[-1]
    assert make_step(strategy, objective, 0, INF) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)
    assert torch.cat(losses).unique().numel() == strategy.n_forwards


@pytest.mark.parametrize("start", [[[0.4, 0.3, 0.2, 0.1]], [[0.97, 0.01, 0.01, 0.01], [0.25] * 4]])
def test_it_starts_where_it_is_told_to(start):
    start = torch.tensor(start, dtype=torch.float64)
    torch.testing.assert_close(strategy_from(start).alpha, start)


def test_an_expert_that_a_start_leaves_out_comes_back(quadratic):
    objective = quadratic([0.1, 0.8, 0.1])
    strategy = strategy_from(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    assert 0.99 < strategy.alpha[0, 0] < 1
    for step in range(100):
        make_step(strategy, objective, step, INF)
    assert strategy.alpha.tolist()[0] == pytest.approx([0.1, 0.8, 0.1], abs=1e-3)


def test_the_search_ends_when_the_distribution_is_as_narrow_as_rounding(quadratic):
    learned = learn(quadratic([[0.3, 0.7], [0.75, 0.25]]), steps=5000, validate_every=5000)
    assert learned.stopped == "converged" and learned.n_steps < 1000
    assert learned.val_loss < 1e-5


@pytest.mark.parametrize("budget", [None, 100])
def test_no_derivative_is_needed(stairs, budget):
    learned = learn(stairs([0.0, 0.1, 0.1, 0.8]), budget=budget)
    assert learned.val_loss <= 0.04 < 0.3 < learned.val_loss_start


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_search_is_staged_in_either_preset(quadratic, preset):
    learned = learn(quadratic([0.2, 0.3, 0.5]), preset=preset, steps=3)
    assert [stage.stage for stage in learned.search.stages] == ["screen", "race", "descend", "guard"]


@pytest.mark.parametrize("budget", [1, 5, 20, 60, 300])
@pytest.mark.parametrize("n_experts", [2, 16])
def test_the_budget_is_kept(quadratic, budget, n_experts):
    objective = quadratic([0.0] * (n_experts - 1) + [1.0])
    learned = learn(objective, budget=budget)
    assert objective.cost.in_forwards <= budget
    assert budget < 60 or (learned.n_steps > 0 and learned.stopped == "budget")


def test_draws_by_its_seed(quadratic):
    first, second, again = (
        learn(quadratic([0.2, 0.3, 0.5]), seed=seed, steps=3).alpha for seed in (0, 2**63 - 1, 2**63 - 1)
    )
    assert not torch.equal(first, second) and torch.equal(second, again)


def generation(strategy, losses_of):
    """Make a step; return the generation's points."""
    strategy.tell(losses_of(strategy.ask(0, math.inf).alphas))
    return strategy._points


def test_points_without_a_finite_loss_count_as_the_worst():
    """The distribution moves as if they had the loss of the worst finite point."""

    def losses_of(alphas, wrong):
        losses = alphas[:, 0, 0].clone()
        losses[losses > losses.median()] = wrong if wrong is not None else losses.median()
        return losses

    domain = Simplex(1, 3)
    strategies = [CmaEs(domain, domain.uniform(), 0) for _ in range(4)]
    for strategy, wrong in zip(strategies, (None, math.nan, math.inf, -math.inf), strict=True):
        generation(strategy, lambda alphas, wrong=wrong: losses_of(alphas, wrong))
        assert strategy.alpha.tolist() == strategies[0].alpha.tolist()
    assert strategies[0].alpha[0, 0] < 1 / 3


def test_a_generation_without_a_finite_loss_is_drawn_again_half_as_wide():
    domain = Simplex(1, 6)
    strategy, spreads = CmaEs(domain, domain.uniform(), 0), []
    for _ in range(100):
        points = generation(strategy, lambda alphas: torch.full((len(alphas),), math.nan, dtype=torch.float64))
        spreads.append(points.std())
        assert strategy.alpha.tolist() == domain.uniform().tolist()
        if len(spreads) == 8:
            break
    assert spreads[-1] < spreads[0] / 50  # 2 ** 7 in the mean
