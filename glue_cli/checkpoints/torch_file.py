"""Find where the tensors are in a file that `torch.save` wrote, without reading them and without running its code.

The file is a zip archive with a pickle and an uncompressed record for each storage. `torch.load` unpickles it with
`weights_only=True` into tensors without memory, which know their offset in the file.
"""

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from glue_cli.checkpoints.header import Stamp, TensorEntry, stamp_of
from glue_cli.checkpoints.nested_pickles import largest_tuple
from glue_cli.checkpoints.tensors import FILE_DTYPES
from glue_cli.checkpoints.weight_sets import CONVENTIONAL, choose_set, is_average, is_of_training
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.units import size

_LOCAL_HEADER_BYTES = 30
_ALIKE = 0.9  # the share of a set's names that a copy of another set has
_LARGEST_TUPLE = 100_000  # of any small file; those of a large one may be as large as the file
# Errors on reading a damaged archive, which can be compressed in four ways.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, ValueError, RuntimeError)
_SAVE_AGAIN = "load it with the PyTorch that wrote it, and save the model's state_dict() again"
_TENSORS_ALONE = "save the tensors alone: {name: tensor for name, tensor in state_dict.items() if is_tensor(tensor)}"


@dataclass(frozen=True)
class TorchHeader:
    """Where the tensors are in a file that `torch.save` wrote.

    Attributes:
        entries: in the state dict's order.
        stamp: the file's when this was read.
        weights: the name of the state dict that was chosen; None if the file has only one.
        beside: what the file holds besides, is left out, and may belong to a model.
    """

    entries: dict[str, TensorEntry]
    stamp: Stamp
    weights: str | None
    beside: tuple[str, ...]


def read_torch_header(path: Path, number: int, wanted: str | None = None) -> TorchHeader:
    """Find the tensors in a file that `torch.save` wrote: a state dict, or a training checkpoint that has one.

    Args:
        number: the file's number within the checkpoint.
        wanted: the name of the state dict to choose if there are several; None to choose by convention.
    Raises:
        UsageError: there are several, and `wanted` is not one of them.
        CheckpointError: the file is damaged, was written by PyTorch before 1.6, or holds anything but tensors in
            row-major order; or there are several state dicts, and convention does not decide.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            stamp = stamp_of(file.fileno())
            records = _find_records(path, file)
            weights, state, beside = _state_dict_in(path, _load(path, file), wanted)
    except OSError as error:
        reason = error.strerror or error  # bzip2's errors have no strerror
        raise CheckpointError(f"'{path}' cannot be read: {reason}") from None
    strided = [f"'{name}' is {list(t.shape)}, {_layout_of(t)}" for name, t in state.items() if _is_odd(t)]
    if strided:
        way = (
            "to_dense().contiguous()"
            if any(tensor.layout != torch.strided for tensor in state.values())
            else "contiguous()"
        )
        hint = f"save the tensors contiguous: {{name: tensor.{way} for name, tensor in state_dict.items()}}"
        raise CheckpointError(f"'{path}' has tensors that do not lie row-major", items=strided, hint=hint)
    entries = {name: _entry(path, number, name, tensor, records) for name, tensor in state.items()}
    return TorchHeader(entries, stamp, weights, beside)


def _find_records(path: Path, file: IO[bytes]) -> dict[int, int]:
    """Return the size of each uncompressed record of the archive, by the offset of its first byte."""
    records = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = {member.filename.rpartition("/")[2] for member in members}
            _check_pickles(path, archive, os.fstat(file.fileno()).st_size)
            order = [archive.open(member).read(16) for member in members if member.filename.endswith("/byteorder")]
        for member in members:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
            n_name, n_extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            if member.compress_type == zipfile.ZIP_STORED:
                records[member.header_offset + _LOCAL_HEADER_BYTES + n_name + n_extra] = member.file_size
    except _DAMAGED:
        message = f"'{path}' is cut short, or was not saved by torch.save since PyTorch 1.6"
        raise CheckpointError(message, hint=_SAVE_AGAIN) from None
    if any(name.endswith(".npy") for name in names):
        hint = "write them as safetensors: safetensors.numpy.save_file(dict(numpy.load(PATH)), 'model.safetensors')"
        raise CheckpointError(f"'{path}' holds arrays of NumPy", hint=hint)
    if "constants.pkl" in names:
        raise CheckpointError(f"'{path}' is a TorchScript archive", hint=_SAVE_AGAIN)
    if "data.pkl" not in names:
        items = sorted(f"'{name}'" for name in names if name)
        message = f"'{path}' is a zip archive that torch.save did not write"
        raise CheckpointError(message, items=items, hint=_SAVE_AGAIN)
    if order not in ([], [b"little"]):
        raise CheckpointError(f"'{path}' was saved on a big-endian machine", hint=_SAVE_AGAIN)
    return records


def _check_pickles(path: Path, archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Reject pickles that could need far more memory or time than the file.

    These are compressed ones, those with a bytearray, and those whose tuples are nested without end.
    """
    for member in archive.infolist():
        if not member.filename.endswith("/data.pkl"):
            continue
        if member.file_size > file_bytes:
            message = f"'{path}' has a pickle of {size(member.file_size)} in {size(file_bytes)}"
            raise CheckpointError(message, hint=_SAVE_AGAIN)
        pickle = archive.read(member)
        if b"bytearray" in pickle:  # torch.load would create one of any length that the file asks for
            raise CheckpointError(f"'{path}' makes a bytearray, which is not loaded", hint=_SAVE_AGAIN)
        if b"_rebuild_qtensor" in pickle:
            raise CheckpointError(
                f"'{path}' has quantised tensors", hint="name the model as it was before quantisation"
            )
        if largest_tuple(pickle) > max(_LARGEST_TUPLE, file_bytes):
            raise CheckpointError(f"'{path}' has tuples that contain each other too often", hint=_SAVE_AGAIN)


def _load(path: Path, file: IO[bytes]) -> Any:
    file.seek(0)
    try:
        with _without_memory():
            return torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        foreign = _foreign_classes(file)
        what = "holds objects other than tensors, which are not loaded" if foreign else "has a damaged pickle"
        raise CheckpointError(f"'{path}' {what}", items=foreign, hint=_SAVE_AGAIN) from error


def _without_memory() -> AbstractContextManager[object]:
    """Return a context in which `torch.load` to the meta device reads no tensors; older versions would read them."""
    if torch.__version__ >= "2.11":
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes seconds, since it imports the compiler

    return FakeTensorMode()


def _foreign_classes(file: IO[bytes]) -> list[str]:
    file.seek(0)
    with suppress(Exception):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    return []


def _state_dict_in(
    path: Path, content: Any, wanted: str | None
) -> tuple[str | None, Mapping[str, Tensor], tuple[str, ...]]:
    """Return the chosen state dict, its name if there are several, and what is left out by convention."""
    weights: str | None = None
    beside: tuple[str, ...] = ()
    sets = _state_dicts_in(content) if isinstance(content, Mapping) else {}
    if _is_of_an_optimiser(content, sets):
        raise CheckpointError(f"'{path}' holds the state of an optimiser, and no model", hint="name the model's file")
    if sets:
        usual = _usual(sets) if wanted is None else None
        name = usual or choose_set(path, {name: len(state) for name, state in sets.items()}, wanted)
        if wanted is None:
            beside = tuple(_beside(content, name))
        weights, content = name if len(sets) > 1 else None, sets[name]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' has a {_kind(content)}, not a state dict", hint=_SAVE_AGAIN)
    others = [
        f"{n!r}: {_kind(value)}" for n, value in content.items() if type(n) is not str or _kind(value) != "tensor"
    ]
    if others:
        raise CheckpointError(
            f"'{path}' has more than tensors in its state dict", items=others, hint=_hint_for_others(content)
        )
    return weights, content, beside


def _is_of_an_optimiser(content: Any, sets: Collection[str]) -> bool:
    """Tell whether this is the state of an optimiser, or has one, no state dict, and nothing else that counts."""
    if not isinstance(content, Mapping) or content.keys() == {"state", "param_groups"}:
        return isinstance(content, Mapping)
    if sets or any(isinstance(value, Tensor) for value in content.values()):
        return False
    inner = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
    return any("optim" in name.lower() for name in inner) and all(map(is_of_training, inner))


def _usual(sets: Mapping[str, Mapping[Any, Any]]) -> str | None:
    """Return the set with a usual name, if there is one and no other set may be that of a model too."""
    known = [name for name in sets if name in CONVENTIONAL]
    if len(known) != 1:
        return None
    others = {name: state for name, state in sets.items() if name != known[0] and not is_of_training(name)}
    return None if any(_may_be_meant(name, own, sets[known[0]]) for name, own in others.items()) else known[0]


def _may_be_meant(name: str, state: Mapping[Any, Any], known: Mapping[Any, Any]) -> bool:
    """Tell whether a set is an average, a module's state dict, or called as the known one's tensors are."""
    has_modules = any(str(key).rpartition(".")[2] in ("weight", "bias") for key in state)
    return is_average(name) or has_modules or len(state.keys() & known.keys()) >= _ALIKE * len(state)


def _hint_for_others(content: Mapping[Any, Any]) -> str:
    """Return how to save what is no state dict as one."""
    inner = next((value for value in content.values() if isinstance(value, Mapping)), content)
    if not any(isinstance(value, Tensor) for value in content.values()) and inner is not content:
        nested = next((value for value in inner.values() if isinstance(value, Mapping)), None)
        of = "checkpoint" if nested is None else f"checkpoint[{next(iter(content))!r}]"
        names = "{f'{part}.{n}': t for part, state in %s.items() for n, t in state.items()}"
        return f"save its parts as one: {names % of}"
    if all(isinstance(value, Tensor) for value in content.values()):  # whose keys are no names
        return "save them by names: {str(name): tensor for name, tensor in state_dict.items()}"
    return _TENSORS_ALONE


def _state_dicts_in(content: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """Return the state dicts in a training checkpoint, by name, without those of optimisers and generators.

    If the top level also holds weights, only entries with a usual name for a state dict count.
    """
    sets = {}
    for name, value in content.items():
        if isinstance(name, str) and (state := _state_dict_of(value)):
            sets[name] = state
    if any(_is_weight(value) for value in content.values()):
        sets = {name: state for name, state in sets.items() if name in CONVENTIONAL or is_average(name)}
    return sets


def _beside(content: Mapping[Any, Any], chosen: str) -> list[str]:
    """Return what of a training checkpoint is left out beside the chosen set, and may belong to a model."""
    entries = {name: value for name, value in content.items() if isinstance(name, str) and name != chosen}
    told = []
    for name, value in entries.items():
        inner = [*value.values()] if isinstance(value, Mapping) and "param_groups" not in value else []
        lists = [item for item in inner if isinstance(item, list | tuple)] if is_average(name) else []
        if not is_of_training(name) and any(map(_is_weight, (value, *inner, *(t for part in lists for t in part)))):
            told.append(name)
    return told


def _state_dict_of(value: Any) -> Mapping[Any, Any] | None:
    """Return an entry of a training checkpoint if it is a state dict, or the one inside it, as in averages."""
    if not isinstance(value, Mapping) or "param_groups" in value:  # the state of an optimiser
        return None
    if any(_is_weight(inner) for inner in value.values()):
        return value
    named = [inner for name, inner in value.items() if isinstance(name, str) and isinstance(inner, Mapping)]
    inside = [inner for inner in named if _state_dict_of(inner) is inner]
    return inside[0] if len(inside) == 1 else None


def _is_weight(value: Any) -> bool:
    """Tell whether something is a weight, not a training metric or the state of a random generator."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def _layout_of(tensor: Tensor) -> str:
    return f"strides {list(tensor.stride())}" if tensor.layout == torch.strided else str(tensor.layout)


def _is_odd(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg()


def _entry(path: Path, number: int, name: str, tensor: Tensor, records: Mapping[int, int]) -> TensorEntry:
    if tensor.dtype not in FILE_DTYPES:
        hint = f"save it as {'complex64' if tensor.is_complex() else 'float32'}, if it holds its numbers"
        raise CheckpointError(
            f"'{path}': '{name}' has the dtype '{tensor.dtype}', which glue does not know", hint=hint
        )
    storage = tensor.untyped_storage()
    start: int | None = getattr(storage, "_checkpoint_offset", None)  # since PyTorch 2.7
    if start is None:
        what = "is a share of a tensor" if hasattr(tensor, "full_tensor") else "has no numbers in the file"
        hint = "save the whole model's state dict, gathered from all processes and off the meta device"
        raise CheckpointError(f"'{path}': '{name}' {what}", hint=hint)
    skipped = int(tensor.storage_offset()) * tensor.element_size()
    entry = TensorEntry(name, FILE_DTYPES[tensor.dtype], tuple(tensor.shape), number, start + skipped)
    # torch.load assumes torch.save's layout to compute offsets; archives that other programs rewrote differ
    if records.get(start) != storage.nbytes():
        message = f"'{path}': '{name}' does not lie where PyTorch looks for it"
        raise CheckpointError(message, hint="copy the file again; if another program rewrote it, save it with PyTorch")
    return entry
