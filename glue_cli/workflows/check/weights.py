"""Go once through all weights of the experts: NaN and infinity, inner products, sha256; in bounded memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from glue_cli.blend.relatedness import cosines_of
from glue_cli.blend.to_files import N_THREADS
from glue_cli.checkpoints.files import check_unchanged, open_files, read_into
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of
from glue_cli.foundation.progress import Advanced, Finished, Progress, Started, silent
from glue_cli.foundation.threads import single_threaded

# Elements of every expert that are handled at once: 1 MB in float64, so that few experts stay in the cache.
CHUNK = 131_072
# Chunks of all threads together that are read before their sums are added and the experts are hashed as far.
_WINDOW = 16
# A tensor of fewer elements tells nothing, even if it is a head; FEWEST_ELEMENTS are needed for any other.
_FEWEST = 32


class NonFinite(NamedTuple):
    """How many NaN and infinities one tensor of an expert has."""

    tensor: str
    nan: int
    infinite: int


@dataclass(frozen=True)
class Weights:
    """What a pass over the weights of K experts shows.

    Attributes:
        gram: the inner products of the experts' weights, [K, K], float64; of the tensors with two and more dimensions
            that all experts have, since scales and shifts are near 1 and 0 in any model. NaN for an expert with NaN.
        smallest_cosines: by tensor, the smallest cosine between two experts; of those with 32 elements and more.
        non_finite: for each expert, its tensors with NaN or infinity.
        digests: the experts' sha256, in hexadecimal.
    """

    gram: Tensor
    smallest_cosines: Mapping[str, float]
    non_finite: Sequence[Sequence[NonFinite]]
    digests: Sequence[str]


class _Chunk(NamedTuple):
    """A part of one tensor: `n` elements from `start` on, in the experts that have it."""

    name: str
    start: int
    n: int
    experts: tuple[int, ...]
    is_compared: bool


class _Counted(NamedTuple):
    """What one chunk gives: inner products [K, K] if it is compared, and NaN and infinities by expert."""

    chunk: _Chunk
    gram: Tensor | None
    non_finite: dict[int, tuple[int, int]]


def read_weights(
    experts: Sequence[Checkpoint],
    *,
    hashes: Sequence[StreamedHash] | None = None,
    is_compared: bool = True,
    copied: Collection[str] = (),
    progress: Progress = silent,
) -> Weights:
    """Read every floating-point tensor of every expert once.

    Args:
        hashes: the experts' sha256 [K], which are finished on the way; None computes all.
        is_compared: whether to take inner products between experts.
        copied: tensors that a mix copies from one expert: they are not compared, and infinity in them is no fault.
    Raises:
        CheckpointError: a file cannot be read, or changed since its header was read.
    Cost: every file is read once, and hashed from the system's cache unless its hash is remembered; K^2 d
        multiplications in float64. Memory: a chunk of every expert for each thread, however large the experts are.
    """
    n_experts = len(experts)
    products, faults = _Products(n_experts), _Faults(n_experts, copied)
    hashes = hashes or [StreamedHash(expert) for expert in experts]
    chunks = _cut(experts, copied if is_compared else None)
    n_bytes, n_done = sum(_all_bytes(expert) for expert in experts), 0
    progress(Started("read", n_bytes, "B"))
    with ExitStack() as stack:
        descriptors = [stack.enter_context(open_files(expert)) for expert in experts]
        pool = stack.enter_context(single_threaded(N_THREADS))
        hashing: list[Future[None]] = []
        while window := list(islice(chunks, _WINDOW * N_THREADS)):
            counting = [pool.submit(_count, experts, descriptors, chunk) for chunk in window]
            for future in hashing:
                future.result()
            for counted in (future.result() for future in counting):
                products.add(counted)
                faults.add(counted)
                n_done += sum(_bytes_of(experts[k], counted.chunk) for k in counted.chunk.experts)
            hashing = [
                pool.submit(streamed.catch_up, *_place_of(expert, window[-1]))
                for streamed, expert in zip(hashes, experts, strict=True)
                if window[-1].name in expert.entries
            ]
            progress(Advanced(n_done))
        for future in hashing:
            future.result()
        digests = list(pool.map(StreamedHash.finish, hashes))
        for expert, opened in zip(experts, descriptors, strict=True):
            check_unchanged(expert, opened)
    progress(Finished())
    gram, cosines = products.finish()
    return Weights(gram, cosines, faults.by_expert(), digests)


def _cut(experts: Sequence[Checkpoint], copied: Collection[str] | None) -> Iterator[_Chunk]:
    """Yield the chunks of all floating-point tensors, in the order of the first expert's files.

    Args:
        copied: tensors that are not compared; None if none is.
    """
    first = experts[0].entries
    names = sorted(first, key=lambda name: (first[name].file, first[name].offset))
    names += [name for name in dict.fromkeys(n for expert in experts for n in expert.entries) if name not in first]
    for name in names:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for k, expert in enumerate(experts):
            if (entry := expert.entries.get(name)) and entry.dtype in FLOAT_DTYPES:
                by_shape.setdefault(entry.shape, []).append(k)
        for shape, owners in by_shape.items():
            n_elements = torch.Size(shape).numel()
            is_shared = len(owners) == len(experts) and len(shape) > 1
            is_compared = is_shared and copied is not None and name not in copied
            for start in range(0, n_elements, CHUNK):
                yield _Chunk(name, start, min(CHUNK, n_elements - start), tuple(owners), is_compared)


def _count(experts: Sequence[Checkpoint], descriptors: Sequence[Sequence[int]], chunk: _Chunk) -> _Counted:
    rows = torch.empty(len(chunk.experts), chunk.n, dtype=torch.float64)
    for row, k in zip(rows, chunk.experts, strict=True):
        file, offset = _place_of(experts[k], chunk)
        part = torch.empty(chunk.n, dtype=TORCH_DTYPES[experts[k].entries[chunk.name].dtype])
        read_into(descriptors[k][file], bytes_of(part), offset, experts[k].files[file])
        row.copy_(part)
    gram = rows @ rows.T if chunk.is_compared else None
    sums = gram.diagonal() if gram is not None else rows.sum(1)
    non_finite: dict[int, tuple[int, int]] = {}
    for k, row, total in zip(chunk.experts, rows, sums, strict=True):
        if not torch.isfinite(total):  # a finite sum means that all are finite, and is cheaper to check
            nan, infinite = int(torch.isnan(row).sum()), int(torch.isinf(row).sum())
            non_finite |= {k: (nan, infinite)} if nan or infinite else {}
    return _Counted(chunk, gram, non_finite)


class _Products:
    """Adds up the inner products of one tensor after the other, and those of all tensors."""

    def __init__(self, n_experts: int) -> None:
        self._name, self._n = "", 0
        self._gram, self._total = (torch.zeros(n_experts, n_experts, dtype=torch.float64) for _ in range(2))
        self._cosines: dict[str, float] = {}

    def add(self, counted: _Counted) -> None:
        if counted.chunk.name != self._name:
            self._end_tensor()
            self._name = counted.chunk.name
        if counted.gram is not None:
            self._gram += counted.gram
            self._n += counted.chunk.n

    def finish(self) -> tuple[Tensor, dict[str, float]]:
        """Return the products of all tensors [K, K], and the smallest cosine of each tensor that is large enough."""
        self._end_tensor()
        return self._total, self._cosines

    def _end_tensor(self) -> None:
        if self._n >= _FEWEST:
            cosines = of_pairs(cosines_of(self._gram))
            if (known := cosines[cosines.isfinite()]).numel():
                self._cosines[self._name] = known.min().item()
        self._total += self._gram
        self._gram, self._n = torch.zeros_like(self._gram), 0


def of_pairs(matrix: Tensor) -> Tensor:
    """Return the entries above the diagonal of a matrix [K, K], row by row: one for each pair, [K (K - 1) / 2]."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[rows, columns]


class _Faults:
    """Adds up the NaN and infinities of each tensor of each expert."""

    def __init__(self, n_experts: int, copied: Collection[str]) -> None:
        self._copied = copied
        self._found = [dict[str, NonFinite]() for _ in range(n_experts)]

    def add(self, counted: _Counted) -> None:
        name = counted.chunk.name
        for k, (nan, infinite) in counted.non_finite.items():
            if nan or name not in self._copied:
                before = self._found[k].get(name, NonFinite(name, 0, 0))
                self._found[k][name] = NonFinite(name, before.nan + nan, before.infinite + infinite)

    def by_expert(self) -> list[list[NonFinite]]:
        return [list(own.values()) for own in self._found]


def _place_of(expert: Checkpoint, chunk: _Chunk) -> tuple[int, int]:
    """Return where a chunk starts in an expert's files: the file's number, and the offset in it."""
    entry = expert.entries[chunk.name]
    return entry.file, entry.offset + chunk.start * DTYPE_BYTES[entry.dtype]


def _bytes_of(expert: Checkpoint, chunk: _Chunk) -> int:
    return chunk.n * DTYPE_BYTES[expert.entries[chunk.name].dtype]


def _all_bytes(expert: Checkpoint) -> int:
    return sum(entry.n_bytes for entry in expert.entries.values() if entry.dtype in FLOAT_DTYPES)
