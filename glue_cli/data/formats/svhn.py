"""SVHN, format 2: the cropped digits, 32x32, as MATLAB files."""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from glue_cli.data.dataset import Dataset
from glue_cli.data.formats.matlab import MatlabArray, MatlabFault, read_matlab
from glue_cli.foundation.errors import UNREADABLE, DataError
from glue_cli.foundation.progress import Progress
from glue_cli.spec.schema import DataSpec

_DTYPES = {
    "i1": torch.int8,
    "u1": torch.uint8,
    "i2": torch.int16,
    "u2": torch.uint16,
    "i4": torch.int32,
    "u4": torch.uint32,
    "i8": torch.int64,
    "u8": torch.uint64,
    "f4": torch.float32,
    "f8": torch.float64,
}


def read_svhn(data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress) -> Dataset | None:
    """Read `train_32x32.mat` or `test_32x32.mat`: images uint8 [N, 3, 32, 32], labels int64 [N], the digits.

    Raises:
        DataError: the file is missing or damaged, or its arrays are not the official ones.
    Source: http://ufldl.stanford.edu/housenumbers
    """
    if split == "val":
        return None
    path = root / f"{split}_32x32.mat"
    if not path.is_file():
        raise DataError(f"'{path}' is missing", hint="check data.root in the spec")
    arrays = _load_mat(path)
    for name in ("X", "y"):
        if name not in arrays:
            raise DataError(f"'{path}' has no array '{name}'", hint="download the file again")
    images, digits = arrays["X"], arrays["y"]
    if images.kind != "u1" or len(images.shape) != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(
            f"'{path}': 'X' is {_describe(images)}, wanted uint8 [32, 32, 3, N]", hint="download the file again"
        )
    n_images = images.shape[3]
    if n_images == 0:
        raise DataError(f"'{path}': 'X' holds no image", hint="download the file again")
    if math.prod(digits.shape) != n_images:
        raise DataError(
            f"'{path}': 'y' is {_describe(digits)}, wanted [{n_images}, 1], as 'X' has it",
            hint="download the file again",
        )
    labels = _to_tensor(digits).long()
    wrong = (labels < 1) | (labels > 10)
    if wrong.any():
        record = int(wrong.nonzero()[0])
        raise DataError(
            f"'{path}': 'y' is {int(labels[record])} for image {record} (from 0), wanted 1 to 10",
            hint="download the file again",
        )
    labels[labels == 10] = 0  # the file counts from 1, as MATLAB does: the digit 0 is class 10
    # MATLAB stores the first dimension contiguously: read row by row, the file holds [N, 3, 32 across, 32 down].
    pixels = _to_tensor(images).view(n_images, 3, 32, 32).transpose(2, 3).contiguous()
    return Dataset(pixels, labels, tuple("0123456789"))


def _load_mat(path: Path) -> dict[str, MatlabArray]:
    try:
        return read_matlab(path, ("X", "y"))
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}", hint=UNREADABLE) from error
    except MatlabFault as fault:
        raise DataError(f"'{path}' is not a whole MATLAB file: {fault}", hint="download the file again") from None


def _to_tensor(array: MatlabArray) -> Tensor:
    """Return an array's numbers, [n], in the order of the file."""
    dtype = _DTYPES[array.stored]
    raw = torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
    if array.byteorder != sys.byteorder:
        raw = raw.view(-1, dtype.itemsize).flip(1).flatten()
    return raw.view(dtype)


def _describe(array: MatlabArray) -> str:
    return f"{str(_DTYPES[array.kind]).removeprefix('torch.')} {list(array.shape)}"
