"""Results as records: write a record as a JSON object, and read a JSON object as a record."""

from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

_ABSENT, _EMPTY, _SPREAD = "absent where None", "empty where None", "spread"
_Record = TypeVar("_Record")


def where_known() -> Any:
    """Return a field whose key is left out of the JSON object if its value is None."""
    return field(default=None, metadata={_ABSENT: True})


def empty_where_unknown() -> Any:
    """Return a field that becomes an empty JSON object if its value is None."""
    return field(default=None, metadata={_EMPTY: True})


def spread(default_factory: Callable[[], Any]) -> Any:
    """Return a field whose value is a mapping or record and whose keys are written beside the other fields'."""
    return field(default_factory=default_factory, metadata={_SPREAD: True})


def as_object(record: Any) -> dict[str, Any]:
    """Return a record as a JSON object, with keys in the order of the fields."""
    keys: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if f.metadata.get(_SPREAD):
            keys |= _plain(value) or {}
        elif value is None and f.metadata.get(_EMPTY):
            keys[f.name] = {}
        elif value is not None or not f.metadata.get(_ABSENT):
            keys[f.name] = _plain(value)
    return keys


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_object(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_record(kind: type[_Record], json_object: object) -> _Record:
    """Return a JSON object as a record; keys that the record does not have are ignored.

    Raises:
        pydantic.ValidationError: a key is missing, or a value has the wrong type.
    """
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(json_object)


class WithFigures:
    """The base class of records with a `spread` field of figures.

    When such a record is read, the field collects the numbers under all keys that are not fields themselves.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(cls._gather, handler(source))

    @classmethod
    def _gather(cls, json_object: Any) -> Any:
        if not isinstance(json_object, Mapping):
            return json_object
        own = {f.name: bool(f.metadata.get(_SPREAD)) for f in fields(cls)}  # type: ignore[arg-type]
        (name,) = [name for name, is_spread in own.items() if is_spread]
        figures = {k: v for k, v in json_object.items() if k not in own and (v is None or type(v) in (int, float))}
        known = {k: v for k, v in json_object.items() if k in own and k != name}
        return {**known, name: figures} if figures else known
