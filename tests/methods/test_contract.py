"""What every method keeps, whatever it does."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glue_cli.methods import METHODS, SEARCHES
from glue_cli.spec.schema import MixSpec


@pytest.fixture
def choose(quadratic):
    """Let a method choose alpha for K experts whose sizes, accuracies and losses differ."""

    def choose(method, n_experts, seed=0, **keys):
        run = METHODS[method].load()
        match METHODS[method].needs:
            case "count":
                return run(n_experts)
            case "sizes":
                return run([100 * (k + 1) for k in range(n_experts)])
            case "accuracies":
                return run([k / n_experts for k in range(n_experts)])
        objective = choose.objective = quadratic(rising(n_experts))
        choose.learned = run(objective, settings_of(**keys), seed=seed)
        (alpha,) = choose.learned.alpha.tolist()
        return alpha

    return choose


def rising(n_experts):
    return [(k + 1) * 2 / n_experts / (n_experts + 1) for k in range(n_experts)]


def settings_of(**keys):
    return MixSpec.model_validate({"steps": 12, "validate_every": 5} | keys)


@pytest.mark.parametrize("n_experts", [1, 2, 3, 16, 100])
@pytest.mark.parametrize("method", METHODS)
def test_alpha_lies_on_the_simplex(choose, method, n_experts):
    alpha = choose(method, n_experts)
    assert isinstance(alpha, list) and len(alpha) == n_experts and all(type(a) is float for a in alpha)
    assert all(math.isfinite(a) and a >= 0 for a in alpha) and math.fsum(alpha) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_one_expert_gets_everything(choose, method):
    assert choose(method, 1) == [1.0]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(choose, method):
    assert choose(method, 5, seed=3) == choose(method, 5, seed=3)


@pytest.mark.parametrize("method", METHODS)
def test_better_experts_do_not_get_less(choose, method):
    alpha = choose(method, 4, steps=200, lr=0.05)
    assert alpha == sorted(alpha)


@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize("method", ["fullgrad", "spsa"])
def test_a_plain_search_makes_its_steps(choose, method, steps):
    choose(method, 3, steps=steps, n_directions=2, search="plain")
    objective = choose.objective
    assert choose.learned.n_steps == steps == max(len(objective.probed), len(objective.differentiated))
    assert len(objective.validated) == 1 + math.ceil(steps / 5)
    assert choose.learned.val_loss <= choose.learned.val_loss_start


@pytest.mark.parametrize("n_experts", [1, 2, 5])
@pytest.mark.parametrize("method", SEARCHES)
def test_every_group_has_a_simplex_of_its_own(quadratic, method, n_experts):
    targets = [rising(n_experts), rising(n_experts)[::-1], [1 / n_experts] * n_experts]
    learned = METHODS[method].load()(quadratic(targets), settings_of(steps=200, lr=0.05), seed=0)
    assert learned.alpha.shape == (3, n_experts) and learned.alpha.dtype == torch.float64
    assert (learned.alpha >= 0).all()
    torch.testing.assert_close(learned.alpha.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    up, down, _ = learned.alpha.tolist()
    assert up == sorted(up) and down == sorted(down, reverse=True)


def test_spsa_draws_by_its_seed(choose):
    assert choose("spsa", 5, seed=0, search="plain") != choose("spsa", 5, seed=1, search="plain")


def test_closed_forms():
    load = {name: method.load() for name, method in METHODS.items() if method.needs != "objective"}
    assert load["uniform"](4) == [0.25] * 4
    assert load["data-size"]([2000, 500, 0]) == [0.8, 0.2, 0.0]
    assert load["data-size"]([0, 0]) == [0.5, 0.5]
    assert load["proxy"]([0.1, 0.3]) == pytest.approx([0.25, 0.75])
    assert load["proxy"]([0.0, 0.0, 0.0, 0.0]) == [0.25] * 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.integers(1, 1000))
def test_data_size_does_not_depend_on_the_unit(sizes, factor):
    data_size = METHODS["data-size"].load()
    assert data_size([size * factor for size in sizes]) == pytest.approx(data_size(sizes), rel=1e-12)


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("search", ["plain", "staged"])
@given(budget=st.integers(1, 80), n_experts=st.integers(2, 20))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_budget_is_never_exceeded(quadratic, method, search, budget, n_experts):
    objective = quadratic(rising(n_experts))
    keys = {"budget": str(budget), "search": search, "n_directions": 2}
    learned = METHODS[method].load()(objective, settings_of(**keys), seed=0)
    assert objective.cost.in_forwards <= budget
    assert learned.alpha.sum().item() == pytest.approx(1) and learned.alpha.min() >= 0
