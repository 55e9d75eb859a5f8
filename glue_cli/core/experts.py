"""Reading the headers of many experts: the first one's is kept whole, of the others only where their tensors lie."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glue_cli.core.checkpoint import Checkpoint, TensorEntry, read_checkpoint


def read_experts(paths: Sequence[Path]) -> tuple[Checkpoint, ...]:
    """Read the headers of experts, as `read_checkpoint` does.

    Raises:
        UsageError, CheckpointError: as `read_checkpoint`.
    Cost: an expert with the tensors of the first keeps nothing, or 12 bytes a tensor where their order differs.
    """
    first = read_checkpoint(paths[0])
    positions = {name: position for position, name in enumerate(first.entries)}
    return (first, *(_reduce(read_checkpoint(path), first, positions) for path in paths[1:]))


def _reduce(expert: Checkpoint, first: Checkpoint, positions: Mapping[str, int]) -> Checkpoint:
    if len(expert.entries) != len(positions):
        return expert
    if expert.entries == first.entries:  # at the same places too: the rule among experts of one origin
        return replace(expert, entries=first.entries)
    files, offsets = array("I", bytes(4 * len(positions))), array("Q", bytes(8 * len(positions)))
    for name, entry in expert.entries.items():
        wanted = first.entries.get(name)
        if wanted is None or entry.dtype != wanted.dtype or entry.shape != wanted.shape:
            return expert
        position = positions[name]
        files[position], offsets[position] = entry.file, entry.offset
    return replace(expert, entries=_Places(first.entries, positions, files, offsets))


class _Places(Mapping[str, TensorEntry]):
    """The entries of an expert whose tensors are those of another one, at places of their own."""

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        positions: Mapping[str, int],
        files: Sequence[int],
        offsets: Sequence[int],
    ) -> None:
        self._entries, self._positions, self._files, self._offsets = entries, positions, files, offsets

    def __getitem__(self, name: str) -> TensorEntry:
        position, entry = self._positions[name], self._entries[name]
        return TensorEntry(name, entry.dtype, entry.shape, self._files[position], self._offsets[position])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)
