import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue_cli.methods.steps.plateau import Plateau


def reached_after(losses, patience, start=None):
    """Return how many losses a plateau takes, None where there is none."""
    plateau = Plateau(patience, start)
    return next((n for n, loss in enumerate(losses, 1) if plateau.reached(loss)), None)


@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("level", [3.0, 0.0, -3.0])  # a function of the user's may be negative
def test_a_level_loss_is_a_plateau_after_the_patience(patience, level):
    assert reached_after([level] * 10, patience, start=level) == patience
    assert reached_after([level] * 10, patience) == patience + 1  # the first is only where it starts from


@pytest.mark.parametrize("start", [2.0, -2.0])
def test_less_than_a_thousandth_is_no_improvement(start):
    assert reached_after([start - 0.0019] * 3, 3, start) == 3
    assert reached_after([start - 0.0021] * 3, 3, start) is None


def test_small_falls_add_up():
    assert reached_after([0.9995**t for t in range(1, 100)], 4, start=1.0) is None
    assert reached_after([0.9995**t for t in range(1, 100)], 2, start=1.0) == 2


def test_an_improvement_begins_the_patience_anew():
    assert reached_after([2.0, 2.0, 1.0, 1.5, 1.0, 1.0], 3, start=2.0) == 6


def test_no_number_is_no_improvement():
    assert reached_after([math.nan, math.nan], 2, start=1.0) == 2


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 5))
def test_a_rising_loss_is_a_plateau_as_soon_as_may_be(losses, patience):
    rising = sorted(losses)
    assert reached_after([rising[-1] + 1] * patience, patience, rising[0]) == patience
    assert reached_after(rising[:patience], patience, rising[0]) == (patience if len(rising) >= patience else None)
