"""Data sets: a reader for each format, the target's and the experts' parts, and batches."""

import errno
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.nearest import did_you_mean
from glue_cli.foundation.progress import Progress, silent
from glue_cli.foundation.user_code import PREFIX
from glue_cli.spec.normalisation import ImageNormalisation
from glue_cli.spec.resizing import Resizing
from glue_cli.spec.schema import DataSpec

if TYPE_CHECKING:  # `glue --help` reads the names below and must not import torch
    from glue_cli.data.dataset import Dataset

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Format:
    """How a data set lies on disk.

    Attributes:
        reader: "module:function" in this package, called with the arguments of `read_dataset`; may return `Texts` or
            `Replies`.
        mean, std: to normalise its images with: one number per channel, or one for all; white is 1.
        takes: the optional fields of `DataSpec` that the reader uses.
    """

    reader: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    takes: tuple[str, ...] = ()


_PYTHON = f"{PREFIX}MODULE:FUNCTION"  # a placeholder for all such names
FORMATS: dict[str, Format] = {
    "cifar10": Format("formats.cifar10:read_cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "svhn": Format("formats.svhn:read_svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "image-folder": Format(
        "formats.image_folder:read_image_folder",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        takes=("image_size", "splits"),
    ),
    "safetensors": Format("formats.safetensors_folder:read_safetensors_folder", (0.5,), (0.5,), takes=("splits",)),
    "jsonl": Format("formats.jsonl:read_jsonl", (0.5,), (0.5,), takes=("splits", "max_length", "max_characters")),
    "huggingface": Format(
        "formats.huggingface:read_huggingface",
        (0.5,),
        (0.5,),
        takes=("image_size", "splits", "max_length", "max_characters", "columns"),
    ),
    _PYTHON: Format("formats.python_dataset:read_python", (0.5,), (0.5,)),
}


def check_format(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        SpecError: there is no format of that name.
    """
    if name.startswith(PREFIX):
        return FORMATS[_PYTHON]
    if name in FORMATS:
        return FORMATS[name]
    known = "one of " + ", ".join(FORMATS)
    raise SpecError(
        f"data.format: there is no format '{name}'; wanted {known}",
        hint=did_you_mean(name, FORMATS) or f"set data.format to {known}",
    )


def check_data(data: DataSpec, root: Path) -> Format:
    """Check that a data section fits its format and that its folder exists, without reading any data.

    Args:
        root: `data.root`, looked up from the spec's folder.
    Raises:
        SpecError: it does not fit.
        DataError: there is no such folder.
    """
    form = check_format(data.format)
    for field in ("image_size", "splits", "max_length", "max_characters", "columns"):
        if getattr(data, field) and field not in form.takes:
            users = " and ".join(f"'{name}'" for name, other in FORMATS.items() if field in other.takes)
            raise SpecError(
                f"data.{field} means nothing to format '{data.format}': it is for {users}",
                hint=f"remove data.{field} from the spec",
            )
    if not data.format.startswith(PREFIX) and not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.root: '{root}' {problem}; wanted a folder", hint="check data.root in the spec")
    return form


def read_dataset(
    data: DataSpec,
    split: str,
    *,
    root: Path,
    folder: Path = Path("."),
    tokenizer: Path | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
    resizing: Resizing | None = None,
) -> "Dataset | None":
    """Read one split of a data set into memory.

    Args:
        data: the data section of the spec.
        split: train, val or test.
        root: `data.root`, looked up from the spec's folder.
        folder: the spec's own, where the user's modules are.
        tokenizer: the folder of the model's tokenizer, needed for texts.
        cache: the folder for cached data, created if missing; None turns caching off.
        progress: is called with the progress of slow reads.
        resizing: how the model's files resize images; used if it gives `data.image_size`.
    Returns:
        the split, or None for a val split that the data set does not have.
    Raises:
        SpecError: the data section does not fit the format, the images or the model.
        DataError: the folder, the train or the test split is missing, or a file is damaged.
    """
    from glue_cli.data.dataset import Dataset, Replies, Texts

    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, wanted one of {SPLITS}")
    form = check_data(data, root)
    module, _, function = form.reader.partition(":")
    reader = getattr(importlib.import_module(f".{module}", __name__), function)
    read = partial(reader, folder=folder) if data.format.startswith(PREFIX) else reader
    if "image_size" in form.takes:
        read = partial(reader, resizing=resizing)
    with _faults_of_data(root):
        examples: Dataset | Texts | Replies | None = read(data, split, root=root, cache=cache, progress=progress)
    how = tokenizer, data.max_length, data.max_characters
    where = f"the {split} texts in '{root}'"
    if isinstance(examples, Texts):
        from glue_cli.data.tokens import tokenise

        examples = tokenise(examples, *how, where=where, progress=progress)
    elif isinstance(examples, Replies):
        from glue_cli.data.replies import tokenise_replies
        from glue_cli.data.seq2seq import is_encoder_decoder, tokenise_seq2seq

        tokenise_both = tokenise_seq2seq if is_encoder_decoder(tokenizer) else tokenise_replies
        examples = tokenise_both(examples, *how, where=where, progress=progress)
    assert examples is not None or split == "val"
    if examples is not None:
        normalisation(data, examples)
    return examples


@contextmanager
def _faults_of_data(root: Path) -> Iterator[None]:
    """Turn the error for an unreadable data file into a `DataError`, unless the machine is the cause."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        is_of_machine = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
        if is_of_machine or not Path(os.path.abspath(name)).is_relative_to(root.absolute()):
            raise
        raise DataError(f"'{name}' cannot be read: {error.strerror}", hint="copy or fetch the file again") from error


def normalisation(
    data: DataSpec, dataset: "Dataset", stated: ImageNormalisation | None = None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return the mean and std to normalise `dataset` with: the spec's, or for images the model's or format's.

    Args:
        stated: what the model's files say.
    Raises:
        SpecError: there is neither one number nor one per channel, or they are given for texts.
    """
    from torch import Tensor

    usual = (stated or check_format(data.format)) if dataset.has_images else None
    mean = tuple(data.mean) if data.mean is not None else usual.mean if usual else None
    std = tuple(data.std) if data.std is not None else usual.std if usual else None
    if not isinstance(dataset.inputs, Tensor):
        if mean or std:
            raise SpecError("data.mean and data.std mean nothing to texts", hint="remove them from the spec")
        return None, None
    n_channels = dataset.inputs.shape[1] if dataset.inputs.dim() > 1 else 1
    for field, numbers in (("mean", mean), ("std", std)):
        if numbers is not None and len(numbers) not in (1, n_channels):
            wanted = "1" if n_channels == 1 else f"1 or {n_channels}, a number a channel"
            where = f"'{stated.source}', {field}" if stated and getattr(data, field) is None else f"data.{field}"
            raise SpecError(
                f"{where}: found {len(numbers)} numbers, wanted {wanted}",
                hint=f"set data.{field} to {'one number' if n_channels == 1 else f'{n_channels} numbers'}",
            )
    return mean, std
