"""The header of a file that `torch.save` wrote: where its tensors lie, found without reading or running them.

The file is a zip archive with a pickle and, uncompressed, a record for each storage. `torch.load` unpickles it with
`weights_only=True` into tensors without memory, which know the offset that they would be read from.
"""

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from glue_cli.checkpoints.header import TensorEntry, stamp_of
from glue_cli.checkpoints.tensors import FILE_DTYPES
from glue_cli.checkpoints.weight_sets import AVERAGES, CONVENTIONAL, choose_set
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.units import size

_LOCAL_HEADER_BYTES = 30
# What reading a damaged archive raises, which may be compressed in four ways.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, ValueError, RuntimeError)
_SAVE_AGAIN = "load it with the PyTorch that wrote it, and save the model's state_dict() again"
_TENSORS_ALONE = "save the tensors alone: {name: tensor for name, tensor in state_dict.items() if is_tensor(tensor)}"


@dataclass(frozen=True)
class TorchHeader:
    """Where the tensors of a file of `torch.save` lie.

    Attributes:
        entries: in the state dict's order.
        stamp: the file's size and time of change.
        weights: which of several state dicts they are, by its name; None where the file has one.
    """

    entries: dict[str, TensorEntry]
    stamp: tuple[int, int]
    weights: str | None


def read_torch_header(path: Path, number: int, wanted: str | None = None) -> TorchHeader:
    """Read where the tensors of a file of `torch.save` lie: of a state dict, or a training checkpoint with one.

    Args:
        number: the file's number within the checkpoint.
        wanted: which state dict is meant where there are several; None leaves it to convention.
    Raises:
        UsageError: there are several, and not the one that is wanted.
        CheckpointError: the file is damaged, of PyTorch before 1.6, or has anything but tensors that lie row-major; or
            there are several state dicts, and no convention decides.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            stamp = stamp_of(file.fileno())
            records = _find_records(path, file)
            weights, state = _state_dict_in(path, _load(path, file), wanted)
    except OSError as error:
        reason = error.strerror or error  # bzip2's own has no number
        raise CheckpointError(f"'{path}' cannot be read: {reason}") from None
    strided = [f"'{name}' is {list(t.shape)}, strides {list(t.stride())}" for name, t in state.items() if _is_odd(t)]
    if strided:
        hint = "save the tensors contiguous: {name: tensor.contiguous() for name, tensor in state_dict.items()}"
        raise CheckpointError(f"'{path}' has tensors that do not lie row-major", items=strided, hint=hint)
    entries = {name: _entry(path, number, name, tensor, records) for name, tensor in state.items()}
    return TorchHeader(entries, stamp, weights)


def _find_records(path: Path, file: IO[bytes]) -> dict[int, int]:
    """Return the size of every record of the archive by the offset of its first byte."""
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
    if "constants.pkl" in names:
        raise CheckpointError(f"'{path}' is a TorchScript archive", hint=_SAVE_AGAIN)
    if order not in ([], [b"little"]):
        raise CheckpointError(f"'{path}' was saved on a big-endian machine", hint=_SAVE_AGAIN)
    return records


def _check_pickles(path: Path, archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Refuse pickles that would take far more memory than the file: compressed ones, and those with a bytearray."""
    for member in archive.infolist():
        if not member.filename.endswith("/data.pkl"):
            continue
        if member.file_size > file_bytes:
            message = f"'{path}' has a pickle of {size(member.file_size)} in {size(file_bytes)}"
            raise CheckpointError(message, hint=_SAVE_AGAIN)
        if b"bytearray" in archive.read(member):  # torch.load makes one of any length that a file names
            raise CheckpointError(f"'{path}' makes a bytearray, which is not loaded", hint=_SAVE_AGAIN)


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
    """Return what keeps `torch.load` to the meta device from reading, where it would read to throw away."""
    if torch.__version__ >= "2.11":
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes seconds: it brings the compiler along

    return FakeTensorMode()


def _foreign_classes(file: IO[bytes]) -> list[str]:
    file.seek(0)
    with suppress(Exception):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    return []


def _state_dict_in(path: Path, found: Any, wanted: str | None) -> tuple[str | None, Mapping[str, Tensor]]:
    """Return the state dict that is meant, and its name where there are several."""
    weights = None
    if isinstance(found, Mapping) and (sets := _state_dicts_in(found)):
        name = choose_set(path, {name: len(state) for name, state in sets.items()}, wanted)
        weights, found = name if len(sets) > 1 else None, sets[name]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"'{path}' has a {_kind(found)}, not a state dict", hint=_SAVE_AGAIN)
    others = [f"{n!r}: {_kind(value)}" for n, value in found.items() if type(n) is not str or _kind(value) != "tensor"]
    if others:
        raise CheckpointError(f"'{path}' has more than tensors in its state dict", items=others, hint=_TENSORS_ALONE)
    return weights, found


def _state_dicts_in(found: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """Return the state dicts in a training checkpoint, by name; those of optimisers and generators left out.

    Where weights lie beside them at the top, only what is called like a state dict is one.
    """
    sets = {}
    for name, value in found.items():
        if isinstance(name, str) and (state := _state_dict_of(value)):
            sets[name] = state
    if any(_is_weight(value) for value in found.values()):
        sets = {name: state for name, state in sets.items() if name in AVERAGES | CONVENTIONAL}
    return sets


def _state_dict_of(value: Any) -> Mapping[Any, Any] | None:
    """Return what a part of a training checkpoint has of weights: itself, or a state dict in it, as averages have."""
    if not isinstance(value, Mapping) or "param_groups" in value:  # an optimiser's
        return None
    if any(_is_weight(inner) for inner in value.values()):
        return value
    inside = [inner for inner in value.values() if isinstance(inner, Mapping) and _state_dict_of(inner) is inner]
    return inside[0] if len(inside) == 1 else None


def _is_weight(value: Any) -> bool:
    """Tell whether something is a weight, and no figure of a training or state of a random generator."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _kind(found: Any) -> str:
    return "tensor" if isinstance(found, Tensor) else type(found).__name__


def _is_odd(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg()


def _entry(path: Path, number: int, name: str, tensor: Tensor, records: Mapping[int, int]) -> TensorEntry:
    if tensor.dtype not in FILE_DTYPES:
        raise CheckpointError(f"'{path}': '{name}' has the dtype '{tensor.dtype}', which glue does not know")
    storage = tensor.untyped_storage()
    start: int | None = getattr(storage, "_checkpoint_offset", None)  # since PyTorch 2.7
    if start is None:
        raise CheckpointError(f"'{path}': '{name}' has no place in the file", hint="update PyTorch to 2.7 or later")
    skipped = int(tensor.storage_offset()) * tensor.element_size()
    entry = TensorEntry(name, FILE_DTYPES[tensor.dtype], tuple(tensor.shape), number, start + skipped)
    # torch.load works offsets out from how torch.save lays a file out: archives that others rewrote lie otherwise
    if records.get(start) != storage.nbytes():
        message = f"'{path}': '{name}' does not lie where PyTorch looks for it"
        raise CheckpointError(message, hint="copy the file again; if another program rewrote it, save it with PyTorch")
    return entry
