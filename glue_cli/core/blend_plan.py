"""What a blend will read, do and write, block by block, decided from the headers alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from glue_cli.core.checkpoint import DTYPE_BYTES, Checkpoint, TensorEntry, paused_collection
from glue_cli.core.compatibility import FLOAT_DTYPES, is_counter
from glue_cli.core.destination import Destination
from glue_cli.core.layout import place
from glue_cli.core.recipe import Recipe


class Source(NamedTuple):
    """Where an expert's part of a segment lies, and its coefficient."""

    expert: int
    dtype: str
    file: int
    offset: int
    weight: float


@dataclass(frozen=True)
class Segment:
    """A run of neighbouring tensors that are treated alike and follow each other in every expert too.

    Attributes:
        dtype: the output's; "U8" for a run that is copied byte by byte.
        file, offset: where the run begins: which of the output's files, and where in it.
        sources: the experts that take part.
        names: the tensors, each with its first element within the run.
        copied: True when the bytes of the one source are taken as they are.
    """

    dtype: str
    file: int
    offset: int
    n_elements: int
    sources: tuple[Source, ...]
    names: tuple[tuple[int, str], ...]
    copied: bool

    def name_at(self, element: int) -> str:
        return next(name for first, name in reversed(self.names) if first <= element)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a segment that is read, blended and written at once."""

    segment: Segment
    start: int
    n_elements: int

    @property
    def n_bytes(self) -> int:
        """Bytes read, of all experts together."""
        return self.n_elements * sum(DTYPE_BYTES[source.dtype] for source in self.segment.sources)


@dataclass(frozen=True)
class Plan:
    """All that a blend reads and writes.

    Attributes:
        entries: the output's tensors in the order of its files.
        segments: runs of tensors to blend or copy, in the output's order.
        counters: entries of `num_batches_tracked`, whose value is chosen, not blended.
        made: entries of tensors that come from elsewhere.
    """

    entries: tuple[TensorEntry, ...]
    segments: tuple[Segment, ...]
    counters: tuple[TensorEntry, ...]
    made: tuple[TensorEntry, ...]

    def entries_by_file(self) -> list[list[TensorEntry]]:
        """Return the output's tensors, file by file."""
        files: list[list[TensorEntry]] = [[]]
        for entry in self.entries:
            if entry.file == len(files):
                files.append([])
            files[entry.file].append(entry)
        return files

    def blocks(self, slot_bytes: int, chunk: int) -> Iterator[Block]:
        """Cut the segments into blocks whose inputs and output fit `slot_bytes`, at multiples of `chunk` elements."""
        for segment in self.segments:
            element_bytes = slot_element_bytes(segment)
            step = max(1, slot_bytes // element_bytes // chunk) * chunk
            for start in range(0, segment.n_elements, step):
                yield Block(segment, start, min(step, segment.n_elements - start))


def slot_element_bytes(segment: Segment) -> int:
    """Return the bytes of buffer that one element of the segment needs."""
    return DTYPE_BYTES[segment.dtype] + sum(DTYPE_BYTES[source.dtype] for source in segment.sources)


def plan_blend(
    experts: Sequence[Checkpoint], alphas: Sequence[Sequence[float]], destination: Destination, recipe: Recipe
) -> Plan:
    """Plan the blend of compatible experts with coefficients `alphas` [G, K]; reads nothing.

    The output's offsets count from the end of each file's header.
    """
    entries = [entry for file, shard in enumerate(destination.shards) for entry in place(shard, file)]
    made = tuple(entry for entry in entries if entry.name in recipe.made)
    counters = tuple(entry for entry in entries if is_counter(entry) and recipe.is_blended(entry.name))
    apart = {entry.name for entry in (*made, *counters)}
    runs: list[_Run] = []
    with paused_collection():
        for entry in entries:
            if entry.n_elements and entry.name not in apart:
                sources = _sources(entry, experts, alphas, recipe)
                if not runs or not runs[-1].extend(entry, sources):
                    runs.append(_Run(entry, sources))
    return Plan(tuple(entries), tuple(run.segment() for run in runs), counters, made)


def _sources(
    entry: TensorEntry, experts: Sequence[Checkpoint], alphas: Sequence[Sequence[float]], recipe: Recipe
) -> list[Source]:
    """Return where a tensor of the output comes from: the experts with a coefficient, or the one that is copied."""
    if entry.dtype not in FLOAT_DTYPES:
        k = recipe.copied_from.get(entry.name, 0)
        inner = experts[k].entries[entry.name]
        return [Source(k, "U8", inner.file, inner.offset, 1.0)]
    sources = []
    for k, weight in enumerate(recipe.coefficients(entry.name, alphas)):
        if weight != 0:
            inner = experts[k].entries[entry.name]
            sources.append(Source(k, inner.dtype, inner.file, inner.offset, weight))
    return sources


@dataclass
class _Run:
    """A segment while it grows."""

    first: TensorEntry
    sources: Sequence[Source]
    names: list[tuple[int, str]] = field(default_factory=list)
    n_elements: int = 0

    def __post_init__(self) -> None:
        self._add(self.first)

    @property
    def _is_copied(self) -> bool:
        return self.first.dtype not in FLOAT_DTYPES

    def _add(self, entry: TensorEntry) -> None:
        self.names.append((self.n_elements, entry.name))
        self.n_elements += entry.n_bytes if self._is_copied else entry.n_elements

    def extend(self, entry: TensorEntry, sources: Sequence[Source]) -> bool:
        """Take one more tensor in, if it lies next to the run in the output and in each of the same experts."""
        first = self.first
        if self._is_copied != (entry.dtype not in FLOAT_DTYPES) or not self._is_copied and entry.dtype != first.dtype:
            return False
        n_bytes = self.n_elements * (1 if self._is_copied else DTYPE_BYTES[first.dtype])
        if (entry.file, entry.offset) != (first.file, first.offset + n_bytes):  # a counter lies between
            return False
        if len(sources) != len(self.sources) or not all(
            (a.expert, a.weight, a.dtype, a.file) == (b.expert, b.weight, b.dtype, b.file)
            and a.offset + self.n_elements * DTYPE_BYTES[a.dtype] == b.offset
            for a, b in zip(self.sources, sources, strict=True)
        ):
            return False
        self._add(entry)
        return True

    def segment(self) -> Segment:
        first, dtype = self.first, "U8" if self._is_copied else self.first.dtype
        sources, names = tuple(self.sources), tuple(self.names)
        return Segment(dtype, first.file, first.offset, self.n_elements, sources, names, self._is_copied)
