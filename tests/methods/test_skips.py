"""A loss that is not finite at some blends does not end a search: it goes on without them, and says so."""

import math

import pytest
import torch
from fake_objective import Bowl
from saved_state import through_files

from glue_cli.foundation.errors import NumericalError
from glue_cli.methods import METHODS, SEARCHES
from glue_cli.methods.skips import MOST_IN_A_ROW, Skips
from glue_cli.spec.schema import MixSpec

TARGET = [0.15, 0.6, 0.25]
WAYS = {
    "spsa, default": ("spsa", {}),
    "spsa, probes": ("spsa", {"optimizer": "adam", "lr": 0.1}),
    "spsa, paper": ("spsa", {"preset": "paper", "lr": 0.1}),
    "fullgrad": ("fullgrad", {"lr": 0.1}),
    "fullgrad, paper": ("fullgrad", {"preset": "paper", "lr": 0.1}),
    "cmaes": ("cmaes", {}),
    "greedy": ("greedy", {}),
}
EVERY = pytest.mark.parametrize(("method", "keys"), WAYS.values(), ids=WAYS)


class Walled(Bowl):
    """The loss is not finite where expert 0 has more than a share, and at every n-th minibatch.

    Args:
        most: the share; every: n.
    """

    n_validation_batches, batch_size = 3, 4

    def __init__(self, wrong, most=1.1, every=1000):
        self.wrong, self.most, self.every, self.n_wrong = wrong, most, every, 0
        super().__init__(TARGET, noise=0.01)

    def loss(self, alphas):
        beyond = alphas[..., 0, 0] > self.most
        self.n_wrong += int(beyond.sum())
        return torch.where(beyond, self.wrong, super().loss(alphas))

    def noise_at(self, step):
        # Screening looks at the minibatches 0 and 1, of which a start needs both.
        return super().noise_at(step) + (self.wrong if step % self.every == self.every - 1 and step > 1 else 0)

    def quadratic(self, alpha, coordinates, radius, step, *, is_tied=False):
        found = super().quadratic(alpha, coordinates, radius, step, is_tied=is_tied)
        if not math.isfinite(found.loss):
            found.gradient[:], found.curvature[:] = math.nan, math.nan
        return found


def learn(method, objective, **keys):
    records = []
    settings = MixSpec.model_validate({"steps": 60, "validate_every": 10} | keys)
    return METHODS[method].load()(objective, settings, seed=0, observe=records.append), records


@EVERY
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_search_goes_round_the_blends_whose_loss_is_not_finite(method, keys, wrong):
    """The uniform blend is finite, and the optimum, but no blend with more than 0.4 of expert 0."""
    objective = Walled(wrong, most=0.4)
    learned, records = learn(method, objective, **keys)
    wanted, _ = learn(method, Walled(wrong), **keys)
    assert learned.alpha[0, 0] <= 0.4 and learned.val_loss == pytest.approx(wanted.val_loss, abs=0.02)
    assert all(record.loss is None or math.isfinite(record.loss) for record in records)
    if method != "greedy":
        assert learned.val_loss < learned.val_loss_start
    if "preset" not in keys:
        assert objective.n_wrong and any(name in learned.lost for name in ("towards expert 0", "expert 0"))


@EVERY
def test_a_minibatch_without_a_finite_loss_is_skipped_and_counted(method, keys):
    if method == "greedy":
        pytest.skip("greedy looks at validation data alone")
    learned, records = learn(method, Walled(math.nan, every=5), **keys)
    n_without = sum(record.loss is None for record in records[1:-1])
    assert 0 < n_without <= learned.n_skipped == records[-1].n_skipped
    assert learned.val_loss < 0.01


@EVERY
def test_a_search_ends_where_no_loss_is_finite(method, keys):
    uniform = r"\[0.3333, 0.3333, 0.3333\]"
    with pytest.raises(NumericalError, match=rf"is not finite at mixing step \d+, near alpha {uniform}"):
        learn(method, Walled(math.nan, most=-1), **keys)


@EVERY
def test_a_descent_ends_after_ten_skipped_steps_in_a_row(method, keys):
    if method == "greedy":
        pytest.skip("greedy makes no steps")

    class Breaking(Walled):
        def noise_at(self, step):
            return super().noise_at(step) + (math.nan if step >= 20 else 0)

    states, step_of = [], 18 if "preset" not in keys else 20  # screening takes the first two minibatches
    settings = MixSpec.model_validate({"steps": 60, "validate_every": 50} | keys)
    with pytest.raises(NumericalError, match=f"at mixing step {step_of + MOST_IN_A_ROW - 1}, near alpha"):
        METHODS[method].load()(
            Breaking(math.nan), settings, seed=0, save_state=lambda state: states.append(through_files(state()))
        )
    for name, value in states[-1].items():  # the last good state can be kept
        is_number = isinstance(value, torch.Tensor) and value.is_floating_point() and not name.endswith("losses")
        assert not is_number or value.isfinite().all(), name


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_that_skips_steps_goes_on_from_any_state_bit_for_bit(method):
    settings = MixSpec.model_validate({"steps": 15, "validate_every": 5})
    states, learn = [], METHODS[method].load()
    whole = learn(
        Walled(math.inf, most=0.4, every=4),
        settings,
        seed=0,
        save_state=lambda state: states.append(through_files(state())),
    )
    assert (whole.n_skipped or whole.lost) and len(states) > 4
    for state in states:
        again = learn(Walled(math.inf, most=0.4, every=4), settings, seed=0, state=state)
        assert again.alpha.tolist() == whole.alpha.tolist() and again.search == whole.search
        assert (again.n_skipped, again.lost, again.val_loss) == (whole.n_skipped, whole.lost, whole.val_loss)


def test_steps_in_a_row_are_those_that_no_contender_made():
    skips, alpha = Skips(), torch.tensor([[0.5, 0.5]])
    for step in range(MOST_IN_A_ROW - 1):
        skips.count([math.nan, math.inf], step, alpha)
    skips.count([1.0, math.nan], 9, alpha)
    for step in range(MOST_IN_A_ROW - 1):
        skips.count([math.nan], step, alpha)
    assert skips.n_steps == 3 * (MOST_IN_A_ROW - 1) + 1
    with pytest.raises(NumericalError, match=r"at mixing step 33, near alpha \[0.5, 0.5\]"):
        skips.count([math.nan], 33, alpha)
