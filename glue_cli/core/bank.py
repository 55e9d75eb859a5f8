"""The experts in memory during the search: rows of one matrix, so that all blends of a step are one product."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from glue_cli.core.checkpoint import Checkpoint
from glue_cli.core.compatibility import FLOAT_DTYPES
from glue_cli.core.errors import CheckpointError
from glue_cli.core.tensors import TORCH_DTYPES, bytes_of, open_files, read_into
from glue_cli.core.threads import share_out

# Elements between the starts of two tensors are a multiple of this: 64 bytes, for aligned loads.
_ALIGN = 16
# Columns handled at once: K such blocks stay in the cache. Both probes of a pair, K = 8, d = 1e8, float32, two cores:
# 0.112 s in these blocks by two threads, 0.254 s as one product, 0.108 s to sum the same matrix.
_BLOCK = 1 << 16
# Columns at once where calls or launches count for more than the cache: small models, and GPUs.
_WIDE_BLOCK = 1 << 22
# A model with fewer columns is blended before threads have started.
_SHARED_COLUMNS = 1 << 23

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a row: `n` elements from `start`; convolution weights in channels_last order."""

    start: int
    shape: tuple[int, ...]
    channels_last: bool

    def view(self, row: Tensor) -> Tensor:
        """Return the tensor as a view of a row [d]."""
        flat = row[self.start : self.start + torch.Size(self.shape).numel()]
        if not self.channels_last:
            return flat.view(self.shape)
        o, i, h, w = self.shape
        return flat.view(o, h, w, i).permute(0, 3, 1, 2)


class ExpertBank:
    """K experts' floating-point tensors as rows of matrices on a device, one matrix a stored dtype.

    bfloat16 and float16 experts stay so and are converted block by block; blends and sums are float32.

    Attributes:
        places: where each tensor lies within a row of d elements, all stored dtypes one after another.
        n_experts: K.
        n_columns: d, padding between the tensors included.
    """

    def __init__(self, rows: Mapping[torch.dtype, Tensor], places: Mapping[str, Place]) -> None:
        self._rows = list(rows.values())  # each [K, d of that dtype]
        self.places = dict(places)
        self.n_experts = self._rows[0].shape[0]
        self.n_columns = sum(rows.shape[1] for rows in self._rows)
        self.device = self._rows[0].device
        self._is_shared = self.device.type == "cpu" and self.n_columns >= _SHARED_COLUMNS
        self._blocks = _cut(self._rows, _BLOCK if self.device.type == "cpu" else _WIDE_BLOCK)
        self._wide_blocks = _cut(self._rows, _WIDE_BLOCK)

    def blend(self, alphas: Tensor, out: Tensor) -> None:
        """Blend the experts with m coefficient vectors at once: out = alphas @ E, eq. (1).

        Args:
            alphas: [m, K], on the simplex.
            out: [m, d], float32, on the bank's device; overwritten.
        Cost: (K + m) d elements moved; every expert is read once, whatever m.
        """
        alphas = alphas.to(self.device, torch.float32)

        def blend_block(block: _Block) -> None:
            torch.mm(alphas, self._columns(block), out=out[:, block.there])

        self._each(blend_block, self._blocks if self._is_shared else self._wide_blocks)

    def inner_products(self, gradient: Tensor, theta: Tensor) -> Tensor:
        """Return <gradient, theta_k - theta> for every expert, [K], float64.

        The experts are close to each other and to their blend, so products with the raw theta_k would lose digits in
        float32; centred, and with the blocks' sums added up in float64, they do not.

        Args:
            gradient: [d], float32; theta: the blend that it was taken at, [d], float32.
        Cost: K d elements read.
        """

        def multiply_block(block: _Block) -> Tensor:
            return torch.mv(self._columns(block) - theta[block.there], gradient[block.there]).double()

        return torch.stack(self._each(multiply_block, self._blocks)).sum(0)

    def _each(self, work: Callable[["_Block"], Result], blocks: Sequence["_Block"]) -> list[Result]:
        """Do the work on every block; the many blocks of a large model on the CPU are shared out over threads."""
        return share_out(work, blocks) if self._is_shared else [work(block) for block in blocks]

    def _columns(self, block: "_Block") -> Tensor:
        """Return a block of every expert, [K, n], float32."""
        return self._rows[block.matrix][:, block.here].float()


@dataclass(frozen=True, slots=True)
class _Block:
    """Some columns: where they lie in their matrix, and where in a row of all d elements."""

    matrix: int
    here: slice
    there: slice


def _cut(rows: Sequence[Tensor], size: int) -> list[_Block]:
    """Cut matrices [K, d of each] into blocks of `size` columns."""
    blocks, start = [], 0
    for number, matrix in enumerate(rows):
        width = matrix.shape[1]
        for column in range(0, width, size):
            end = min(column + size, width)
            blocks.append(_Block(number, slice(column, end), slice(start + column, start + end)))
        start += width
    return blocks


def load_bank(experts: Sequence[Checkpoint], *, device: torch.device, channels_last: bool) -> ExpertBank:
    """Read the floating-point tensors of compatible experts onto a device.

    Raises:
        CheckpointError: an expert has NaN or infinity.
    """
    groups = _group_by_dtype(experts)
    places: dict[str, Place] = {}
    rows: dict[torch.dtype, Tensor] = {}
    start = 0
    for dtype, names in groups.items():
        local, width = _place(names, experts[0], channels_last)
        rows[dtype] = torch.zeros(len(experts), width, dtype=dtype)
        places |= {name: Place(start + place.start, place.shape, place.channels_last) for name, place in local.items()}
        start += width
        for k, expert in enumerate(experts):
            _read_row(expert, local, rows[dtype][k])
        rows[dtype] = rows[dtype].to(device)
    return ExpertBank(rows, places)


def _group_by_dtype(experts: Sequence[Checkpoint]) -> dict[torch.dtype, list[str]]:
    groups: dict[torch.dtype, list[str]] = {}
    for name, entry in experts[0].entries.items():
        if entry.dtype in FLOAT_DTYPES and entry.n_elements:
            dtypes = {expert.entries[name].dtype for expert in experts}
            # the search computes in float32; only halves that all experts share are worth keeping as they are
            dtype = TORCH_DTYPES[entry.dtype] if dtypes in ({"BF16"}, {"F16"}) else torch.float32
            groups.setdefault(dtype, []).append(name)
    if not groups:
        raise CheckpointError(f"'{experts[0].path}' has no floating-point tensors to blend")
    return groups


def _place(names: Sequence[str], expert: Checkpoint, channels_last: bool) -> tuple[dict[str, Place], int]:
    """Lay tensors out one after another; return their places and the width of all."""
    places, position = {}, 0
    for name in names:
        entry = expert.entries[name]
        places[name] = Place(position, entry.shape, channels_last and len(entry.shape) == 4)
        position += entry.n_elements + (-entry.n_elements % _ALIGN)
    return places, position


def _read_row(expert: Checkpoint, places: Mapping[str, Place], row: Tensor) -> None:
    with open_files(expert) as descriptors:
        for name, place in places.items():
            entry = expert.entries[name]
            tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
            read_into(descriptors[entry.file], bytes_of(tensor), entry.offset, expert.files[entry.file])
            if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
                wrong = tensor[~torch.isfinite(tensor)][0].item()
                raise CheckpointError(f"{expert.path}: '{name}' has {wrong}", hint="leave this expert out, or mend it")
            place.view(row).copy_(tensor)
