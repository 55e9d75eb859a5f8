import math

import pytest
import torch

from glue_cli.foundation.errors import NumericalError
from glue_cli.methods.steps.descent import descend
from glue_cli.methods.steps.logit_descent import Estimate
from glue_cli.methods.steps.questions import Probes
from glue_cli.search import account as budget_module
from glue_cli.search.account import Cost
from glue_cli.spec.schema import MixSpec

NAN = float("nan")


def settings_of(**keys):
    return MixSpec.model_validate(keys)


class Scripted:
    """An objective whose validation losses are given, the last one for ever; remembers which alphas it saw."""

    n_groups, n_experts, n_validation_batches = 1, 3, 1

    def __init__(self, *val_losses):
        self.val_losses, self.seen, self.cost = val_losses, [], Cost()

    def probe_losses(self, alphas, step):
        return torch.zeros(len(alphas), dtype=torch.float64)

    def validation_loss(self, alpha, n_batches=None):
        self.seen.append(alpha.tolist())
        return self.val_losses[min(len(self.seen), len(self.val_losses)) - 1]


class Rule:
    """A rule for the gradient that asks for one probe, and says what a function of the step gives."""

    n_forwards = 2

    def __init__(self, estimate):
        self.estimate = estimate

    def ask(self, beta, step, share):
        self.step = step
        return Probes(torch.softmax(beta, -1)[None], n_at_once=1)

    def tell(self, answer):
        return self.estimate(self.step)


def along(*slope, loss=1.0):
    """An estimate that always says the same of the one group."""
    return lambda step: Estimate(torch.tensor([slope], dtype=torch.float64), loss)


def run(objective, estimate, **keys):
    records = []
    return descend(objective, Rule(estimate), settings_of(**keys), observe=records.append), records


@pytest.mark.parametrize(("validate_every", "patience"), [(1, 1), (5, 3), (20, 2)])
def test_stops_at_a_plateau(validate_every, patience):
    learned, records = run(Scripted(2.0), along(1, 0, 0), steps=1000, validate_every=validate_every, patience=patience)
    assert learned.stopped == "plateau" and learned.n_steps == validate_every * patience == records[-1].step


def test_improvement_begins_the_patience_anew_but_a_tiny_one_does_not():
    falling = [3.0, 2.9999, 2.9998, 2.0, 2.0, 1.9999, 1.9998]
    learned, _ = run(Scripted(*falling), along(1, 0, 0), steps=100, validate_every=1, patience=3)
    assert learned.n_steps == 6 and learned.stopped == "plateau" and learned.val_loss == 1.9998


def test_a_slow_steady_fall_is_no_plateau():
    falling = [0.9995**t for t in range(200)]  # each step under the threshold, three of them over it
    learned, _ = run(Scripted(*falling), along(1, 0, 0), steps=100, validate_every=1, patience=4)
    assert learned.stopped == "steps" and learned.n_steps == 100


def test_keeps_the_alpha_that_was_best_on_validation():
    objective = Scripted(5.0, 3.0, 1.0, 2.0, 4.0)
    learned, records = run(objective, along(1, 0, 0), steps=8, validate_every=2, patience=9)
    assert learned.val_loss == 1.0 and learned.val_loss_start == 5.0 and learned.n_steps == 8
    assert learned.alpha.tolist() == objective.seen[2] == records[4].alpha.tolist()
    assert [record.val_loss for record in records] == [5.0, None, 3.0, None, 1.0, None, 2.0, None, 4.0]


def test_the_uniform_start_is_kept_when_nothing_is_better():
    learned, _ = run(Scripted(1.0, 2.0), along(1, 0, 0), steps=10, validate_every=5, patience=9)
    assert learned.alpha[0].tolist() == pytest.approx([1 / 3] * 3) and learned.val_loss == 1.0


@pytest.mark.parametrize(("steps", "validated_at"), [(7, [0, 3, 6, 7]), (6, [0, 3, 6]), (2, [0, 2]), (1, [0, 1])])
def test_the_budget_is_kept_and_the_last_step_is_validated(steps, validated_at):
    made = []

    def estimate(step):
        made.append(step)
        return Estimate(torch.ones(1, 3, dtype=torch.float64), float(step))

    learned, records = run(Scripted(5, 4, 3, 2, 1), estimate, steps=steps, validate_every=3)
    assert made == list(range(steps)) and learned.n_steps == steps and learned.stopped == "steps"
    assert [record.step for record in records] == list(range(steps + 1))
    assert [record.loss for record in records] == [None, *map(float, range(steps))]
    assert [record.step for record in records if record.val_loss is not None] == validated_at


@pytest.mark.parametrize("wrong", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("is_slope", [False, True])
def test_a_step_without_a_finite_estimate_is_skipped_and_goes_half_way_back(wrong, is_slope):
    def estimate(step):
        is_wrong = step in (3, 4)
        slope = torch.full((1, 3), wrong if is_wrong and is_slope else 0.0, dtype=torch.float64)
        slope[0, 0] += step + 1
        return Estimate(slope, wrong if is_wrong and not is_slope else 1.0)

    settings = {"steps": 6, "validate_every": 100, "optimizer": "momentum", "momentum": 0.0, "lr": 0.1}
    learned, records = run(Scripted(1.0), estimate, **settings)
    assert learned.n_skipped == 2 and [record.n_skipped for record in records] == [0, 0, 0, 0, 1, 2, 2]
    assert [record.loss for record in records] == [None, 1.0, 1.0, 1.0, None, None, 1.0]
    # The points of the finite estimates are 0, -0.1 and -0.3, and the last step led to -0.6.
    for record, beta in zip(records, [0, -0.1, -0.3, -0.6, -0.45, -0.375, -0.975], strict=True):
        wanted = torch.softmax(torch.tensor([beta, 0.0, 0.0], dtype=torch.float64), 0)
        torch.testing.assert_close(record.alpha[0], wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("n_wrong", "ends"), [(9, False), (10, True)])
def test_ten_steps_in_a_row_without_a_finite_loss_end_the_search(n_wrong, ends):
    def estimate(step):
        return Estimate(torch.ones(1, 3, dtype=torch.float64), NAN if 3 <= step < 3 + n_wrong else 1.0)

    if ends:
        with pytest.raises(NumericalError, match=r"at mixing step 12, near alpha \[0.3333, 0.3333, 0.3333\]"):
            run(Scripted(1.0), estimate, steps=30, validate_every=100)
    else:
        learned, _ = run(Scripted(1.0), estimate, steps=30, validate_every=100)
        assert learned.n_steps == 30 and learned.n_skipped == 9


def test_a_validation_loss_that_is_not_finite_is_infinitely_bad():
    learned, records = run(Scripted(NAN, 3.0, math.inf, 2.0, -math.inf), along(1, 0, 0), steps=4, validate_every=1)
    assert learned.val_loss == 2.0 and learned.val_loss_start is None
    assert torch.equal(learned.alpha, records[3].alpha)
    with pytest.raises(NumericalError, match="every validation loss is not finite at mixing step 10, near alpha"):
        run(Scripted(NAN), along(1, 0, 0), steps=10, validate_every=5)


def test_validation_losses_that_are_not_finite_are_a_plateau():
    learned, _ = run(Scripted(1.0, NAN), along(1, 0, 0), steps=100, validate_every=4, patience=2)
    assert learned.stopped == "plateau" and learned.n_steps == 8 and learned.val_loss == 1.0


def test_momentum_makes_plain_steps_at_first():
    _, records = run(Scripted(1.0), along(3, -1, -2), steps=2, optimizer="momentum", lr=0.1, momentum=0.5)
    slope = torch.tensor([[3.0, -1.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(records[1].alpha, torch.softmax(-0.1 * slope, 1), rtol=1e-6, atol=1e-12)  # eq. (7)
    torch.testing.assert_close(records[2].alpha, torch.softmax(-0.25 * slope, 1), rtol=1e-6, atol=1e-12)


def test_adam_steps_do_not_depend_on_the_slope_of_the_loss():
    paths = [
        [record.alpha[0].tolist() for record in run(Scripted(1.0), along(*slope), steps=5, lr=0.1)[1]]
        for slope in ([3, -1, -2], [3e3, -1e3, -2e3])
    ]
    assert paths[0][1] == pytest.approx(torch.softmax(torch.tensor([-0.1, 0.1, 0.1]), 0).tolist(), rel=1e-5)
    for one, other in zip(*paths, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("seconds", [0.5, 2, 30])
@pytest.mark.parametrize("n_validation_batches", [1, 40])
def test_a_time_is_spent_and_not_exceeded(monkeypatch, seconds, n_validation_batches):
    class Timed(Scripted):
        """A tenth of a second a forward, and a second more for the first."""

        def work(self, n_forwards):
            self.cost.forwards += n_forwards

        def now(self):
            return 0.1 * self.cost.forwards + (self.cost.forwards > 0)

        def validation_loss(self, alpha, n_batches=None):
            self.work(n_batches or n_validation_batches)
            return super().validation_loss(alpha)

    objective = Timed(2.0)
    objective.n_validation_batches = n_validation_batches
    monkeypatch.setattr(budget_module.time, "monotonic", objective.now)

    def estimate(step):
        objective.work(2)
        return along(1, 0, 0)(step)

    learned, _ = run(objective, estimate, budget=f"{seconds}s", patience=1000)
    assert learned.stopped == "budget"
    assert objective.now() <= max(seconds, 1.2)  # two forwards are made in any case
    assert seconds < 2 or objective.now() > 0.7 * seconds and learned.n_steps > 1


def test_records_do_not_change_afterwards():
    _, records = run(Scripted(1.0), along(1, 0, 0), steps=3)
    assert len({tuple(record.alpha[0].tolist()) for record in records}) == 4


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_group_moves_as_it_would_alone(optimizer):
    slopes = [(3.0, -1.0, -2.0), (0.0, 0.5, -0.5)]
    objective = Scripted(1.0)
    objective.n_groups = 2
    settings = {"steps": 4, "optimizer": optimizer, "lr": 0.1}
    _, together = run(objective, lambda step: Estimate(torch.tensor(slopes, dtype=torch.float64), 1.0), **settings)
    alone = [run(Scripted(1.0), along(*slope), **settings)[1] for slope in slopes]
    assert objective.seen[0] == [[1 / 3] * 3] * 2
    for both, *each in zip(together, *alone, strict=True):
        torch.testing.assert_close(both.alpha, torch.cat([record.alpha for record in each]), rtol=1e-12, atol=0)
