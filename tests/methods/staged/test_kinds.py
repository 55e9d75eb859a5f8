"""A search among both kinds of BatchNorm's statistics, and one for an alpha a group."""

from dataclasses import replace

import pytest
import torch
from fake_objective import Bowl
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.methods.greedy import greedy
from glue_cli.methods.spsa import most_forwards, spsa
from glue_cli.spec.schema import MixSpec

TARGET = [[0.1, 0.6, 0.3]]


class TwoKinds(Bowl):
    """Refreshed blends have a loss of their own: another floor, and the least elsewhere."""

    kinds = ("averaged", "refreshed")
    n_validation_batches, batch_size, n_refreshing = 2, 64, 3

    def __init__(self, target, refreshed_target, *, floors, noise=0.05):
        super().__init__(target, noise)
        self.floor, self.asked = floors[0], []
        self.other = Bowl(refreshed_target, noise)
        self.other.cost, self.other.floor, self.other.kinds = self.cost, floors[1], self.kinds
        self.other.validation_noise = self.validation_noise

    def with_statistics(self, statistics):
        return self.other if statistics == "refreshed" else self

    def written_terms(self, alphas, statistics, n_batches=None):
        self.asked.append((statistics, alphas))
        if statistics == "refreshed":
            self.charge(self.n_refreshing)
        n = n_batches or self.n_validation_batches
        self.charge(n)
        return self.with_statistics(statistics).loss(alphas) + self.validation_noise[: n * self.batch_size]

    def n_written_forwards(self, statistics, n_batches=None):
        n = min(n_batches or self.n_validation_batches, self.n_validation_batches)
        return n + (self.n_refreshing if statistics == "refreshed" else 0)


def settings_of(**keys):
    return MixSpec.model_validate(keys)


@pytest.mark.parametrize(("floors", "wanted"), [((1.0, 0.5), "refreshed"), ((0.5, 1.0), "averaged")])
@pytest.mark.parametrize("search", [spsa, greedy])
def test_the_better_kind_is_returned(floors, wanted, search):
    objective = TwoKinds(TARGET, [[0.7, 0.1, 0.2]], floors=floors)
    learned = search(objective, settings_of(), seed=0)
    assert learned.statistics == wanted
    if search is spsa:
        target = objective.with_statistics(wanted).target
        torch.testing.assert_close(learned.alpha, target, rtol=0, atol=0.02)


def test_uniform_and_an_expert_of_each_kind_are_rivals_of_the_end():
    learned = spsa(TwoKinds(TARGET, TARGET, floors=(1.0, 0.9)), settings_of(), seed=0)
    names = {rival.name for rival in learned.search.guard.rivals}
    assert {"uniform", "uniform, refreshed", "expert 1", "expert 1, refreshed"} <= names


def test_the_guard_mends_a_choice_that_minibatches_got_wrong():
    """By the statistics of minibatches refreshed blends look good; written, they are not."""
    objective = TwoKinds([[1 / 3] * 3], [[1 / 3] * 3], floors=(1.0, 0.5))
    written = TwoKinds.written_terms

    def worse(alphas, statistics, n_batches=None):
        return written(objective, alphas, statistics, n_batches) + (2.0 if statistics == "refreshed" else 0.0)

    objective.written_terms = worse
    learned = spsa(objective, settings_of(budget="200"), seed=0)
    assert learned.search.start.endswith(", refreshed") and learned.search.returned == "uniform"
    assert learned.statistics == "averaged" and learned.val_loss == pytest.approx(1, abs=0.05)
    assert spsa(objective, settings_of(), seed=0).statistics == "averaged"


def test_a_kind_that_gets_ahead_late_is_not_dropped_in_the_race():
    class Late(TwoKinds):
        def quadratic(self, alpha, coordinates, radius, step, **named):
            found = super().quadratic(alpha, coordinates, radius, step, **named)
            return replace(found, loss=found.loss + (1.0 if step < 12 else 0.0))

    objective = Late(TARGET, [[0.7, 0.1, 0.2]], floors=(0.5, 1.0))
    learned = spsa(objective, settings_of(), seed=0)
    assert learned.statistics == "averaged" and learned.search.returned == "end"
    torch.testing.assert_close(learned.alpha, objective.target, rtol=0, atol=0.02)
    assert "runner-up, refreshed" in {rival.name for rival in learned.search.guard.rivals}


def test_a_kind_whose_uniform_blend_is_not_finite_is_left_out():
    objective = TwoKinds(TARGET, TARGET, floors=(1.0, float("inf")))
    learned = spsa(objective, settings_of(), seed=0)
    assert learned.statistics == "averaged" and all("refreshed" not in name for name in learned.search.starts)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 300))
def test_a_budget_is_kept_with_kinds_and_groups(n_experts, n_groups, budget):
    target = [[1 / n_experts] * n_experts] * n_groups
    objective = TwoKinds(target, target, floors=(1.0, 0.9))
    for search in (spsa, greedy):
        objective.cost.forwards = objective.cost.examples = 0
        learned = search(objective, settings_of(budget=str(budget)), seed=0)
        assert objective.cost.forwards <= budget
        assert learned.alpha.shape == (n_groups, n_experts)


# ---- groups

APART = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.6, 0.1, 0.3]]


class Folds(Bowl):
    """The same with quadratics by fold, of which each says the same."""

    n_folds, n_examples, n_validation_batches, batch_size = 5, 400, 5, 64

    def quadratic(self, *arguments, **named):
        found = super().quadratic(*arguments, **named)
        by_fold = {
            key: getattr(found, key).expand(5, *[-1] * (getattr(found, key).dim() - 1)) / 5
            for key in ("gradient", "curvature")
        }
        return type(found)(found.loss, by_fold["gradient"], by_fold["curvature"], 64)

    def written_terms(self, alphas, statistics, n_batches=None):
        self.judged.append(alphas.shape)
        by_fold = alphas if alphas.dim() == 3 else alphas.expand(5, -1, -1)
        n = n_batches or 5
        self.charge(n)
        return (self.loss(by_fold).repeat_interleave(64) + self.validation_noise)[: n * 64]

    def __init__(self, target, noise=0.0):
        super().__init__(target, noise)
        self.judged = []


def test_one_alpha_first_then_one_a_group():
    objective, records = Folds(APART), []
    learned = spsa(objective, settings_of(), seed=0, observe=records.append)
    stages = {stage.stage: stage.forwards for stage in learned.search.stages}
    assert list(stages) == ["screen", "race", "descend", "groups", "guard"]
    n_alike = sum(bool((record.alpha == record.alpha[0]).all()) for record in records[:-1])
    assert n_alike == len(records) - 1 - stages["groups"] / (3 * 2 + 1)
    assert learned.search.returned == "end" and objective.loss(learned.alpha) < 0.05
    assert stages["groups"] <= max(4 * 7, 0.5 * (stages["race"] + stages["descend"]))
    one = next(rival for rival in learned.search.guard.rivals if rival.name == "one alpha")
    assert one.difference > 0.1 and one.standard_error is not None


def test_what_depends_on_the_labels_is_judged_without_each_fold():
    objective = Folds(APART)
    spsa(objective, settings_of(), seed=0)
    assert torch.Size([5, 3, 3]) in objective.judged and torch.Size([3, 3]) in objective.judged


def test_groups_that_want_the_same_stay_together():
    learned = spsa(Folds([[0.7, 0.2, 0.1]] * 3), settings_of(), seed=0)
    assert (learned.alpha - learned.alpha.mean(0)).abs().max() < 0.02


@pytest.mark.parametrize(("budget", "has_room"), [("60", False), ("120", True)])
def test_a_small_budget_has_no_room_for_groups(budget, has_room):
    objective = Folds(APART)
    learned = spsa(objective, settings_of(budget=budget), seed=0)
    assert ("groups" in [stage.stage for stage in learned.search.stages]) == has_room
    assert objective.cost.forwards <= int(budget)


@pytest.mark.parametrize("search", ["plain", "staged"])
@pytest.mark.parametrize("optimizer", ["auto", "adam"])
@pytest.mark.parametrize("make", [Bowl, lambda target: TwoKinds(target, target, floors=(1.0, 1.01))])
@pytest.mark.parametrize("target", [TARGET, [*TARGET, [0.6, 0.1, 0.3]], [[1.0]], [[0.1] * 10]])
def test_a_search_that_ends_by_its_steps_makes_about_as_many_forwards_as_planned(search, optimizer, make, target):
    for steps in (1, 4, 23, 60):
        objective = make(target)
        given = settings_of(search=search, optimizer=optimizer, steps=steps, patience=1000, n_directions=2)
        planned = most_forwards(objective, given)
        spsa(objective, given, seed=0)
        assert objective.cost.forwards <= planned <= 2 * objective.cost.forwards


def test_a_score_that_follows_the_loss_is_planned_with_both_of_its_halves():
    objective = Bowl(TARGET)
    objective.is_smooth, objective.follows_loss = False, True
    given = settings_of(steps=60, patience=1000, n_directions=3)
    planned = most_forwards(objective, given)
    spsa(objective, given, seed=0)
    assert objective.cost.forwards <= planned <= 2 * objective.cost.forwards
