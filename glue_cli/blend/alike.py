"""Tensors that all experts have alike: they are copied, since their sum may be off by a bit, or overflow."""

from collections.abc import Iterator, Sequence
from itertools import islice

from glue_cli.blend.blocks import Plan, Source
from glue_cli.checkpoints.files import read_into
from glue_cli.checkpoints.header import DTYPE_BYTES, Checkpoint
from glue_cli.foundation.threads import single_threaded

_FIRST_BYTES = 64  # tell most tensors apart
_BLOCK_BYTES = 1 << 20
_WINDOW = 16  # tensors that a thread compares before more are looked for
_ROUNDED = ("F32", "F64")  # the sum of narrower numbers is exact enough to give them back in their own dtype


def find_alike(
    plan: Plan, experts: Sequence[Checkpoint], descriptors: Sequence[Sequence[int]], n_threads: int
) -> frozenset[str]:
    """Return the tensors that have the same bytes in all experts which take part in their blend.

    Args:
        descriptors: the experts' open files.
    Raises:
        CheckpointError: a file ends early, or cannot be read.
    Cost: reads 64 bytes of every tensor in two experts, and what is alike in all of them.
    """

    def read(source: Source, start: int, n_bytes: int) -> bytes:
        part = bytearray(n_bytes)
        file = experts[source.expert].files[source.file]
        read_into(descriptors[source.expert][source.file], memoryview(part), source.offset + start, file)
        return bytes(part)

    def is_alike(sources: Sequence[Source], n_bytes: int) -> bool:
        for start in range(0, n_bytes, _BLOCK_BYTES):
            n = min(_BLOCK_BYTES, n_bytes - start)
            wanted = read(sources[0], start, n)
            if any(read(source, start, n) != wanted for source in sources[1:]):
                return False
        return True

    def may_be_alike() -> Iterator[tuple[str, Sequence[Source], int]]:
        for entry in plan.streamed:
            sources = plan.sources(entry)
            dtypes = {source.dtype for source in sources}
            is_rounded = bool(dtypes & {*_ROUNDED}) or dtypes != {entry.dtype}
            if len(sources) > 1 and len(dtypes) == 1 and is_rounded:
                n_bytes = entry.n_elements * DTYPE_BYTES[sources[0].dtype]  # in the experts, not in the output
                n_first = min(_FIRST_BYTES, n_bytes)
                if read(sources[0], 0, n_first) == read(sources[1], 0, n_first):
                    yield entry.name, sources, n_bytes

    candidates, found = may_be_alike(), set[str]()
    with single_threaded(n_threads) as pool:
        while window := list(islice(candidates, _WINDOW * n_threads)):
            alike = pool.map(lambda candidate: is_alike(*candidate[1:]), window)
            found |= {name for (name, *_), same in zip(window, alike, strict=True) if same}
    return frozenset(found)
