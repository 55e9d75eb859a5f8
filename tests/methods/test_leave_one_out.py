import pytest
import torch

from glue_cli.methods.leave_one_out import leave_one_out

NOTHING = {"loss": None, "difference": None, "standard_error": None}


class Terms:
    """An objective whose terms are linear in alpha: losses of experts [n, G K] weighted."""

    def __init__(self, losses):
        self.losses, self.asked = torch.tensor(losses, dtype=torch.float64), []

    def written_terms(self, alpha, statistics, n_batches=None):
        assert n_batches is None
        torch.testing.assert_close(alpha.sum(1), torch.ones(len(alpha), dtype=torch.float64))
        self.asked.append(alpha)
        return self.losses @ alpha.flatten()


def alpha_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_others_fill_the_place_of_the_one_left_out():
    objective = Terms([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]])
    found = leave_one_out(objective, alpha_of([0.5, 0.3, 0.2]))
    # blend 1.9, 2.1; without the first 2.8, 1.2; without the second 13/7, 15/7; without the third 1.375, 2.625
    assert [expert["loss"] for expert in found] == pytest.approx([2.0, 2.0, 2.0])
    assert [expert["difference"] for expert in found] == pytest.approx([0, 0, 0], abs=1e-12)
    errors = [0.9, 1.9 - 13 / 7, 0.525]  # of two differences x and -x: |x| sqrt(2) / sqrt(2)
    assert [expert["standard_error"] for expert in found] == pytest.approx(errors)


def test_a_good_expert_is_missed_and_a_bad_one_is_not():
    found = leave_one_out(Terms([[1.0, 5.0, 9.0]]), alpha_of([0.4, 0.2, 0.4]))
    # the blend has 5; the others have 23/3, 5 and 7/3
    assert [expert["difference"] for expert in found] == pytest.approx([8 / 3, 0, -8 / 3])
    assert [expert["loss"] for expert in found] == pytest.approx([23 / 3, 5, 7 / 3])


def test_an_expert_without_weight_is_worth_nothing_and_costs_nothing():
    objective = Terms([[1.0, 2.0, 4.0], [3.0, 6.0, 0.0]])
    found = leave_one_out(objective, alpha_of([0.75, 0.25, 0.0]))
    assert found[2] == {"loss": (1.25 + 3.75) / 2, "difference": 0, "standard_error": 0}
    assert found[0]["difference"] == (0.75 + 2.25) / 2
    assert len(objective.asked) == 3  # the blend and two experts


def test_there_is_nothing_without_the_only_expert():
    objective = Terms([[1.0, 2.0], [1.0, 3.0]])
    first, second = leave_one_out(objective, alpha_of([1.0, 0.0]))
    assert first == NOTHING and second["difference"] == 0
    assert leave_one_out(Terms([[1.0]]), alpha_of([1.0])) == [NOTHING]


def test_a_single_term_has_no_standard_error():
    found = leave_one_out(Terms([[1.0, 2.0]]), alpha_of([0.5, 0.5]))
    assert found == [
        {"loss": 2.0, "difference": 0.5, "standard_error": None},
        {"loss": 1.0, "difference": -0.5, "standard_error": None},
    ]


def test_an_expert_is_left_out_of_every_group():
    objective = Terms([[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]])
    found = leave_one_out(objective, alpha_of([0.5, 0.5, 0.0], [0.2, 0.3, 0.5]))
    wanted = [2 + (0.3 * 20 + 0.5 * 30) / 0.8, 1 + (0.2 * 10 + 0.5 * 30) / 0.7, 1.5 + (0.2 * 10 + 0.3 * 20) / 0.5]
    assert [expert["loss"] for expert in found] == pytest.approx(wanted)
    # all of one group's weight is enough for there to be nothing without it
    assert leave_one_out(objective, alpha_of([1.0, 0.0, 0.0], [0.2, 0.3, 0.5]))[0] == NOTHING
