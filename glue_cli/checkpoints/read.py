"""Read the headers of checkpoints: a file, the shards of an index, a Hugging Face folder; one, or many experts.

Needs torch only for files that `torch.save` wrote."""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glue_cli.checkpoints.companions import is_leftover
from glue_cli.checkpoints.foreign import refuse_foreign, refuse_foreign_folder
from glue_cli.checkpoints.header import TORCH_SUFFIXES, Checkpoint, Stamp, TensorEntry
from glue_cli.checkpoints.header_json import memory_to_parse
from glue_cli.checkpoints.kinds import kind_of
from glue_cli.checkpoints.links import check_links
from glue_cli.checkpoints.safetensors_file import MAX_HEADER_MEMORY, WRONG_FILE, read_safetensors_header
from glue_cli.checkpoints.shards import refuse_parallel, refuse_parts, refuse_without_index
from glue_cli.checkpoints.weight_sets import choose_by_prefix
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.foundation.printable import shown
from glue_cli.foundation.regular_files import is_there, read_bytes
from glue_cli.foundation.units import size

# The weights of a model's folder, in the order in which from_pretrained looks for them.
_USUAL = ("model.safetensors", "pytorch_model.bin")
_OF_A_FOLDER = (
    *(*_USUAL, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.fp16.safetensors", "pytorch_model.fp16.bin"),
    *("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16.bin"),
)
_PIPELINE = "model_index.json"  # of diffusers: several models, each in its own folder
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_OF_PATTERNS = "*?["
_NAME_IT = "name a checkpoint's file, an index, or a Hugging Face model folder"


def read_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """Read the header of a file of safetensors or `torch.save`, of an index's shards, or of a model folder.

    The kind of a file is told by its first bytes.

    Args:
        weights: the set of weights to choose in a file that has several; None to choose by convention.
    Raises:
        UsageError: there is nothing at `path`, or a file lacks the set of weights that was asked for.
        CheckpointError: it is not a checkpoint, is damaged, or has several sets and convention does not decide.
    """
    check_is_there(path)
    if path.is_dir():
        return choose_by_prefix(_read_folder(path, weights), weights)
    if path.name.endswith(".index.json"):
        return choose_by_prefix(_read_index(path, path), weights)
    refuse_parallel(path)
    return choose_by_prefix(_read_single(path, path, weights), weights)


def check_is_there(path: Path) -> None:
    """Check that there is something at a path.

    Raises:
        UsageError: there is nothing.
    """
    if is_there(path):
        return
    if is_there(index := path.with_name(f"{path.name}.index")):  # TensorFlow's files by their common beginning
        refuse_foreign(index)
    if set(_OF_PATTERNS) & set(str(path)):  # which the shell passes on where nothing matches it
        raise UsageError(
            f"no checkpoint matches '{path}'", hint="check the pattern and the folder that it starts from"
        )
    raise UsageError(f"no checkpoint at '{path}'", hint="check the path")


def _read_folder(folder: Path, weights: str | None) -> Checkpoint:
    for name in _OF_A_FOLDER:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists():
            check_links(folder, [single])
            return _read_single(folder, single, weights)
        if index.exists():
            return _read_index(folder, index)
    if (folder / _PIPELINE).exists():
        files = [file for ending in ("safetensors", "bin") for file in folder.glob(f"*/*.{ending}")]
        parts = sorted({str(file.parent) for file in files})
        hint = "blend its models one by one: name each of these folders, and a folder like it as the output"
        raise CheckpointError(f"the folder '{folder}' is a pipeline of several models", items=parts, hint=hint)
    if any((folder / name).exists() for name in _ADAPTERS):
        raise CheckpointError(
            f"the folder '{folder}' holds an adapter, and no model",
            hint="glue mix, check and evaluate take adapters, and mix --base merges them into their base",
        )
    found = sorted(file for ending in (".safetensors", *TORCH_SUFFIXES) for file in folder.glob(f"*{ending}"))
    files = [file for file in found if not is_leftover(file.name)]
    refuse_without_index(folder, files)
    for file in files:
        refuse_parallel(file)
    if all(file.name.endswith("_states.pt") for file in files):  # of DeepSpeed, or none
        refuse_foreign_folder(folder)
    raise CheckpointError(
        f"the folder '{folder}' holds no {' or '.join(_USUAL)}, and no index of either",
        items=[str(file) for file in files],
        hint="name the one of these files that is meant" if files else _NAME_IT,
    )


def _read_single(path: Path, file: Path, weights: str | None) -> Checkpoint:
    if kind_of(file) == "torch":
        from glue_cli.checkpoints.torch_file import read_torch_header

        header = read_torch_header(file, 0, weights)
        return Checkpoint(path, (file,), header.entries, {}, (header.stamp,), header.weights, header.beside)
    entries, metadata, stamp = read_safetensors_header(file, 0)
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
    missing = [str(file) for file in files if not os.path.exists(file)]  # Path.exists raises for too long a name
    if missing:
        raise CheckpointError(f"'{index}' names shards that are not there", items=missing, hint="copy them beside it")
    check_links(index.parent, files)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    stamps = []
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        shard_entries, shard_metadata, stamp = _read_shard(file, number)
        entries |= {tensor: entry for tensor, entry in shard_entries.items() if weight_map.get(tensor) == name}
        metadata |= shard_metadata
        stamps.append(stamp)
    lacking = sorted(set(weight_map) - set(entries))
    if lacking:
        raise CheckpointError(f"'{index}' names tensors that its shards lack", items=lacking, hint=WRONG_FILE)
    return Checkpoint(path, files, {name: entries[name] for name in sorted(weight_map)}, metadata, tuple(stamps))


def _read_shard(path: Path, number: int) -> tuple[dict[str, TensorEntry], dict[str, str], Stamp]:
    if kind_of(path) == "torch":
        from glue_cli.checkpoints.torch_file import read_torch_header

        header = read_torch_header(path, number)
        return header.entries, {}, header.stamp
    return read_safetensors_header(path, number)


def read_experts(paths: Sequence[Path], weights: Sequence[str | None] = ()) -> tuple[Checkpoint, ...]:
    """Read the headers of experts, as `read_checkpoint` does.

    Args:
        weights: the set of weights to choose in each, as for `read_checkpoint`; [K], or empty.

    Raises:
        UsageError, CheckpointError: as `read_checkpoint`.
    Cost: an expert with the same tensors as the first takes no more memory, or 12 bytes per tensor if they are at
        other offsets.
    """
    names = weights or [None] * len(paths)
    first = read_checkpoint(paths[0], names[0])
    positions = {name: position for position, name in enumerate(first.entries)}
    others = (read_checkpoint(path, name) for path, name in zip(paths[1:], names[1:], strict=True))
    experts = (first, *(_reduce(other, first, positions) for other in others))
    refuse_parts(experts)
    return experts


def _reduce(expert: Checkpoint, first: Checkpoint, positions: Mapping[str, int]) -> Checkpoint:
    if len(expert.entries) != len(positions):
        return expert
    if expert.entries == first.entries:  # at the same offsets too, as usual for experts of the same origin
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
    """The entries of an expert that has the same tensors as another one, but at other offsets."""

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
