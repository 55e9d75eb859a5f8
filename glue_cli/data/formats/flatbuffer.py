"""Read tables of Google's flatbuffers, the format of Arrow's headers; nothing of them is believed.

Source: https://flatbuffers.dev/internals
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FlatTable:
    """A table in a buffer; its fields are known by their numbers.

    All methods raise `struct.error` or `ValueError` where an offset leads out of the buffer.
    """

    content: memoryview
    start: int

    def has(self, field: int) -> bool:
        """Tell whether a field is there; one that is not has its default."""
        return self._place(field) is not None

    def number(self, field: int, layout: str) -> int:
        """Return a number; 0 if the field is not there."""
        place = self._place(field)
        return 0 if place is None else int(self._unpack(layout, place)[0])

    def table(self, field: int) -> "FlatTable":
        """Return a table within this one."""
        return FlatTable(self.content, self._target(field))

    def structs(self, field: int, layout: str) -> Iterator[tuple[Any, ...]]:
        """Yield the elements of a vector; nothing if the field is not there."""
        if not self.has(field):
            return
        start = self._target(field)
        (n,) = self._unpack("<I", start)
        size = struct.calcsize(layout)
        for number in range(n):
            yield self._unpack(layout, start + 4 + number * size)

    def _target(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise ValueError("a header lacks a field")
        return place + int(self._unpack("<I", place)[0])

    def _place(self, field: int) -> int | None:
        names = self.start - self._unpack("<i", self.start)[0]
        (n_bytes,) = self._unpack("<H", names)
        entry = 4 + 2 * field
        offset = self._unpack("<H", names + entry)[0] if entry + 2 <= n_bytes else 0
        return self.start + int(offset) if offset else None

    def _unpack(self, layout: str, place: int) -> tuple[Any, ...]:
        if place < 0:  # which Python would count from the end
            raise ValueError("a header refers to a place before itself")
        return struct.unpack_from(layout, self.content, place)


def root_table(content: memoryview) -> FlatTable:
    """Return the outermost table of a buffer."""
    return FlatTable(content, int(struct.unpack_from("<I", content)[0]))
