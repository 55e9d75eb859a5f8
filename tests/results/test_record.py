"""Records and the JSON objects that they become: keys in order, left out or spread, and read again."""

from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from glue_cli.results.record import WithFigures, as_object, empty_where_unknown, read_record, spread, where_known


@dataclass(frozen=True, kw_only=True)
class Inner:
    a: float | None
    b: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outer(WithFigures):
    first: str
    rare: int | None = where_known()
    figures: dict[str, float | None] = spread(dict)
    empty: Inner | None = empty_where_unknown()
    inner: list[Inner]


def test_fields_are_keys_in_their_order():
    record = Outer(first="x", inner=[Inner(a=None), Inner(a=1.0, b=2.0)], figures={"val_loss": 0.5, "f1": None})
    found = as_object(record)
    inner = [{"a": None, "b": None}, {"a": 1.0, "b": 2.0}]
    assert found == {"first": "x", "val_loss": 0.5, "f1": None, "empty": {}, "inner": inner}
    assert list(found) == ["first", "val_loss", "f1", "empty", "inner"]
    known = as_object(Outer(first="x", rare=0, inner=[], empty=Inner(a=1.0)))
    assert known["rare"] == 0 and known["empty"] == {"a": 1.0, "b": None}


def test_a_record_is_read_again():
    record = Outer(first="x", rare=3, inner=[Inner(a=1.0)], figures={"val_loss": 0.5}, empty=Inner(a=2.0))
    assert read_record(Outer, as_object(record)) == record


def test_only_numbers_are_figures():
    given = {"first": "x", "inner": [], "empty": None, "schema": "s", "is": True, "n": 2, "no": None}
    assert read_record(Outer, given).figures == {"n": 2, "no": None}


@pytest.mark.parametrize("found", [{"first": "x"}, {"first": 3, "inner": []}, [], None])
def test_what_is_no_such_record_is_refused(found):
    with pytest.raises(ValidationError):
        read_record(Outer, found)
