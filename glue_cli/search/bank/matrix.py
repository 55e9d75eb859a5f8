"""The experts during the search: the rows of one matrix E [K, d], so that one product gives all blends of a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from glue_cli.foundation.threads import share_out
from glue_cli.search.bank.fused import FusedTile, Stored, is_available
from glue_cli.search.bank.storage import Rows

# Columns handled at once, so that K blocks fit into the cache. Both probes of a pair with BLAS, K = 8, d = 1e8,
# float32, 2 threads: 0.117 s with these blocks, 0.122 s with blocks twice as wide, 0.070 s just to sum the matrix.
_BLOCK = 1 << 15
# What is compiled keeps fewer columns in the cache by itself, so that wide blocks save calls and cost no cache.
_FUSED_BLOCK = 1 << 19
# Elements of rows that are converted first, all experts together: they have to fit into the last cache. Five blends of
# four bfloat16 experts, d = 5e7: 0.19 s of CPU time with these 4 MiB, 0.27 s with one, 0.35 s with half of one.
_SCRATCH = 1 << 20
# Columns at once where the number of calls or kernel launches matters more than the cache: small models, and GPUs.
_WIDE_BLOCK = 1 << 22
# Elements that are rounded at once: a whole embedding's copies would take as much memory as a tenth of the model.
_ROUNDED_AT_ONCE = 1 << 20
# The largest distance between the starts of two rows, in elements: BLAS uses 32-bit integers.
_LONGEST_STRIDE = 2**31 - 1
# A model with fewer columns is blended in less time than threads take to start.
_SHARED_COLUMNS = 1 << 23
# With fewer columns, or from a disk, compiled blends save less in 100 pairs than their compilation costs: 1.5 s.
_FUSED_COLUMNS = 1 << 25

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor lies in a row: its first column, its shape, and whether it is stored in channels_last order."""

    start: int
    shape: tuple[int, ...]
    channels_last: bool

    def view(self, row: Tensor) -> Tensor:
        """Return the tensor as a view of a row [d]."""
        flat = self._flat(row)
        if not self.channels_last:
            return flat.view(self.shape)
        o, i, h, w = self.shape
        return flat.view(o, h, w, i).permute(0, 3, 1, 2)

    def round(self, row: Tensor, dtype: torch.dtype) -> None:
        """Round the tensor in a row [d] to what a dtype can hold."""
        if dtype != row.dtype:
            for part in torch.split(self._flat(row), _ROUNDED_AT_ONCE):
                part.copy_(part.to(dtype))

    def _flat(self, row: Tensor) -> Tensor:
        return row[self.start : self.start + torch.Size(self.shape).numel()]


class ExpertBank:
    """The floating-point tensors of K experts as rows of matrices; one matrix per group of tensors and stored dtype.

    bfloat16 and float16 experts are stored as they are and converted block by block; blends and sums are float32.

    Args:
        sections: the matrices, side by side, each with the number of its group of tensors.
        spans: where each tensor lies within a row of d elements, with all sections one after another.
        device: where blends are computed.
        whole_columns: d of the whole model, if this is a part of it: it decides how products are computed, so that
            the parts have the same bits as the whole.
    Attributes:
        n_experts: K; n_groups: G; n_columns: d, padding between the tensors included.
    """

    def __init__(
        self,
        sections: Sequence[tuple[int, Rows]],
        spans: Mapping[str, Span],
        *,
        n_experts: int,
        device: torch.device,
        n_groups: int = 1,
        whole_columns: int | None = None,
    ) -> None:
        self.spans = dict(spans)
        self.n_experts, self.n_groups, self.device = n_experts, n_groups, device
        self.n_columns = sum(rows.n_columns for _, rows in sections)
        whole_columns = whole_columns or self.n_columns
        on_cpu = device.type == "cpu"
        self._is_shared = on_cpu and self.n_columns >= _SHARED_COLUMNS
        is_resident = all(rows.block_columns is None for _, rows in sections)
        self._is_fused = on_cpu and is_resident and whole_columns >= _FUSED_COLUMNS and is_available()
        self._stored = {rows: rows.stored() for _, rows in sections} if self._is_fused else {}
        self._multiply = _multiply if whole_columns <= _LONGEST_STRIDE else _multiply_copied
        scratch = max(16, _SCRATCH // n_experts // 16 * 16)  # columns, without half a cache line
        self._fine_blocks = _cut(sections, _BLOCK if on_cpu else _WIDE_BLOCK)
        if self._is_fused:
            self._blocks = _cut(sections, _FUSED_BLOCK)
        else:
            wide = _cut(sections, _WIDE_BLOCK, scratch if on_cpu else None)
            self._blocks = self._fine_blocks if self._is_shared else wide

    def each_tile(self, work: Callable[["AnyTile"], None]) -> None:
        """Do the work on every range of columns; all that it needs of a range is read once, and stays in the cache."""

        def make(block: "_Block") -> None:
            if not self._is_fused:
                work(Tile(block, self._multiply))
                return
            stored, first = self._stored[block.rows], block.start
            if stored is None:  # float16, which is converted first
                stored, first = Stored.of(list(block.read())), 0
            assert stored is not None
            tile = FusedTile(stored, first, block.columns, block.group)
            work(tile)
            tile.make()

        self._each(make, self._blocks)

    def blend(self, alphas: Tensor, out: Tensor) -> None:
        """Blend the experts with m coefficient vectors at once: out = alphas @ E, eq. (1).

        Args:
            alphas: [m, G, K], on the simplex.
            out: [m, d], on the bank's device; overwritten.
        Cost: (K + m) d elements moved; every expert is read once, whatever m.
        """
        coefficients = alphas.to(self.device, torch.float32)
        self.each_tile(lambda tile: tile.blend(coefficients, out))

    def inner_products(self, gradient: Tensor, theta: Tensor) -> Tensor:
        """Return <gradient, theta_k - theta> for every group's tensors and every expert, [G, K], float64.

        The experts are close to each other and to their blend, so float32 products with the raw theta_k would lose
        digits. Subtracting theta first and adding the blocks' sums in float64 avoids that.

        Args:
            gradient: [d], float32.
            theta: the blend at which the gradient was computed, [d], float32.
        Cost: K d elements read.
        """

        # Allocated before the loop: results allocated between the blocks' temporary differences would fragment memory.
        products = torch.empty(len(self._fine_blocks), self.n_experts, dtype=torch.float64, device=self.device)

        def multiply_block(number: int) -> None:
            block = self._fine_blocks[number]
            rows = block.read()
            differences = torch.sub(rows, theta[block.columns], out=rows if block.rows.is_scratch else None)
            products[number] = torch.mv(differences, gradient[block.columns])

        self._each(multiply_block, range(len(products)))
        sums = torch.zeros(self.n_groups, self.n_experts, dtype=torch.float64, device=self.device)
        for block, product in zip(self._fine_blocks, products, strict=True):
            sums[block.group] += product
        return sums

    def _each(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Do the work on every item; a large model's blocks on the CPU are distributed over threads."""
        if self._is_shared:
            share_out(work, items)
        else:
            for item in items:
                work(item)


@dataclass(frozen=True, slots=True)
class _Block:
    """A range of columns of one section, and where it lies in a row of all d elements."""

    group: int
    rows: Rows
    start: int
    stop: int
    columns: slice

    def read(self) -> Tensor:
        """Return the block of every expert, [K, n], float32."""
        return self.rows.read(self.start, self.stop)


class Tile:
    """A range of columns of every expert, of which blends can be made.

    Attributes:
        columns: where it lies in a row of all d elements.
    """

    def __init__(self, block: _Block, multiply: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        self.columns, self._block, self._multiply = block.columns, block, multiply
        self._experts: Tensor | None = None  # [K, n], once all of them were read

    def blend(self, alphas: Tensor, out: Tensor) -> None:
        """Write the tile's columns of out = alphas @ E.

        Args:
            alphas: [m, G, K], float32, on the bank's device.
            out: [m, d], float32, or bfloat16 to round the blends.
        """
        if self._experts is None:
            self._experts = self._block.read()
        coefficients, into = alphas[:, self._block.group], out[:, self.columns]
        if out.dtype == torch.float32:
            self._multiply(coefficients, self._experts, into)
        else:
            exact = torch.empty(into.shape, device=out.device)
            self._multiply(coefficients, self._experts, exact)
            into.copy_(exact)

    def blend_one(self, alphas: Tensor, row: int, out: Tensor) -> None:
        """Write the tile's columns of one row of alphas @ E to out [1, d], with the bits that it has among all rows.

        Args:
            alphas, out: as for `blend`.
        Cost: all rows are made, in memory for the tile's columns.
        """
        if self._experts is None:
            self._experts = self._block.read()
        made = torch.empty(len(alphas), self.columns.stop - self.columns.start, device=out.device)
        self._multiply(alphas[:, self._block.group], self._experts, made)
        out[0, self.columns] = made[row]

    def move(self, theta: Tensor, group: int | None, expert: int, radius: float, out: Tensor) -> None:
        """Write the tile's columns of out = theta + radius (theta_k - theta) in one group's tensors.

        All other tensors are copied from theta.

        Args:
            theta, out: [d], float32, on the bank's device; `out` is overwritten.
            group: None moves the tensors of all groups.
        Cost: one expert is read, unless all were.
        """
        block = self._block
        unmoved = theta[self.columns]
        if group is None or block.group == group:
            read = self._experts
            end = block.rows.read_one(expert, block.start, block.stop) if read is None else read[expert]
            torch.lerp(unmoved, end, radius, out=out[self.columns])
        else:
            out[self.columns] = unmoved


AnyTile = Tile | FusedTile


def lacks_compiler(n_columns: int, device: torch.device) -> bool:
    """Tell whether blends of a model of d columns would be made faster if numba were installed."""
    return device.type == "cpu" and n_columns >= _FUSED_COLUMNS and not is_available()


def _multiply(coefficients: Tensor, rows: Tensor, out: Tensor) -> None:
    torch.mm(coefficients, rows, out=out)


def _multiply_copied(coefficients: Tensor, rows: Tensor, out: Tensor) -> None:
    out.copy_(coefficients @ rows.contiguous())


def _cut(sections: Sequence[tuple[int, Rows]], size: int, scratch_size: int | None = None) -> list[_Block]:
    """Cut the sections into blocks of `size` columns; of `scratch_size` where reading copies, if that is given.

    Rows that say how many columns are best read at once get blocks of that width instead.
    """
    blocks, before = [], 0
    for group, rows in sections:
        width = rows.block_columns or (scratch_size if rows.is_scratch else None) or size
        for start in range(0, rows.n_columns, width):
            stop = min(start + width, rows.n_columns)
            blocks.append(_Block(group, rows, start, stop, slice(before + start, before + stop)))
        before += rows.n_columns
    return blocks
