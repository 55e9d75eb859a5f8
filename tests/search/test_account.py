import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue_cli.search import account as budget
from glue_cli.search.account import Cost, Purse
from glue_cli.spec.budget import Budget, parse_budget


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told otherwise."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(budget.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("text", "limit", "unit"),
    [
        ("300", 300, "forwards"),
        ("1e3", 1000, "forwards"),
        ("1e+06", 1_000_000, "forwards"),  # as Python writes the number that YAML reads
        (" 90s ", 90, "seconds"),
        ("2m", 120, "seconds"),
        ("2 m", 120, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("0.5s", 0.5, "seconds"),
        ("1e6ex", 1_000_000, "examples"),
        ("64ex", 64, "examples"),
        ("1ex", 1, "examples"),
    ],
)
def test_a_budget_is_forwards_time_or_examples(text, limit, unit):
    assert parse_budget(text) == Budget(limit, unit)


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "-2m", "many", "2d", "2M", "m", "ex", "1e", "1e-3h", "nan", "inf"]
)
def test_what_is_no_budget(text):
    with pytest.raises(ValueError, match=f"'{text}' is no budget: wanted forwards, time or examples, such as 300"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["1e400", "1e308h", "1e307s", "1e300", "9" * 400])
def test_a_budget_too_large_to_count_with(text):
    with pytest.raises(ValueError, match="is no budget"):
        parse_budget(text)


@given(st.integers(1, 10**12), st.sampled_from(["", "s", "m", "h", "ex"]))
def test_whole_numbers_are_read_exactly(number, unit):
    factor = {"m": 60, "h": 3600}.get(unit, 1)
    if number * factor <= 10**15:
        assert parse_budget(f"{number}{unit}").limit == number * factor


def test_without_a_budget_there_is_always_enough():
    purse = Purse(None, Cost(forwards=10**9), 64)
    assert not purse.is_limited and purse.forwards() == purse.forwards(0.01) == math.inf


def test_forwards_are_counted_down_and_a_backward_is_two():
    cost = Cost()
    purse = Purse(Budget(10, "forwards"), cost, 64)
    assert purse.is_limited and (purse.forwards(), purse.forwards(0.5)) == (10, 5)
    cost.forwards = 3
    assert (purse.forwards(), purse.forwards(0.5)) == (7, 2)
    cost.backwards = 2
    assert (purse.forwards(), purse.forwards(0.5)) == (3, 0)  # none, where the share is overspent
    cost.validation_forwards, cost.examples = 3, 10**6  # validation is among the forwards
    assert purse.forwards() == 3


def test_a_part_of_a_forward_is_none():
    assert Purse(Budget(11, "forwards"), Cost(), 64).forwards(0.25) == 2
    assert Purse(Budget(100, "examples"), Cost(), 64).forwards() == 1


def test_examples_are_counted_by_the_batch():
    cost = Cost()
    purse = Purse(Budget(640, "examples"), cost, 64)
    assert (purse.forwards(), purse.forwards(0.5)) == (10, 5)
    cost.forwards, cost.examples = 4, 3 * 64 + 10  # one batch was small
    assert purse.forwards() == 6
    cost.backwards = 1  # on examples that a forward has been charged for
    assert purse.forwards() == 4
    cost.examples = 641
    assert purse.forwards() == 0


def test_seconds_are_forwards_at_the_speed_so_far(clock):
    cost = Cost()
    purse = Purse(Budget(60, "seconds"), cost, 64)
    assert purse.forwards() == 1  # to find the speed by
    clock.now += 2
    assert purse.forwards() == 1
    cost.forwards = 4
    assert (purse.forwards(), purse.forwards(0.5)) == (116, 56)
    cost.backwards = 2
    assert purse.forwards() == 232
    clock.now += 58
    assert purse.forwards() == 0
    clock.now += 1
    assert purse.forwards() == 0


def test_forwards_in_no_time_by_a_coarse_clock(clock):
    cost = Cost()
    purse = Purse(Budget(60, "seconds"), cost, 64)
    cost.forwards = 3
    assert purse.forwards() == 1


@given(
    st.floats(1, 1e15),
    st.sampled_from(["forwards", "seconds", "examples"]),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.floats(0.01, 1),
)
def test_what_is_left_is_a_whole_number_and_never_negative(limit, unit, forwards, backwards, share):
    cost = Cost(forwards=forwards, backwards=backwards, examples=64 * forwards)
    left = Purse(Budget(limit, unit), cost, 64).forwards(share)
    assert left == int(left) >= 0


def test_the_first_forward_does_not_set_the_pace(clock):
    cost = Cost()
    purse = Purse(Budget(60, "seconds"), cost, 64)
    assert purse.forwards() == 1  # to see how long one takes
    cost.forwards, clock.now = 1, clock.now + 10  # the GPU wakes up
    purse.warmed_up()
    assert purse.forwards() == 1
    cost.forwards, clock.now = 3, clock.now + 1
    assert purse.forwards() == (60 - 11) * 2 and purse.worth(0.5) == 60
    assert purse.forwards(0.25) == (15 - 11) * 2
    clock.now += 60
    assert purse.forwards() == 0


@pytest.mark.parametrize("text", ["300", "1e4ex", "90s"])
def test_a_purse_goes_on_from_the_state_of_another(clock, text):
    cost = Cost(forwards=7, validation_forwards=2, backwards=1, examples=448)
    purse = Purse(parse_budget(text), cost, 64)
    clock.now += 10
    purse.warmed_up()
    clock.now += 5
    cost.forwards += 20
    state = purse.state()
    left = purse.forwards(), purse.forwards(0.5), purse.worth()
    clock.now += 100_000  # while nothing runs
    other_cost = Cost()
    other = Purse(parse_budget(text), other_cost, 64)
    other.restore(state)
    assert other_cost == cost and (other.forwards(), other.forwards(0.5), other.worth()) == left
