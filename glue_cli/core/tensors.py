"""Tensors to and from checkpoint files."""

import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.core.checkpoint import Checkpoint, stamp_of
from glue_cli.core.errors import CheckpointError
from glue_cli.core.layout import header_of, metadata_of, place
from glue_cli.core.output import reserve, writing

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
FILE_DTYPES = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor as writable bytes; the tensor must outlive the view."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    n_bytes = tensor.numel() * tensor.element_size()
    if n_bytes == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * n_bytes).from_address(tensor.data_ptr())).cast("B")


@contextmanager
def open_file(checkpoint: Checkpoint, number: int) -> Iterator[int]:
    """Open one of a checkpoint's files for reading; yields its descriptor.

    Raises:
        CheckpointError: it cannot be opened, or changed since its header was read.
    """
    file = checkpoint.files[number]
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}") from None
    try:
        _check_unchanged(file, descriptor, checkpoint.stamps[number])
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_files(checkpoint: Checkpoint) -> Iterator[list[int]]:
    """Open all of a checkpoint's files, as `open_file` does one; yields their descriptors."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_file(checkpoint, number)) for number in range(len(checkpoint.files))]


def check_unchanged(checkpoint: Checkpoint, descriptors: Sequence[int]) -> None:
    """Check that nobody wrote to a checkpoint's open files since its header was read.

    Raises:
        CheckpointError: somebody did.
    """
    for file, descriptor, stamp in zip(checkpoint.files, descriptors, checkpoint.stamps, strict=True):
        _check_unchanged(file, descriptor, stamp)


def _check_unchanged(file: Path, descriptor: int, stamp: tuple[int, int]) -> None:
    if stamp_of(descriptor) != stamp:
        raise CheckpointError(f"'{file}' changed while it was read", hint="run again when nobody writes to it")


def read_into(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` from the file at `offset`.

    Raises:
        CheckpointError: the file ends before the buffer is full, or cannot be read.
    """
    filled = 0
    while filled < len(buffer):
        try:
            n_read = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
        if n_read == 0:
            raise CheckpointError(f"'{path}' became shorter while it was read")
        filled += n_read


def write_all(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view, written = memoryview(data), 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)


def read_tensors(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read tensors of a checkpoint into memory, with their own dtypes.

    Args:
        names: which; None for all.
    Raises:
        CheckpointError: a file cannot be read, or changed since its header was read.
    """
    tensors = {}
    with open_files(checkpoint) as descriptors:
        for name in checkpoint.entries if names is None else names:
            entry = checkpoint.entries[name]
            tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
            read_into(descriptors[entry.file], bytes_of(tensor), entry.offset, checkpoint.files[entry.file])
            tensors[name] = tensor
    return tensors


def write_checkpoint(output: Path, tensors: Mapping[str, Tensor], glue: Mapping[str, Any]) -> None:
    """Write `tensors` as one safetensors file with glue's metadata, whole or not at all.

    Tensors that share memory are each written in full, so that every reader finds every name.
    """
    described = [(name, FILE_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    entries = place(described)
    header = header_of(entries, metadata_of(glue))
    with writing(output) as descriptor:
        reserve(descriptor, len(header) + sum(entry.n_bytes for entry in entries))
        write_all(descriptor, header, 0)
        for entry in entries:
            tensor = tensors[entry.name].detach().to("cpu").contiguous()
            write_all(descriptor, bytes_of(tensor), len(header) + entry.offset)
