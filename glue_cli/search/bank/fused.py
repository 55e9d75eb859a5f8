"""Make blends in a single pass over the experts, compiled by numba (extra `fast`).

Torch converts the experts' rows first and writes them to memory, multiplies them in a second pass, moves the blend
towards each expert in others, and rounds in a last one; each of these calls handles so little that calling it takes
long. Here, a few thousand columns at a time stay in the cache until all blends of them are made.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

with suppress(ImportError):  # it comes with numba, without which nothing here is called but `is_available`
    import numpy as np

# Columns at once: with four experts, their rows in float32 and the sums fit into the level-1 cache.
_WIDTH = 1 << 10
_COMPILING = Lock()


@dataclass(frozen=True)
class Stored:
    """The experts' rows, n columns, as they lie in memory: all of them in `flat`, and row k begins at `starts[k]`.

    bfloat16 is given as uint16, its bits.
    """

    flat: Any
    starts: Any
    n: int

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> "Stored | None":
        """Return K rows [n] that share their memory; None unless they are float32 or bfloat16, on the CPU."""
        if rows[0].dtype not in (torch.float32, torch.bfloat16) or rows[0].device.type != "cpu":
            return None
        return cls(_whole(rows[0]), _starts(rows, 0), len(rows[0]))


@dataclass(frozen=True)
class _Moved:
    """The blend in the row `theta`, moved by `radius` towards an expert; merely copied if that is None."""

    theta: Tensor
    expert: int | None
    radius: float
    out: Tensor


class FusedTile:
    """A range of columns of every expert, of which blends are made when all are known; see `Tile`.

    Args:
        stored: the experts' rows, of which the tile begins at column `first`; columns behind them are zeros.
        columns: where the tile lies in a row of all d elements.
        group: of the tensors.
    """

    def __init__(self, stored: Stored, first: int, columns: slice, group: int) -> None:
        self.columns, self._group = columns, group
        self._stored, self._starts = stored.flat, stored.starts + first
        self._n = min(stored.n - first, columns.stop - columns.start)
        self._blends: list[tuple[Tensor, Tensor]] = []
        self._moved: list[_Moved] = []

    def blend(self, alphas: Tensor, out: Tensor) -> None:
        """As `Tile.blend`, once `make` is called."""
        self._blends.append((alphas[:, self._group], out))

    def blend_one(self, alphas: Tensor, row: int, out: Tensor) -> None:
        """As `Tile.blend_one`, once `make` is called; rows are made one by one."""
        self.blend(alphas[row : row + 1], out)

    def move(self, theta: Tensor, group: int | None, expert: int, radius: float, out: Tensor) -> None:
        """As `Tile.move`, once `make` is called."""
        is_moved = group is None or group == self._group
        self._moved.append(_Moved(theta, expert if is_moved else None, radius, out))

    def make(self) -> None:
        """Make the blends; all of them are rows of one matrix, and so is what they are moved from."""
        blends = [row for _, out in self._blends for row in out]
        rows = [*blends, *(each.out for each in self._moved)]
        thetas = [each.theta for each in self._moved]
        start, end = self.columns.start, self.columns.start + self._n
        for row in rows:
            row[end : self.columns.stop] = 0
        coefficients = [by_group.numpy() for by_group, _ in self._blends]
        n_experts = len(self._starts)
        ends = [-1 if each.expert is None else each.expert for each in self._moved]
        _compiled(self._stored.dtype.itemsize, rows[0].itemsize)(
            self._stored,
            self._starts,
            np.array([bool(blends) or k in ends for k in range(n_experts)]),
            self._n,
            np.concatenate(coefficients) if coefficients else np.empty((0, n_experts), np.float32),
            _starts(blends, start),
            np.array(ends, np.int64),
            np.array([each.radius for each in self._moved], np.float32),
            _whole(thetas[0] if thetas else rows[0]),
            _starts(thetas, start),
            _whole(rows[0]),
            _starts(rows[len(blends) :], start),
        )


@cache
def is_available() -> bool:
    """Tell whether numba can be imported."""
    try:
        import numba  # noqa: F401
    except (ImportError, OSError):  # numba is too old for the installed NumPy; a library of LLVM's is missing
        return False
    return True


def _whole(row: Tensor) -> Any:
    """Return all of the memory that a row shares, as one array."""
    bits = row if row.dtype == torch.float32 else row.view(torch.uint16)
    return bits.as_strided((row.untyped_storage().nbytes() // row.itemsize,), (1,), 0).numpy()


def _starts(rows: Sequence[Tensor], start: int) -> Any:
    return np.array([row.storage_offset() + start for row in rows], np.int64)


def _compiled(stored_bytes: int, out_bytes: int) -> Callable[..., None]:
    """Return `_make` for experts and blends whose elements take so many bytes each; all threads get the same."""
    with _COMPILING:  # else each would compile its own
        return _compile(stored_bytes, out_bytes)


@cache
def _compile(stored_bytes: int, out_bytes: int) -> Callable[..., None]:
    """Return `_make` for experts and blends whose elements take so many bytes each, to be compiled in its first call.

    A product and a sum may become one instruction, as in the products of BLAS and in torch's lerp.
    """
    import numba

    def compiled(function: Callable[..., None]) -> Any:
        return numba.njit(nogil=True, fastmath={"contract"})(function)

    load = compiled(_widen if stored_bytes == 2 else _copy)
    store = compiled(_round if out_bytes == 2 else _copy)
    make, add_up, move, copy = compiled(_make), compiled(_add_up), compiled(_move), compiled(_copy)
    return lambda *arguments: make(load, store, add_up, move, copy, *arguments)


def _make(
    load: Any,
    store: Any,
    add_up: Any,
    move: Any,
    copy: Any,
    stored: Any,
    starts: Any,
    is_needed: Any,
    n: int,
    coefficients: Any,
    blends: Any,
    ends: Any,
    radii: Any,
    theta: Any,
    thetas: Any,
    out: Any,
    moved: Any,
) -> None:
    """Write n columns of every blend, and then of those that are moved from a blend.

    Args:
        coefficients: of the blends, [m, K]; blends: where the first column of each begins in `out`, [m].
        ends, radii: of those moved, [p]: the expert, -1 for none, and how far; thetas: where the first column of what
            each is moved from begins in `theta`; moved: and of itself in `out`.
    """
    n_experts = len(starts)
    rows = np.empty((n_experts, _WIDTH), np.float32)
    sums = np.empty(_WIDTH, np.float32)
    for first in range(0, n, _WIDTH):
        width = min(_WIDTH, n - first)
        for k in range(n_experts):
            if is_needed[k]:
                load(stored[starts[k] + first : starts[k] + first + width], rows[k])
        for m in range(len(blends)):
            add_up(coefficients[m], rows, sums)
            store(sums[:width], out[blends[m] + first :])
        for p in range(len(moved)):
            base = theta[thetas[p] + first : thetas[p] + first + width]
            into = out[moved[p] + first : moved[p] + first + width]
            if ends[p] < 0:
                copy(base, into)
            else:
                move(base, rows[ends[p]], radii[p], into)


def _copy(found: Any, into: Any) -> None:
    for j in range(len(found)):
        into[j] = found[j]


def _widen(found: Any, into: Any) -> None:
    bits = into.view(np.uint32)
    for j in range(len(found)):
        bits[j] = np.uint32(found[j]) << np.uint32(16)


def _round(found: Any, into: Any) -> None:
    """Round to bfloat16: to the nearest, and to the even one where two are as near."""
    bits = found.view(np.uint32)
    for j in range(len(found)):
        upper = bits[j] >> np.uint32(16)
        is_nan = (bits[j] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded = (bits[j] + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
        into[j] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)


def _add_up(coefficients: Any, rows: Any, sums: Any) -> None:
    """Write sums = coefficients @ rows, four rows at a time.

    With more than four, LLVM no longer checks that the rows do not overlap the sums, and does not vectorise the loop.
    """
    n_rows = len(rows)
    n_in_fours = n_rows // 4 * 4
    for k in range(0, n_in_fours, 4):
        c0, c1, c2, c3 = coefficients[k : k + 4]
        w, x, y, z = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        if k == 0:
            for j in range(_WIDTH):
                sums[j] = (c0 * w[j] + c1 * x[j]) + (c2 * y[j] + c3 * z[j])
        else:
            for j in range(_WIDTH):
                sums[j] += (c0 * w[j] + c1 * x[j]) + (c2 * y[j] + c3 * z[j])
    for k in range(n_in_fours, n_rows):
        c0, w = coefficients[k], rows[k]
        if k == 0:
            for j in range(_WIDTH):
                sums[j] = c0 * w[j]
        else:
            for j in range(_WIDTH):
                sums[j] += c0 * w[j]


def _move(base: Any, end: Any, radius: Any, into: Any) -> None:
    """Write what `torch.lerp` gives, which starts from the nearer end: for a radius of 1, the end itself."""
    if abs(radius) < np.float32(0.5):
        for j in range(len(base)):
            into[j] = base[j] + radius * (end[j] - base[j])
    else:
        for j in range(len(base)):
            into[j] = end[j] + (radius - np.float32(1)) * (end[j] - base[j])
