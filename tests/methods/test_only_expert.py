"""A single expert is not searched, but measured as it would be written, with each kind of statistics."""

import math

import pytest
from fake_objective import Bowl

from glue_cli.foundation.errors import NumericalError
from glue_cli.methods import METHODS, SEARCHES
from glue_cli.spec.schema import MixSpec


class TwoKinds(Bowl):
    """Each kind of statistics has a loss of its own, on 20 validation batches."""

    kinds, n_validation_batches, losses = ("averaged", "refreshed"), 20, {"averaged": 2.0, "refreshed": 0.5}

    def written_terms(self, alphas, statistics, n_batches=None):
        return super().written_terms(alphas, statistics, n_batches) + self.losses[statistics]


def choose(method, objective, **keys):
    return METHODS[method].load()(objective, MixSpec.model_validate(keys), seed=0)


@pytest.mark.parametrize("method", SEARCHES)
def test_it_is_measured_once_if_there_is_no_choice(method):
    objective = Bowl([1.0])
    learned = choose(method, objective)
    assert (learned.alpha.tolist(), learned.n_steps, learned.val_loss) == ([[1.0]], 0, 0.0)
    assert learned.is_as_written and objective.cost.forwards == objective.cost.validation_forwards == 1
    assert objective.probed == []


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("averaged", "wanted"), [(2.0, "refreshed"), (0.1, "averaged"), (math.nan, "refreshed")])
def test_the_better_statistics_are_taken(method, averaged, wanted):
    objective = TwoKinds([1.0], noise=0.1)
    objective.losses = {"averaged": averaged, "refreshed": 0.5}
    learned = choose(method, objective)
    assert learned.statistics == wanted and learned.val_loss == pytest.approx(objective.losses[wanted], abs=0.1)


def test_a_budget_is_kept():
    objective = TwoKinds([1.0], noise=0.1)
    learned = choose("spsa", objective, budget="40", batch_size=1)
    assert learned.statistics == "refreshed" and objective.cost.forwards == 6  # the guard's share


@pytest.mark.parametrize("method", SEARCHES)
def test_a_loss_that_is_not_finite_ends_it(method):
    objective = Bowl([1.0])
    objective.floor = math.inf
    with pytest.raises(NumericalError, match="the only expert is not finite"):
        choose(method, objective)
