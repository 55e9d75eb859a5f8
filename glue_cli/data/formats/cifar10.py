"""CIFAR-10 in its two official layouts: binary records, and Python pickles."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.data.dataset import Dataset
from glue_cli.data.formats.cifar10_pickle import Array, ForbiddenGlobal, PickleFault, read_pickle, text_of
from glue_cli.foundation.errors import UNREADABLE, DataError
from glue_cli.foundation.printable import shown
from glue_cli.foundation.progress import Progress
from glue_cli.foundation.regular_files import read_bytes, regular
from glue_cli.spec.schema import DataSpec

RECORDS_PER_FILE = 10_000
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS  # a label byte, then the R, G and B planes
_MOST_PICKLE_BYTES = 2 * RECORDS_PER_FILE * _RECORD  # official files: 31 MB; from Python 3, up to half more
_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def read_cifar10(data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress) -> Dataset | None:
    """Read a split from `root`, or from the official folder in it: images uint8 [N, 3, 32, 32], labels int64 [N].

    Raises:
        DataError: a file is missing, has another size than the official one, or holds a label above 9.
    Source: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    if split == "val":
        return None
    layout = find_layout(root)
    if layout is None:
        raise DataError(
            f"'{root}' holds no CIFAR-10: found neither 'data_batch_1.bin' nor 'data_batch_1' there, "
            "in 'cifar-10-batches-bin' or in 'cifar-10-batches-py'",
            hint="check data.root in the spec",
        )
    folder, suffix = layout
    names = _BATCHES[split]
    images = torch.empty(len(names) * RECORDS_PER_FILE, 3, 32, 32, dtype=torch.uint8)
    labels = torch.empty(len(images), dtype=torch.int64)
    for i, name in enumerate(names):
        path = folder / (name + suffix)
        if not path.is_file():
            raise DataError(f"'{path}' is missing", hint="unpack the CIFAR-10 archive again")
        pixels, classes = _read_binary(path) if suffix else _read_pickled(path)
        wrong = (classes < 0) | (classes >= len(CLASS_NAMES))
        if wrong.any():
            record = int(wrong.nonzero()[0])
            raise DataError(
                f"'{path}': record {record} (from 0) has label {int(classes[record])}, wanted 0 to 9",
                hint="unpack the CIFAR-10 archive again",
            )
        rows = slice(i * RECORDS_PER_FILE, (i + 1) * RECORDS_PER_FILE)
        images[rows].flatten(1).copy_(pixels)
        labels[rows] = classes
    return Dataset(images, labels, _read_class_names(folder, suffix))


def find_layout(root: Path) -> tuple[Path, str] | None:
    """Return the folder with the batches, if there is one, and their file ending: `.bin`, or none for pickles."""
    names = [*_BATCHES["train"], *_BATCHES["test"]]
    for folder in (root / name for name in _FOLDERS):
        for suffix in (".bin", ""):
            if any((folder / (name + suffix)).is_file() for name in names):
                return folder, suffix
    return None


def _truncated(path: Path, content: str, wanted: str) -> DataError:
    return DataError(f"'{path}': found {content}, wanted {wanted}", hint="unpack the CIFAR-10 archive again")


def _read_binary(path: Path) -> tuple[Tensor, Tensor]:
    """Return pixels, uint8 [n, 3072], and labels, int64 [n], of one file."""
    n_bytes = path.stat().st_size
    if n_bytes != RECORDS_PER_FILE * _RECORD:
        raise _truncated(path, f"{n_bytes:,} bytes", f"{RECORDS_PER_FILE * _RECORD:,} ({RECORDS_PER_FILE:,} records)")
    buffer = bytearray(n_bytes)
    with open(path, "rb", opener=regular) as file:
        n_read = file.readinto(buffer)
    if n_read != n_bytes:
        raise _truncated(path, f"{n_read:,} bytes", f"{n_bytes:,}")
    records = torch.frombuffer(buffer, dtype=torch.uint8).view(-1, _RECORD)
    return records[:, 1:], records[:, 0].long()


def _read_pickled(path: Path) -> tuple[Tensor, Tensor]:
    """Return pixels, uint8 [n, 3072], and labels, int64 [n], of one file."""
    batch = _load(path)
    pixels, classes = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, Array) or pixels.kind not in ("u1", "|u1"):
        raise DataError(f"'{path}': found no array 'data' of uint8", hint="unpack the CIFAR-10 archive again")
    if pixels.shape != (RECORDS_PER_FILE, _PIXELS) or len(pixels.raw) != RECORDS_PER_FILE * _PIXELS:
        raise _truncated(
            path,
            f"'data' of shape {list(pixels.shape)} in {len(pixels.raw):,} bytes",
            f"[{RECORDS_PER_FILE}, {_PIXELS}]",
        )
    if pixels.column_major:
        raise DataError(
            f"'{path}': 'data' is column-major, wanted row-major", hint="unpack the CIFAR-10 archive again"
        )
    if not isinstance(classes, list) or not all(type(label) is int and abs(label) < 2**31 for label in classes):
        raise DataError(f"'{path}': found no list 'labels' of integers", hint="unpack the CIFAR-10 archive again")
    if len(classes) != RECORDS_PER_FILE:
        raise _truncated(path, f"{len(classes):,} labels", f"{RECORDS_PER_FILE:,}")
    raw = torch.frombuffer(bytearray(pixels.raw), dtype=torch.uint8)
    return raw.view(-1, _PIXELS), torch.tensor(classes, dtype=torch.int64)


def _read_class_names(folder: Path, suffix: str) -> tuple[str, ...]:
    path = folder / ("batches.meta.txt" if suffix else "batches.meta")
    if not path.is_file():
        return CLASS_NAMES
    names: Any
    if suffix:
        names = path.read_text("utf-8", errors="replace").split()
    else:
        names = _load(path).get("label_names")
        is_texts = isinstance(names, list) and all(isinstance(name, bytes | str) for name in names)
        names = [text_of(name) for name in names] if is_texts else []
    if len(names) != len(CLASS_NAMES):
        raise DataError(
            f"'{path}': found {len(names)} class names, wanted {len(CLASS_NAMES)}",
            hint="download the file again; for data of your own, use another data.format",
        )
    return tuple(names)


def _load(path: Path) -> dict[str, Any]:
    """Return the dictionary that a pickle holds, its keys as text."""
    if (n_bytes := path.stat().st_size) > _MOST_PICKLE_BYTES:
        raise _truncated(path, f"{n_bytes:,} bytes", f"at most {_MOST_PICKLE_BYTES:,}")
    try:
        return read_pickle(read_bytes(path))
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}", hint=UNREADABLE) from error
    except ForbiddenGlobal as error:
        raise DataError(
            f"'{path}': the pickle names '{shown(error)}', which a CIFAR-10 file never needs; it was not run",
            hint="do not trust this file; unpack the CIFAR-10 archive from its official source",
        ) from None
    except PickleFault as error:
        raise DataError(
            f"'{path}' is not a whole pickle: {shown(error)}", hint="unpack the CIFAR-10 archive again"
        ) from None
