"""Read tensors from checkpoint files, and write them."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.checkpoints.files import open_files, read_into
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.safetensors_file import header_of, lay_out, metadata_of
from glue_cli.foundation.output_files import reserve, write_all, writing

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
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


def read_tensors(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read tensors of a checkpoint into memory, with their own dtypes.

    Args:
        names: the tensors to read; None for all.
    Raises:
        CheckpointError: a file cannot be read, or changed since its header was read.
    """
    with open_files(checkpoint) as descriptors:
        wanted = checkpoint.entries if names is None else names
        return {name: read_tensor(checkpoint, descriptors, name) for name in wanted}


def read_tensor(checkpoint: Checkpoint, descriptors: Sequence[int], name: str) -> Tensor:
    """Read one tensor of a checkpoint from its open files, as `open_files` yields them.

    Raises:
        CheckpointError: its file cannot be read.
    """
    entry = checkpoint.entries[name]
    tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
    read_into(descriptors[entry.file], bytes_of(tensor), entry.offset, checkpoint.files[entry.file])
    return tensor


def write_checkpoint(
    output: Path, tensors: Mapping[str, Tensor], glue: Mapping[str, Any], *, replace: bool = True
) -> None:
    """Write `tensors` as one safetensors file with glue's metadata. If that fails, no partial file is left.

    Tensors that share memory are each written in full, so that every reader finds every name.

    Args:
        replace: whether to replace an `output` that another process has created in the meantime.
    """
    described = [(name, FILE_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    entries = lay_out(described)
    header = header_of(entries, metadata_of(glue))
    with writing(output, replace=replace) as descriptor:
        reserve(descriptor, len(header) + sum(entry.n_bytes for entry in entries))
        write_all(descriptor, header, 0)
        for entry in entries:
            tensor = tensors[entry.name].detach().to("cpu").contiguous()
            write_all(descriptor, bytes_of(tensor), len(header) + entry.offset)
