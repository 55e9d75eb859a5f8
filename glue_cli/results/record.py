"""Results as records: how a record's fields become the keys of a JSON object, and a JSON object a record again."""

from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

_ABSENT, _EMPTY, _SPREAD = "absent where None", "empty where None", "spread"
_Record = TypeVar("_Record")


def where_known() -> Any:
    """Return the field of a key that is only there where its value is known."""
    return field(default=None, metadata={_ABSENT: True})


def empty_where_unknown() -> Any:
    """Return the field of a key whose object is empty where its value is not known."""
    return field(default=None, metadata={_EMPTY: True})


def spread(default_factory: Callable[[], Any]) -> Any:
    """Return a field in whose place stand the keys of its value, such as figures by their names."""
    return field(default_factory=default_factory, metadata={_SPREAD: True})


def as_object(record: Any) -> dict[str, Any]:
    """Return a record as a JSON object, its keys in the order of the fields."""
    found: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if f.metadata.get(_SPREAD):
            found |= _plain(value) or {}
        elif value is None and f.metadata.get(_EMPTY):
            found[f.name] = {}
        elif value is not None or not f.metadata.get(_ABSENT):
            found[f.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_object(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_record(kind: type[_Record], found: object) -> _Record:
    """Return a JSON object as a record; keys that the record does not have are passed over.

    Raises:
        pydantic.ValidationError: it lacks a key, or a value is of another type.
    """
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(found)


class WithFigures:
    """What a record is that has a `spread` field: read from an object, this holds the numbers under all other keys."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(cls._gather, handler(source))

    @classmethod
    def _gather(cls, found: Any) -> Any:
        if not isinstance(found, Mapping):
            return found
        own = {f.name: bool(f.metadata.get(_SPREAD)) for f in fields(cls)}  # type: ignore[arg-type]
        (name,) = [name for name, is_spread in own.items() if is_spread]
        figures = {k: v for k, v in found.items() if k not in own and (v is None or type(v) in (int, float))}
        known = {k: v for k, v in found.items() if k in own and k != name}
        return {**known, name: figures} if figures else known
