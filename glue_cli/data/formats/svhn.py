"""SVHN, format 2: the cropped digits, 32x32, as MATLAB files."""

from pathlib import Path
from typing import Any

import torch

from glue_cli.data.dataset import Dataset
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Progress
from glue_cli.spec.schema import DataSpec


def read_svhn(data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress) -> Dataset | None:
    """Read `train_32x32.mat` or `test_32x32.mat`: images uint8 [N, 3, 32, 32], labels int64 [N], the digits.

    Raises:
        DataError: the file is missing or damaged, its arrays are not the official ones, or scipy is not installed.
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
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"'{path}': 'X' is {images.dtype} {list(images.shape)}, wanted uint8 [32, 32, 3, N]")
    n_images = images.shape[3]
    if n_images == 0:
        raise DataError(f"'{path}': 'X' holds no image", hint="download the file again")
    if digits.dtype.kind not in "uif" or digits.size != n_images:
        raise DataError(f"'{path}': 'y' is {digits.dtype} {list(digits.shape)}, wanted [{n_images}, 1], as 'X' has it")
    labels = torch.from_numpy(digits.reshape(-1).astype("int64"))
    wrong = (labels < 1) | (labels > 10)
    if wrong.any():
        record = int(wrong.nonzero()[0])
        raise DataError(f"'{path}': 'y' is {int(labels[record])} for image {record} (from 0), wanted 1 to 10")
    labels[labels == 10] = 0  # the file counts as MATLAB does: 10 is the digit 0
    pixels = torch.from_numpy(images).permute(3, 2, 0, 1).contiguous()  # [N, 3, 32, 32]
    return Dataset(pixels, labels, tuple("0123456789"))


def _load_mat(path: Path) -> dict[str, Any]:
    try:
        import scipy.io
    except ImportError as error:
        raise DataError(f"reading '{path}' needs scipy, which is not installed", hint="pip install scipy") from error
    try:
        arrays: dict[str, Any] = scipy.io.loadmat(path, variable_names=["X", "y"])
    except MemoryError:
        raise
    except Exception as error:  # scipy's parser raises whatever a damaged file makes it stumble on
        raise DataError(f"'{path}' is not a whole MATLAB file: {error}", hint="download the file again") from error
    return arrays
