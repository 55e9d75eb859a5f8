"""Blend rows in a single pass over them, compiled by numba (extra `fast`).

BLAS copies its input into panels before it multiplies. With only two sets of coefficients, that copy costs more than
it saves, so this module multiplies without it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

# Sums computed at once: together with four rows of the same length they fit into the level-2 cache, and each row is
# long enough to be streamed.
_SUMS = 1 << 14
_NARROWEST, _WIDEST = 1 << 10, 1 << 13


@cache
def load_fused_product() -> Callable[[Tensor, Tensor, Tensor], None] | None:
    """Return a function that computes out = coefficients @ rows, or None if numba cannot be imported.

    The function takes coefficients [m, K], rows [K, n] and out [m, n], float32 on the CPU, each row contiguous.
    """
    try:
        import numba
    except (ImportError, OSError):  # numba is too old for the installed NumPy; a library of LLVM's is missing
        return None
    signature = "void(float32[:, ::1], float32[::1], int64, float32[::1], int64, int64)"  # compiled here, once
    add_up = numba.njit(signature, nogil=True, fastmath={"contract"})(_add_up)

    def multiply(coefficients: Tensor, rows: Tensor, out: Tensor) -> None:
        coefficients = coefficients.contiguous()
        add_up(coefficients.numpy(), _flat(rows), rows.stride(0), _flat(out), out.stride(0), rows.shape[1])

    return multiply


def _flat(rows: Tensor) -> Any:
    """Return rows [K, n] that lie `stride` apart as one flat array, gaps included: [(K - 1) stride + n]."""
    n_rows, n = rows.shape
    return rows.as_strided(((n_rows - 1) * rows.stride(0) + n,), (1,)).numpy()


def _add_up(coefficients: Any, rows: Any, stride: int, out: Any, out_stride: int, n: int) -> None:
    """Add four rows at a time to a block of sums, then the remaining rows one by one.

    With more than four, LLVM no longer checks that the rows do not overlap the sums, and does not vectorise the loop.
    """
    n_blends, n_rows = coefficients.shape
    n_in_fours = n_rows // 4 * 4
    block = min(max(_SUMS // n_blends, _NARROWEST), _WIDEST)
    for start in range(0, n, block):
        width = min(block, n - start)
        for k in range(0, n_in_fours, 4):
            first = k * stride + start
            w = rows[first : first + width]
            x = rows[first + stride : first + stride + width]
            y = rows[first + 2 * stride : first + 2 * stride + width]
            z = rows[first + 3 * stride : first + 3 * stride + width]
            for m in range(n_blends):
                c0, c1, c2, c3 = coefficients[m, k : k + 4]
                sums = out[m * out_stride + start : m * out_stride + start + width]
                if k == 0:
                    for j in range(width):
                        sums[j] = (c0 * w[j] + c1 * x[j]) + (c2 * y[j] + c3 * z[j])
                else:
                    for j in range(width):
                        sums[j] += (c0 * w[j] + c1 * x[j]) + (c2 * y[j] + c3 * z[j])
        for k in range(n_in_fours, n_rows):
            w = rows[k * stride + start : k * stride + start + width]
            for m in range(n_blends):
                c0 = coefficients[m, k]
                sums = out[m * out_stride + start : m * out_stride + start + width]
                if k == 0:
                    for j in range(width):
                        sums[j] = c0 * w[j]
                else:
                    for j in range(width):
                        sums[j] += c0 * w[j]
