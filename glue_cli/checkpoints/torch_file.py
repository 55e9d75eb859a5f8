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
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from glue_cli.checkpoints.header import TensorEntry, stamp_of
from glue_cli.checkpoints.tensors import FILE_DTYPES
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.units import size

# Where a training checkpoint keeps the model's state dict, beside the optimiser's and counts of epochs.
_NESTED = ("state_dict", "model_state_dict", "model")
_LOCAL_HEADER_BYTES = 30
# What reading a damaged archive raises, which may be compressed in four ways.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, ValueError, RuntimeError)
_SAVE_AGAIN = "load it with the PyTorch that wrote it, and save the model's state_dict() again"


def read_torch_header(path: Path, number: int) -> tuple[dict[str, TensorEntry], dict[str, str], tuple[int, int]]:
    """Read where the tensors of a `.pt`, `.pth` or `.bin` file lie: a state dict, or a training checkpoint with one.

    Args:
        number: the file's number within the checkpoint.
    Returns:
        the entries in the state dict's order, metadata (none), and the file's stamp.
    Raises:
        CheckpointError: the file is damaged, of PyTorch before 1.6, or has anything but tensors that lie row-major.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            stamp = stamp_of(file.fileno())
            records = _find_records(path, file)
            state = _state_dict_in(path, _load(path, file))
    except OSError as error:
        reason = error.strerror or error  # bzip2's own has no number
        raise CheckpointError(f"'{path}' cannot be read: {reason}") from None
    strided = [f"'{name}' is {list(t.shape)}, strides {list(t.stride())}" for name, t in state.items() if _is_odd(t)]
    if strided:
        hint = "save the tensors contiguous: {name: tensor.contiguous() for name, tensor in state_dict.items()}"
        raise CheckpointError(f"'{path}' has tensors that do not lie row-major", items=strided, hint=hint)
    return {name: _entry(path, number, name, tensor, records) for name, tensor in state.items()}, {}, stamp


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


def _state_dict_in(path: Path, found: Any) -> Mapping[str, Tensor]:
    if isinstance(found, Mapping):
        found = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"'{path}' has a {_kind(found)}, not a state dict", hint=_SAVE_AGAIN)
    others = [f"{n!r}: {_kind(value)}" for n, value in found.items() if type(n) is not str or _kind(value) != "tensor"]
    if others:
        raise CheckpointError(f"'{path}' has more than tensors in its state dict", items=others, hint=_SAVE_AGAIN)
    return found


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
