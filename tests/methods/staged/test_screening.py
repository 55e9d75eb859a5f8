import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.foundation.errors import NumericalError
from glue_cli.methods.staged.screening import screen
from glue_cli.search.account import Cost, Purse
from glue_cli.spec.budget import Budget


class Levels:
    """Losses that are the experts' own, weighted by alpha, on the minibatch of each step.

    Args:
        levels: of the experts, [K], on every minibatch; or a list of them by step.
    """

    kinds, nat = ("averaged",), 1.0

    def __init__(self, *levels, n_groups=1):
        self.levels = [torch.tensor(row, dtype=torch.float64) for row in levels]
        self.n_groups, self.n_experts = n_groups, len(levels[0])
        self.cost, self.calls = Cost(), []

    def with_statistics(self, statistics):
        return self

    def nat_at(self, loss):
        return self.nat

    def loss(self, alphas, step):
        return (alphas * self.levels[min(step, len(self.levels) - 1)]).sum((1, 2)) / self.n_groups

    def probe_losses(self, alphas, step):
        assert (alphas >= 0).all() and alphas.shape[1:] == (self.n_groups, self.n_experts)
        torch.testing.assert_close(alphas.sum(2), torch.ones(len(alphas), self.n_groups, dtype=torch.float64))
        self.calls.append((step, len(alphas)))
        self.cost.forwards += len(alphas)
        return self.loss(alphas, step)


class TwoBasins(Levels):
    """A wide shallow basin around the uniform blend, and a deep one near expert 2."""

    def loss(self, alphas, step):
        near = torch.tensor([[[0.1, 0.1, 0.8, 0.0]]], dtype=torch.float64)
        deep = 1.0 + 4 * (alphas - near).square().sum((1, 2))
        return torch.minimum(deep, 2.0 + (alphas - 0.25).square().sum((1, 2)))


def run(objective, budget=None, seed=0):
    limit = Budget(budget, "forwards") if budget is not None else None
    starts, _ = screen(objective, Purse(limit, objective.cost, 64), seed)
    return starts


def falling(n_experts):
    return [2 - k / n_experts for k in range(n_experts)]


@pytest.mark.parametrize("n_experts", [2, 16, 64])
@pytest.mark.parametrize("budget", [20, 100, 300, 1000])
def test_a_quarter_of_the_budget_is_the_most(n_experts, budget):
    objective = Levels(falling(n_experts))
    starts = run(objective, budget)
    assert 1 <= objective.cost.forwards <= budget / 4
    looked_at = min(n_experts, budget // 4 - 7)
    if looked_at < 2:
        assert [start.name for start in starts] == ["uniform"] and objective.cost.forwards == 2
    else:
        assert sum(start.expert is not None for start in starts) == looked_at
        assert ("by loss" in [start.name for start in starts]) == (looked_at == n_experts)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 64), st.integers(1, 400))
def test_a_quarter_is_kept_for_any_number_of_experts_but_one_look_at_the_uniform_blend(n_experts, budget):
    objective = Levels(falling(n_experts))
    starts = run(objective, budget)
    assert objective.cost.forwards <= max(1, budget / 4)
    assert {"uniform"} <= {start.name for start in starts} and len({s.name for s in starts}) == len(starts)


def test_without_a_budget_every_start_is_looked_at():
    objective = Levels(falling(64))
    names = {start.name for start in run(objective)}
    assert names == {"uniform", "by loss", *(f"towards expert {k}" for k in range(64))}
    assert objective.cost.forwards == 66 + 5


def test_where_the_starts_lie():
    starts = {start.name: start for start in run(Levels([1.0, 2.0, 4.0]))}
    assert starts["uniform"].alpha.tolist() == [pytest.approx([1 / 3] * 3)]
    assert starts["towards expert 1"].alpha.tolist() == [pytest.approx([1 / 6, 4 / 6, 1 / 6])]
    assert starts["uniform"].expert is None and starts["towards expert 1"].expert == 1
    losses = [(7 / 3 + own) / 2 for own in (1, 2, 4)]  # half-way to the experts
    weights = [math.exp(-loss) for loss in losses]
    assert starts["by loss"].alpha.tolist() == [pytest.approx([w / sum(weights) for w in weights])]
    assert starts["towards expert 2"].loss == pytest.approx(losses[2])


def test_all_groups_start_alike():
    for start in run(Levels([1.0, 2.0, 4.0], n_groups=3)):
        assert start.alpha.shape == (3, 3) and torch.equal(start.alpha, start.alpha[:1].expand(3, 3))
        assert start.alpha.dtype == torch.float64


def test_starts_come_by_their_losses_and_the_best_four_are_looked_at_twice():
    objective = Levels([3.0, 1.0, 2.0, 5.0, 4.0])
    starts = run(objective)
    assert [start.name for start in starts[:3]] == ["towards expert 1", "by loss", "towards expert 2"]
    assert [start.name for start in starts[-2:]] == ["towards expert 4", "towards expert 3"]
    assert [len(start.losses) for start in starts] == [2] * 4 + [1] * 3
    for some in (starts[:4], starts[4:]):
        assert [start.loss for start in some] == sorted(start.loss for start in some)


def test_a_second_minibatch_mends_what_the_first_got_wrong():
    first, second = [1.0, 1.4, 3.0, 3.0, 3.0, 3.0], [3.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    best, *_ = run(Levels(first, second))
    assert best.name == "towards expert 1" and len(best.losses) == 2
    assert run(Levels(first))[0].name == "towards expert 0"


def test_starts_are_compared_on_the_same_minibatches_two_at_a_time():
    objective = Levels(falling(7))
    run(objective)
    assert {step for step, _ in objective.calls} == {0, 1} and max(n for _, n in objective.calls) == 2
    assert sum(n for step, n in objective.calls if step == 0) == 9
    assert sum(n for step, n in objective.calls if step == 1) == 5


def test_experts_are_drawn_by_the_seed_where_there_are_too_many():
    def drawn(seed):
        return sorted(s.expert for s in run(Levels(falling(64)), 100, seed) if s.expert is not None)

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) == 18
    assert set().union(*map(drawn, range(30))) == set(range(64))  # everyone has a chance


def test_the_basin_that_the_uniform_blend_is_not_in():
    best, *_ = run(TwoBasins([0.0] * 4), 100)
    assert best.name == "towards expert 2" and best.loss < 1.5 < 2.0


def test_the_uniform_blend_is_first_where_nothing_is_better():
    class Bowl(Levels):
        def loss(self, alphas, step):
            return (alphas - 1 / 6).square().sum((1, 2))

    assert run(Bowl([0.0] * 6))[0].name == "uniform"


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_starts_without_a_finite_loss_are_left_out(wrong):
    class Broken(Levels):
        def probe_losses(self, alphas, step):
            losses = self.loss(alphas, step)
            return torch.where(alphas[:, 0, 1] > 0.5, wrong, losses)

    starts = run(Broken([1.0, 2.0, 4.0]))
    names = [start.name for start in starts]
    assert not {"towards expert 1", "expert 1"} & set(names) and set(names) >= {
        "towards expert 0",
        "towards expert 2",
        "uniform",
    }
    assert all(math.isfinite(start.loss) and start.alpha.isfinite().all() for start in starts)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_uniform_blend_without_a_finite_loss(wrong):
    class OneByOne(Levels):
        def probe_losses(self, alphas, step):
            losses = super().probe_losses(alphas, step)
            return torch.where(alphas.amax((1, 2)) < 1, wrong, losses)

    starts, lost = screen(objective := OneByOne([3.0, 1.0, 2.0]), Purse(None, objective.cost, 64), 0)
    assert [start.name for start in starts] == ["expert 1", "expert 2", "expert 0"]
    assert {start.name for start in lost} == {"uniform", *(f"towards expert {k}" for k in range(3))}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_no_start_with_a_finite_loss(wrong):
    with pytest.raises(NumericalError, match="the loss of all starts is not finite at mixing step 0, near alpha"):
        run(Levels([1.0, wrong, 2.0]))


def test_a_second_minibatch_without_a_finite_loss():
    """If all starts were looked at twice, none is left; of many, those are left that it was not needed for."""
    with pytest.raises(NumericalError, match="the loss of all starts"):
        run(Levels([1.0] * 2, [math.nan] * 2))
    starts = run(Levels([1.0] * 8, [math.nan] * 8))
    assert starts and all(len(start.losses) == 1 for start in starts)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_the_unit_of_a_loss_does_not_tell_the_start_by_loss(unit):
    objective = Levels([unit * level for level in (1.0, 3.0, 2.0)])
    objective.nat = unit
    by_loss = next(start for start in run(objective) if start.name == "by loss")
    halfway = (torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64) + 2.0) / 2  # from the uniform blend
    torch.testing.assert_close(by_loss.alpha[0], torch.softmax(-halfway, 0), rtol=0, atol=1e-9)
