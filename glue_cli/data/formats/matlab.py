"""Arrays of numbers in MATLAB files of version 5, with a limit on the memory that a file may ask for.

Source: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf, chapter 1
"""

import math
import os
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from glue_cli.foundation.regular_files import regular

_HEADER_BYTES = 128
_ARRAY, _COMPRESSED = 14, 15
# numpy's names for the types of data elements, and of the arrays that contain them
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_MOST_DIMENSIONS, _MOST_NAME_BYTES = 32, 63
_LONGEST_START = 400  # bytes, enough for an array's class, dimensions and name
# Photographs compress to two thirds of their size; no data set compresses to less than a 50th.
_MOST_GROWTH, _ALWAYS_ALLOWED = 50, 64 << 20


class MatlabFault(ValueError):
    """What is wrong with a MATLAB file."""


@dataclass(frozen=True)
class MatlabArray:
    """An array of numbers.

    Attributes:
        kind: its class, such as `u1` for uint8 and `f8` for double.
        shape: its dimensions; the first runs fastest.
        stored: how its numbers are stored, which may be a smaller type than their class.
        data: the numbers.
    """

    kind: str
    shape: tuple[int, ...]
    stored: str
    data: bytes
    byteorder: Literal["little", "big"]


class _Tag(NamedTuple):
    kind: int
    n_bytes: int
    start: int  # of its data
    end: int  # of the element, padding included


def read_matlab(path: Path, names: Collection[str]) -> dict[str, MatlabArray]:
    """Return the file's arrays that have one of the names.

    Raises:
        MatlabFault: it is not such a file, it is damaged, or an array claims more than 50 times the file's size.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=regular) as file:
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or header[126:] not in (b"IM", b"MI"):
            raise MatlabFault("it has no header of version 5")
        byteorder: Literal["little", "big"] = "little" if header[126:] == b"IM" else "big"
        file_bytes = os.fstat(file.fileno()).st_size
        arrays = {}
        while file.tell() < file_bytes:
            array = _read_element(file, names, byteorder, file_bytes)
            if array:
                arrays[array[0]] = array[1]
    return arrays


def _read_element(
    file: IO[bytes], names: Collection[str], byteorder: Literal["little", "big"], file_bytes: int
) -> tuple[str, MatlabArray] | None:
    """Read the next element of the file; return its array if that has one of the names."""
    kind, n_bytes, start, _ = _tag_at(file.read(8), 0, byteorder)
    if start != 8 or n_bytes > file_bytes - file.tell():
        raise MatlabFault("it is cut short")
    most = max(_ALWAYS_ALLOWED, _MOST_GROWTH * file_bytes)
    content = file.read(n_bytes)
    if kind == _COMPRESSED:
        content = _decompress(content, 8 + _LONGEST_START)
        kind, n_inner, *_ = _tag_at(content, 0, byteorder)
        name_of_it = _name(content[8:], byteorder) if kind == _ARRAY else None
        if name_of_it not in names:
            return None
        if n_inner > most:
            raise MatlabFault(f"an array of {n_inner:,} bytes lies in a file of {file_bytes:,}")
        file.seek(-n_bytes, os.SEEK_CUR)
        content = _decompress(file.read(n_bytes), 8 + n_inner)[8:]
        if len(content) < n_inner:
            raise MatlabFault("it is cut short")
    if kind != _ARRAY or (name := _name(content, byteorder)) not in names:
        return None
    return name, _array(content, byteorder)


def _decompress(content: bytes, most: int) -> bytes:
    """Return the first decompressed bytes, at most as many as given."""
    try:
        return zlib.decompressobj().decompress(content, most)
    except zlib.error as error:
        raise MatlabFault(str(error)) from None


def _tag_at(content: bytes, at: int, byteorder: Literal["little", "big"]) -> _Tag:
    first = content[at : at + 8]
    if len(first) < 8:
        raise MatlabFault("it is cut short")
    kind, n_bytes = (int.from_bytes(first[i : i + 4], byteorder) for i in (0, 4))
    if kind >> 16:  # a small element: kind and size in one word, then up to four bytes
        return _Tag(kind & 0xFFFF, min(kind >> 16, 4), at + 4, at + 8)
    return _Tag(kind, n_bytes, at + 8, at + 8 + n_bytes + -n_bytes % 8)


def _start(content: bytes, byteorder: Literal["little", "big"]) -> tuple[_Tag, _Tag, _Tag]:
    """Return the positions of an array's flags, dimensions and name."""
    flags = _tag_at(content, 0, byteorder)
    dimensions = _tag_at(content, flags.end, byteorder)
    if dimensions.n_bytes > 4 * _MOST_DIMENSIONS:
        raise MatlabFault("an array has too many dimensions")
    return flags, dimensions, _tag_at(content, dimensions.end, byteorder)


def _name(content: bytes, byteorder: Literal["little", "big"]) -> str:
    _, _, name = _start(content, byteorder)
    if name.n_bytes > _MOST_NAME_BYTES:
        raise MatlabFault("an array's name is too long")
    return content[name.start : name.start + name.n_bytes].decode("latin1")


def _array(content: bytes, byteorder: Literal["little", "big"]) -> MatlabArray:
    flags, dimensions, name = _start(content, byteorder)
    word = int.from_bytes(content[flags.start : flags.start + 4], byteorder)
    data = _tag_at(content, name.end, byteorder)
    kind, stored = _CLASSES.get(word & 0xFF), _STORED.get(data.kind)
    if kind is None or stored is None or word & 0x800:  # 0x800: complex
        raise MatlabFault("an array does not hold real numbers")
    places = range(dimensions.start, dimensions.start + dimensions.n_bytes, 4)
    shape = tuple(int.from_bytes(content[at : at + 4], byteorder) for at in places)
    numbers = content[data.start : data.start + data.n_bytes]
    if len(numbers) != data.n_bytes or data.n_bytes != math.prod(shape) * int(stored[1]):
        raise MatlabFault(f"an array of {list(shape)} has {len(numbers):,} bytes")
    return MatlabArray(kind, shape, stored, numbers, byteorder)
