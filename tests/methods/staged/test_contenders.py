"""Which starts race."""

from types import SimpleNamespace

import pytest
import torch

from glue_cli.methods.staged.contenders import enter
from glue_cli.methods.staged.screening import Start

UNIFORM = torch.full((1, 3), 1 / 3, dtype=torch.float64)
A, R = "averaged", "refreshed"
# How many forwards a race of two, three and four takes, of strategies with 3 steps of 4 forwards: see `_race_length`.
RACES = {1: 0, 2: 24, 3: 60, 4: 72}


def enter_names(labels, n_forwards):
    starts = [Start(name, UNIFORM, statistics) for name, statistics in labels]
    entered = enter(starts, lambda alpha: SimpleNamespace(n_rounds=3, n_forwards=4), n_forwards)
    return [(contender.start.name, contender.start.statistics) for contender in entered]


@pytest.mark.parametrize(("n_forwards", "n_entered"), [(n, k) for k, n in RACES.items()])
def test_as_many_race_as_can_be_paid_for(n_forwards, n_entered):
    assert len(enter_names([(f"start {k}", A) for k in range(6)], n_forwards)) == n_entered
    assert len(enter_names([("uniform", A), ("start", A)], 1000)) == 2


def test_of_two_the_second_is_the_best_of_the_other_kind():
    """Not its uniform blend: three steps do not tell a poor start from poor statistics."""
    labels = [("one", R), ("two", R), ("three", A), ("uniform", R), ("uniform", A)]
    assert enter_names(labels, RACES[2]) == [("one", R), ("three", A)]
    assert enter_names(labels, RACES[3]) == [("one", R), ("three", A), ("uniform", R)]
    assert enter_names(labels, RACES[4]) == [("one", R), ("two", R), ("three", A), ("uniform", R)]


def test_of_one_kind_the_uniform_blend_races_always():
    labels = [("one", A), ("two", A), ("three", A), ("four", A), ("uniform", A)]
    assert enter_names(labels, RACES[2]) == [("one", A), ("uniform", A)]
    assert enter_names(labels, RACES[4]) == [("one", A), ("two", A), ("three", A), ("uniform", A)]
