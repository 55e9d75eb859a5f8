"""Greedy soup: which experts it takes, and what it spends."""

import math

import pytest
import torch

from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.seeds import generator
from glue_cli.methods.greedy import greedy
from glue_cli.spec.schema import MixSpec


def choose(objective, seed=0, observe=lambda record: None, **keys):
    return greedy(objective, MixSpec.model_validate(keys), seed=seed, observe=observe)


@pytest.fixture
def batched(quadratic):
    """A target loss whose validation set has 7 batches."""

    class Batched(quadratic):
        n_validation_batches, batch_size = 7, 64

    return Batched


def soup_of(target):
    """Return the ingredients and the loss after each, worked out anew from the target."""

    def loss_of(soup):
        return sum(((k in soup) / len(soup) - t) ** 2 for k, t in enumerate(target))

    ranks = sorted(range(len(target)), key=lambda k: loss_of([k]))
    soups = [ranks[:1]]
    for k in ranks[1:]:
        if loss_of([*soups[-1], k]) <= loss_of(soups[-1]):
            soups.append([*soups[-1], k])
    return soups[-1], [loss_of(soup) for soup in soups]


@pytest.mark.parametrize("n_experts", [2, 3, 5, 9])
@pytest.mark.parametrize("draw", range(5))
def test_the_soup_is_that_of_the_recipe(quadratic, n_experts, draw):
    weights = torch.rand(n_experts, generator=generator(draw), dtype=torch.float64)
    target = (weights.square() / weights.square().sum()).tolist()
    learned, (ingredients, losses) = choose(quadratic(target)), soup_of(target)
    assert learned.search.ingredients == ingredients and learned.search.losses == pytest.approx(losses)
    assert learned.val_loss == learned.search.losses[-1]
    assert (learned.n_steps, learned.stopped) == (n_experts, "steps")
    share = 1 / len(ingredients)
    assert learned.alpha.tolist() == [[share if k in ingredients else 0 for k in range(n_experts)]]
    assert learned.val_loss_start == pytest.approx(sum((1 / n_experts - t) ** 2 for t in target))


def test_experts_that_harm_are_left_out(quadratic):
    learned = choose(quadratic([0.0, 0.45, 0.0, 0.55]))
    assert learned.search.ingredients == [3, 1] and learned.alpha.tolist() == [[0.0, 0.5, 0.0, 0.5]]


def test_experts_as_good_as_each_other_keep_their_order(quadratic):
    assert choose(quadratic([0.25] * 4)).search.ingredients == [0, 1, 2, 3]


def test_an_expert_that_changes_nothing_is_taken(quadratic):
    objective = quadratic([0.5, 0.5])
    objective.loss = lambda alpha: torch.tensor(1.0, dtype=torch.float64)
    assert choose(objective).alpha.tolist() == [[0.5, 0.5]]


def test_only_validation_data_are_used_and_none_twice_for_one_blend(batched):
    objective = batched([0.1, 0.6, 0.0, 0.3])
    choose(objective)
    assert objective.probed == objective.differentiated == [] and objective.n_batches == [None] * 8
    blends = [tuple(alpha[0].tolist()) for alpha in objective.validated]
    assert len(set(blends)) == len(blends) and (0.25,) * 4 in blends


def test_every_expert_that_is_tried_is_told(quadratic):
    records = []
    learned = choose(quadratic([0.1, 0.55, 0.0, 0.35]), observe=records.append)
    assert learned.search.ingredients == [1, 3]
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert [record.alpha.count_nonzero().item() for record in records] == [1, 2, 2, 2]
    first, second = learned.search.losses
    assert [record.val_loss for record in records] == [first, second, second, second]
    assert records[2].loss > second and records[3].loss > second


@pytest.mark.parametrize(("budget", "n_batches"), [(9, 1), (16, 1), (17, 2), (50, 6), (1000, 124), ("500s", None)])
def test_a_budget_says_of_how_many_batches(batched, budget, n_batches):
    objective = batched([0.1, 0.6, 0.0, 0.3])
    learned = choose(objective, budget=budget)
    used = objective.n_batches[2 if n_batches is None else 1 :]
    assert len(set(used)) == 1 and used[0] >= 7 if n_batches is None else set(used) == {n_batches}
    assert learned.n_steps == 4 and learned.stopped == "steps"
    assert learned.val_loss_start == pytest.approx(0.15**2 + 0.35**2 + 0.25**2 + 0.05**2)


@pytest.mark.parametrize("n_experts", [2, 5, 16])
@pytest.mark.parametrize("budget", [1, 2, 4, 5, 7, 10, 33, 300, "64ex", "640ex", "1e5ex"])
def test_the_budget_is_kept(batched, budget, n_experts):
    objective = batched([0.0] * (n_experts - 1) + [1.0])
    learned = choose(objective, budget=budget)
    allowed = int(float(budget[:-2]) / 64) if isinstance(budget, str) else budget
    assert objective.cost.forwards <= allowed
    if learned.n_steps:
        assert learned.n_steps == min(n_experts, (allowed - 1) // 2)
        assert learned.stopped == ("steps" if learned.n_steps == n_experts else "budget")
    else:
        assert allowed < 5 and learned.alpha.tolist() == [[1 / n_experts] * n_experts]
        assert (learned.val_loss, learned.stopped) == (None, "budget")


def test_a_budget_too_small_for_all_experts_is_for_some_drawn_by_the_seed(batched):
    def tried(seed):
        objective = batched([0.0] * 16)
        choose(objective, seed=seed, budget=9)
        return {alpha.argmax().item() for alpha in objective.validated if alpha.max() == 1}

    assert len(tried(0)) == 4 and tried(0) != tried(1)


def test_the_groups_share_the_soup(quadratic):
    alpha = choose(quadratic([[0.5, 0.5, 0.0], [0.6, 0.4, 0.0]])).alpha
    assert alpha.tolist() == [[0.5, 0.5, 0.0]] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_expert_that_has_no_finite_loss_is_left_out(quadratic, bad):
    objective = quadratic([0.3, 0.4, 0.3])
    finite = objective.loss
    objective.loss = lambda alphas: finite(alphas) + (bad if alphas[0, 1] > 0 else 0)
    learned = choose(objective)
    assert learned.alpha.tolist() == [[0.5, 0.0, 0.5]] and learned.val_loss == pytest.approx(0.24)
    assert learned.lost == ("expert 1",) and learned.n_skipped == 1 and learned.val_loss_start is None


def test_no_expert_with_a_finite_loss_is_an_error(quadratic):
    with pytest.raises(NumericalError, match="the validation loss of every expert is not finite"):
        choose(quadratic([math.nan, 0.5]))
