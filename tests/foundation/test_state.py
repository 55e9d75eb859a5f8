from hypothesis import given
from hypothesis import strategies as st

from glue_cli.foundation.state import GOOD, is_good, list_of, list_state, part_of, prefixed

NAMES = st.text("ab.1", min_size=1, max_size=4)
STATES = st.dictionaries(NAMES, st.integers(), max_size=4)


@given(STATES, STATES)
def test_parts_come_back_as_they_were(one, other):
    whole = {"n": 1, **prefixed("one", one), **prefixed("one_more", other)}
    assert part_of(whole, "one") == one and part_of(whole, "one_more") == other


@given(st.lists(st.dictionaries(NAMES, st.integers(), min_size=1), max_size=13))
def test_lists_come_back_in_their_order(items):
    assert list_of({"other.0.a": 1, **list_state("items", items)}, "items") == items


def test_a_part_that_is_not_there_is_empty():
    assert part_of({"other.a": 1}, "one") == {} and list_of({}, "items") == []


def test_a_state_is_as_good_as_its_parts():
    good, bad = {"n": 0, GOOD: True}, {GOOD: False}
    assert is_good({}) and is_good({"is_good_too": False}) and is_good(good | prefixed("part", good))
    assert not is_good(bad) and not is_good({**good, **prefixed("part", bad)})
    assert not is_good(list_state("parts", [good, prefixed("inner", bad)]))
