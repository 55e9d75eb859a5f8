"""Read the headers of checkpoints: a file, the shards of an index, a Hugging Face folder; one, or many experts.

Needs no torch, but for the files that torch wrote."""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glue_cli.checkpoints.header import TORCH_SUFFIXES, Checkpoint, TensorEntry
from glue_cli.checkpoints.header_json import memory_to_parse
from glue_cli.checkpoints.links import check_links
from glue_cli.checkpoints.safetensors_file import MAX_HEADER_MEMORY, WRONG_FILE, read_safetensors_header
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.foundation.printable import shown
from glue_cli.foundation.regular_files import read_bytes
from glue_cli.foundation.units import size


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the header of a `.safetensors` file, of an index's shards, or of a Hugging Face model folder.

    Files of the suffixes in `TORCH_SUFFIXES` are read as those of `torch.save`.

    Raises:
        UsageError: there is nothing at `path`.
        CheckpointError: it is no checkpoint, or a damaged one.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UsageError(f"no checkpoint at '{path}'", hint="check the path")
    if path.name.endswith(".index.json"):
        return _read_index(path, path)
    return _read_single(path, path)


def _read_folder(folder: Path) -> Checkpoint:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{name}.index.json", folder / name
        if index.exists():
            return _read_index(folder, index)
        if single.exists():
            check_links(folder, [single])
            return _read_single(folder, single)
    raise CheckpointError(
        f"the folder '{folder}' holds no model.safetensors or pytorch_model.bin, and no index of either",
        hint="name a checkpoint's file, an index, or a Hugging Face model folder",
    )


def _read_single(path: Path, file: Path) -> Checkpoint:
    entries, metadata, stamp = _read_header(file, 0)
    return Checkpoint(path, (file,), entries, metadata, (stamp,))


def _read_index(path: Path, index: Path) -> Checkpoint:
    try:
        content = read_bytes(index)
        if memory_to_parse(content) > MAX_HEADER_MEMORY:
            raise CheckpointError(f"'{index}' is no index of shards: it has {size(len(content))}", hint=WRONG_FILE)
        weight_map = json.loads(content)["weight_map"]
        names = sorted(set(weight_map.values()))
        files = tuple(index.parent / name for name in names)
    except OSError as error:
        raise CheckpointError(f"'{index}' cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = shown(repr(error))
        raise CheckpointError(f"'{index}' is no index of shards: {reason}", hint=WRONG_FILE) from None
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"'{index}' names shards outside its own folder", items=outside, hint=WRONG_FILE)
    missing = [str(file) for file in files if not os.path.exists(file)]  # Path.exists raises where a name is too long
    if missing:
        raise CheckpointError(f"'{index}' names shards that are not there", items=missing, hint="copy them beside it")
    check_links(index.parent, files)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    stamps = []
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        shard_entries, shard_metadata, stamp = _read_header(file, number)
        entries |= {tensor: entry for tensor, entry in shard_entries.items() if weight_map.get(tensor) == name}
        metadata |= shard_metadata
        stamps.append(stamp)
    lacking = sorted(set(weight_map) - set(entries))
    if lacking:
        raise CheckpointError(f"'{index}' names tensors that its shards lack", items=lacking, hint=WRONG_FILE)
    return Checkpoint(path, files, {name: entries[name] for name in sorted(weight_map)}, metadata, tuple(stamps))


def _read_header(path: Path, number: int) -> tuple[dict[str, TensorEntry], dict[str, str], tuple[int, int]]:
    if path.suffix in TORCH_SUFFIXES:
        from glue_cli.checkpoints.torch_file import read_torch_header

        return read_torch_header(path, number)
    return read_safetensors_header(path, number)


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
