"""The JSON of a safetensors header, accepted and rejected exactly as by the safetensors library. Needs no torch.

Python's own JSON parser is more lenient: it accepts NaN, unpaired surrogates, and repeated keys (the last one wins).
"""

import json
import math
import re
from typing import Any, NamedTuple, NoReturn

from glue_cli.foundation.printable import shown

_FIELDS = ("dtype", "shape", "data_offsets")
_MOST_NESTED = 127  # levels of lists and objects, including the header: the limit of the library's parser
_LARGEST = 2**64  # the library's integers are smaller
_LARGEST_SHAPE = 2**63  # elements, counting a dimension of 0 as 1; PyTorch supports fewer than this
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
# The most bytes that Python needs for a value and its place in a list, and for a key, its pair and its object.
_VALUE_BYTES, _KEY_BYTES = 72, 120


class HeaderFault(ValueError):
    """What is wrong with a header, worded as the end of a sentence."""


class HeaderEntry(NamedTuple):
    """A tensor as its header describes it; the offsets count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def memory_to_parse(header: bytes) -> int:
    """Return an upper bound, in bytes, of the memory that `parse_header` needs."""
    n_values = header.count(b",") + header.count(b"[") + header.count(b"{")
    text = len(header) if header.isascii() else 4 * len(header)
    return 2 * text + n_values * _VALUE_BYTES + header.count(b":") * _KEY_BYTES


def parse_header(header: bytes) -> tuple[list[HeaderEntry], dict[str, str]]:
    """Return the tensors that a header describes, in its order, and its metadata.

    It does not check that the tensors follow each other without gaps.

    Raises:
        HeaderFault: the safetensors library would reject it too, or PyTorch does not support a shape.
    """
    try:
        pairs = _DECODER.decode(header.decode())
        if _HALF_CHARACTER.search(header):
            _check_unread(pairs)
    except (ValueError, RecursionError):
        raise HeaderFault("its header is no JSON") from None
    if type(pairs) is not tuple:
        raise HeaderFault("its header is no object")
    entries: dict[str, HeaderEntry] = {}
    metadata: dict[str, str] | None = None
    for name, value in pairs:
        if name != "__metadata__":
            entries[name] = _read_entry(name, value)  # the last one wins if a name is repeated, as in the library
        elif metadata is not None:
            raise HeaderFault("its metadata stand there twice")
        else:
            metadata = _read_metadata(value)
    for entry in entries.values():
        _check_shape(entry)
    return list(entries.values()), metadata or {}


def _integer(text: str) -> int | float:
    if text == "-0" or len(text) > 300:  # the library reads these as floats
        return _real(text)
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


# An object becomes a tuple of its pairs, so that no repeated key is lost; a list stays a list.
_DECODER = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_integer, parse_float=_real, parse_constant=_refuse_constant
)


def _check_unread(value: Any, depth: int = 1) -> None:
    """Reject unpaired surrogates and deep nesting, also in values that are not used."""
    if isinstance(value, str):
        value.encode()  # raises for an unpaired surrogate
    elif isinstance(value, list | tuple):
        if depth > _MOST_NESTED:
            raise RecursionError
        for inner in value:
            if isinstance(value, tuple):
                name, inner = inner
                _check_unread(name)
            _check_unread(inner, depth + 1)


def _read_metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if type(value) is not tuple or not all(isinstance(text, str) for _, text in value):
        raise HeaderFault("its metadata are no texts")
    return dict(value)


def _read_entry(name: str, value: Any) -> HeaderEntry:
    try:
        dtype, shape, (begin, end) = _fields_of(value)
        if type(dtype) is tuple and len(dtype) == 1 and dtype[0][1] is None:
            dtype = dtype[0][0]  # {"F32": null}, another spelling that the library accepts
        if not isinstance(dtype, str) or type(shape) is not list:
            raise ValueError
        for n in (begin, end, *shape):
            if type(n) is not int or not 0 <= n < _LARGEST:
                raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise HeaderFault(f"the header's entry of '{shown(name)}' is wrong") from None
    return HeaderEntry(name, dtype, tuple(shape), begin, end)


def _check_shape(entry: HeaderEntry) -> None:
    n_spanned = 1
    for n in entry.shape:
        n_spanned *= n or 1
        if n_spanned >= _LARGEST_SHAPE:  # checked after each factor: multiplying 300,000 of them took minutes
            shape = shown(list(entry.shape))
            raise HeaderFault(f"'{shown(entry.name)}' has more elements than a tensor can have: {shape}")


def _fields_of(value: Any) -> list[Any]:
    """Return dtype, shape and offsets of an entry: an object or, as the library also accepts, a list of the three."""
    if type(value) is list and len(value) == len(_FIELDS):
        return value
    if type(value) is not tuple:
        raise ValueError
    fields: dict[str, Any] = {}
    for key, inner in value:
        if key not in _FIELDS:
            _check_unread(inner, depth=3)
        elif key in fields:
            raise ValueError
        else:
            fields[key] = inner
    if len(fields) < len(_FIELDS):
        raise ValueError
    return [fields[key] for key in _FIELDS]
