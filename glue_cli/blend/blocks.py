"""Plan what a blend reads, computes and writes, block by block, from the headers alone.

Blocks are made only when they are needed: for 100,000 tensors of 32 experts they would take a gigabyte together.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, TensorEntry, is_counter
from glue_cli.checkpoints.safetensors_file import lay_out

COPIED = "U8"  # stands as the dtype of blocks that are copied from one expert, byte for byte


class Source(NamedTuple):
    """Where an expert's part of a block lies, and its coefficient."""

    expert: int
    dtype: str
    file: int
    offset: int
    weight: float


class Target(NamedTuple):
    """Where a part of a block goes: the output file, and the position in it."""

    file: int
    offset: int
    n_elements: int


@dataclass(frozen=True, slots=True)
class Block:
    """Tensors, or part of one, that are read, blended and written together; they are contiguous in every expert.

    Attributes:
        dtype: the dtype of the output, or `COPIED`.
        sources: the experts that take part.
        targets: where the elements go, one target for each part.
        is_kept: whether the recipe takes them from one expert unchanged; they may then contain infinities.
    """

    dtype: str
    n_elements: int
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    is_kept: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes read, of all experts together."""
        return self.n_elements * sum(DTYPE_BYTES[source.dtype] for source in self.sources)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the inputs and the output."""
        return self.n_bytes + self.n_elements * DTYPE_BYTES[self.dtype]

    def position_of(self, element: int) -> tuple[int, int]:
        """Return where an element goes: the output file, and the offset in it."""
        for file, offset, n_elements in self.targets:
            if element < n_elements:
                return file, offset + element * DTYPE_BYTES[self.dtype]
            element -= n_elements
        raise IndexError(element)


@dataclass(frozen=True)
class Plan:
    """All that a blend reads and writes.

    Attributes:
        entries: the output's tensors in the order of its files.
        counters: entries of `num_batches_tracked`; their values are chosen, not blended.
        made: entries of tensors that are computed elsewhere.
        streamed: all other entries that have elements, in the order in which they are read.
        experts, alphas, recipe: what the blend is made from.
        alike: tensors that are the same in all experts which take part, and copied from the first of these.
    """

    entries: Sequence[TensorEntry]
    counters: Sequence[TensorEntry]
    made: Sequence[TensorEntry]
    streamed: Sequence[TensorEntry]
    experts: Sequence[Checkpoint]
    alphas: Sequence[Sequence[float]]
    recipe: Recipe
    alike: frozenset[str] = frozenset()

    def entries_by_file(self) -> list[list[TensorEntry]]:
        """Return the output's tensors, file by file."""
        files: list[list[TensorEntry]] = [[]]
        for entry in self.entries:
            if entry.file == len(files):
                files.append([])
            files[entry.file].append(entry)
        return files

    def name_at(self, file: int, offset: int) -> str:
        """Return the tensor that a byte of the output belongs to."""
        return next(e.name for e in self.entries if e.file == file and e.offset <= offset < e.offset + e.n_bytes)

    def blocks(self, slot_bytes: int, chunk: int) -> Iterator[Block]:
        """Cut the tensors into blocks whose inputs and output fit `slot_bytes`, at multiples of `chunk` elements.

        The elements are counted from the start of each run of tensors that are contiguous in every expert.
        """
        stretch, step = _Stretch(COPIED, (), is_kept=False), chunk
        for entry in self.streamed:
            dtype, sources = _treated_as(entry), self.sources(entry)
            is_kept = entry.name in self.recipe.copied_from
            if not stretch.goes_on_at(dtype, sources, is_kept=is_kept):
                if stretch.n_elements:
                    yield stretch.take(stretch.n_elements)
                stretch = _Stretch(dtype, sources, is_kept=is_kept)
                step = max(1, slot_bytes // stretch.element_bytes // chunk) * chunk
            stretch.add(entry)
            while stretch.n_elements >= step:
                yield stretch.take(step)
        if stretch.n_elements:
            yield stretch.take(stretch.n_elements)

    def sources(self, entry: TensorEntry) -> tuple[Source, ...]:
        """Return where an output tensor comes from: experts with nonzero coefficients, or the one that is copied."""
        if _treated_as(entry) == COPIED:
            k = self.recipe.copied_from.get(entry.name, 0)
            inner = self.experts[k].entries[entry.name]
            return (Source(k, COPIED, inner.file, inner.offset, 1.0),)
        sources = []
        for k, weight in enumerate(self.recipe.coefficients(entry.name, self.alphas)):
            if weight != 0:
                _, dtype, _, file, offset = self.experts[k].entries[entry.name]
                sources.append(Source(k, dtype, file, offset, weight))
        return (sources[0]._replace(weight=1.0),) if entry.name in self.alike else tuple(sources)


@dataclass
class Survey:
    """What a pass over all blocks shows.

    Attributes:
        n_bytes: the bytes read in total.
        buffer_bytes: the most bytes that the inputs and output of one block take.
        in_file_order: for each expert, whether the blocks read its files from start to end.
    """

    n_blocks: int
    n_bytes: int
    buffer_bytes: int
    in_file_order: list[bool]


def survey(blocks: Iterable[Block], n_experts: int) -> Survey:
    """Go through all blocks once and add up what they read."""
    totals = Survey(0, 0, 0, [True] * n_experts)
    reached = [(0, 0)] * n_experts
    for block in blocks:
        totals.n_blocks += 1
        totals.n_bytes += block.n_bytes
        totals.buffer_bytes = max(totals.buffer_bytes, block.buffer_bytes)
        for expert, _, file, offset, _ in block.sources:
            if (file, offset) < reached[expert]:
                totals.in_file_order[expert] = False
            reached[expert] = file, offset
    return totals


def plan_blend(
    experts: Sequence[Checkpoint], alphas: Sequence[Sequence[float]], destination: Destination, recipe: Recipe
) -> Plan:
    """Plan the blend of compatible experts with coefficients `alphas` [G, K]; reads no weights.

    Offsets in the output are counted from the end of each file's header.
    """
    entries = [entry for file, shard in enumerate(destination.shards) for entry in lay_out(shard, file)]
    made = [entry for entry in entries if entry.name in recipe.made]
    counters = [entry for entry in entries if is_counter(entry) and recipe.is_blended(entry.name)]
    apart = {entry.name for entry in (*made, *counters)}
    streamed = [entry for entry in entries if entry.n_elements and entry.name not in apart]
    return Plan(entries, counters, made, _reading_order(streamed, experts), experts, alphas, recipe)


def _reading_order(entries: list[TensorEntry], experts: Sequence[Checkpoint]) -> list[TensorEntry]:
    """Return the output's tensors in the order that all experts store them in, if there is one.

    Many contiguous tensors can then be read at once, whatever their order in the output.
    """

    def place_in(expert: Checkpoint, entry: TensorEntry) -> tuple[int, int]:
        _, _, _, file, offset = expert.entries[entry.name]
        return file, offset

    def has_order(expert: Checkpoint, order: Iterable[TensorEntry]) -> bool:
        return all(a <= b for a, b in pairwise(place_in(expert, e) for e in order if e.name in expert.entries))

    first, *others = experts
    theirs = sorted((e for e in entries if e.name in first.entries), key=lambda entry: place_in(first, entry))
    if theirs == entries or not all(has_order(expert, theirs) for expert in others):
        return entries
    return theirs + [entry for entry in entries if entry.name not in first.entries]  # copied from another expert


def _treated_as(entry: TensorEntry) -> str:
    return entry.dtype if entry.dtype in FLOAT_DTYPES else COPIED


class _Stretch:
    """Tensors that are contiguous in every expert and treated alike; what a block takes is removed from them."""

    def __init__(self, dtype: str, sources: tuple[Source, ...], *, is_kept: bool) -> None:
        self._dtype, self._sources, self._is_kept = dtype, sources, is_kept
        self._targets: deque[Target] = deque()
        self.n_elements = 0

    @property
    def element_bytes(self) -> int:
        """Buffer bytes that one element needs."""
        return DTYPE_BYTES[self._dtype] + sum(DTYPE_BYTES[source.dtype] for source in self._sources)

    def goes_on_at(self, dtype: str, sources: tuple[Source, ...], *, is_kept: bool) -> bool:
        """Tell whether a tensor is treated like the stretch and directly follows it in each of the same experts."""
        if (dtype, is_kept) != (self._dtype, self._is_kept) or len(sources) != len(self._sources):
            return False
        return all(
            (expert, kind, file, offset + self.n_elements * DTYPE_BYTES[kind], weight) == source
            for (expert, kind, file, offset, weight), source in zip(self._sources, sources, strict=True)
        )

    def add(self, entry: TensorEntry) -> None:
        """Append a tensor to the stretch."""
        n_elements, size = entry.n_bytes // DTYPE_BYTES[self._dtype], DTYPE_BYTES[self._dtype]
        self.n_elements += n_elements
        if self._targets:
            file, offset, before = self._targets[-1]
            if (file, offset + before * size) == (entry.file, entry.offset):
                self._targets[-1] = Target(file, offset, before + n_elements)
                return
        self._targets.append(Target(entry.file, entry.offset, n_elements))

    def take(self, n_elements: int) -> Block:
        """Remove the first elements and return them as a block."""
        targets = tuple(self._take_targets(n_elements))
        block = Block(self._dtype, n_elements, self._sources, targets, self._is_kept)
        self._sources = tuple(s._replace(offset=s.offset + n_elements * DTYPE_BYTES[s.dtype]) for s in self._sources)
        self.n_elements -= n_elements
        return block

    def _take_targets(self, n_elements: int) -> Iterator[Target]:
        while n_elements:
            file, offset, n_here = self._targets.popleft()
            if n_here > n_elements:
                rest = Target(file, offset + n_elements * DTYPE_BYTES[self._dtype], n_here - n_elements)
                self._targets.appendleft(rest)
                n_here = n_elements
            yield Target(file, offset, n_here)
            n_elements -= n_here
