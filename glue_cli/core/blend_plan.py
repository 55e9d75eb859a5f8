"""What a blend will read, do and write, block by block, decided from the headers alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glue_cli.core.checkpoint import DTYPE_BYTES, Checkpoint, TensorEntry
from glue_cli.core.compatibility import FLOAT_DTYPES, is_counter
from glue_cli.core.destination import Destination
from glue_cli.core.layout import place


@dataclass(frozen=True, slots=True)
class Source:
    """Where an expert's part of a segment lies."""

    expert: int
    dtype: str
    file: int
    offset: int


@dataclass(frozen=True)
class Segment:
    """A run of neighbouring tensors that are treated alike and follow each other in every expert too.

    Attributes:
        dtype: the output's; "U8" for a run that is copied byte by byte.
        file, offset: where the run begins: which of the output's files, and where in it.
        sources: the experts that take part.
        names: the tensors, each with its first element within the run.
        copied: True when the first expert's bytes are taken, which all the others share.
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
    """Attributes:
    entries: the output's tensors in the order of its files.
    segments: runs of tensors to blend or copy, in the output's order.
    counters: entries of `num_batches_tracked`, whose value is chosen, not blended.
    """

    entries: tuple[TensorEntry, ...]
    segments: tuple[Segment, ...]
    counters: tuple[TensorEntry, ...]

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


def plan_blend(experts: Sequence[Checkpoint], alpha: Sequence[float], destination: Destination) -> Plan:
    """Plan the blend of compatible experts with coefficients `alpha` [K]; reads nothing.

    The output's offsets count from the end of each file's header.
    """
    entries = [entry for file, shard in enumerate(destination.shards) for entry in place(shard, file)]
    counters = tuple(e for e in entries if is_counter(e))
    runs: list[list[Segment]] = []
    for entry in entries:
        if entry.n_elements and not is_counter(entry):
            segment = _segment(entry, experts, alpha)
            if runs and _follows(runs[-1][-1], segment):
                runs[-1].append(segment)
            else:
                runs.append([segment])
    return Plan(tuple(entries), tuple(_joined(run) for run in runs), counters)


def _segment(entry: TensorEntry, experts: Sequence[Checkpoint], alpha: Sequence[float]) -> Segment:
    copied = entry.dtype not in FLOAT_DTYPES
    sources = []
    for k, expert in enumerate(experts):
        if k == 0 if copied else alpha[k] != 0:
            inner = expert.entries[entry.name]
            sources.append(Source(k, "U8" if copied else inner.dtype, inner.file, inner.offset))
    n_elements = entry.n_bytes if copied else entry.n_elements
    dtype = "U8" if copied else entry.dtype
    return Segment(dtype, entry.file, entry.offset, n_elements, tuple(sources), ((0, entry.name),), copied)


def _follows(left: Segment, right: Segment) -> bool:
    """Tell whether `right` lies next to `left` in the output and in each expert."""
    if left.dtype != right.dtype or left.copied != right.copied:
        return False
    if (
        left.file != right.file or left.offset + left.n_elements * DTYPE_BYTES[left.dtype] != right.offset
    ):  # a counter lies between
        return False
    return all(
        a.dtype == b.dtype and a.file == b.file and a.offset + left.n_elements * DTYPE_BYTES[a.dtype] == b.offset
        for a, b in zip(left.sources, right.sources, strict=True)
    )


def _joined(run: Sequence[Segment]) -> Segment:
    names, n_elements = [], 0
    for segment in run:
        names.append((n_elements, segment.names[0][1]))
        n_elements += segment.n_elements
    first = run[0]
    return Segment(first.dtype, first.file, first.offset, n_elements, first.sources, tuple(names), first.copied)
