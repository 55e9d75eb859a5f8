"""Any data set as safetensors: `train.safetensors`, `test.safetensors` and, if there is one, `val.safetensors`."""

import json
from pathlib import Path

import torch
from torch import Tensor

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.data.classes import of_train, renumbered
from glue_cli.data.dataset import Dataset
from glue_cli.data.split_names import find_split, split_name
from glue_cli.foundation.errors import CheckpointError, DataError
from glue_cli.foundation.printable import shown
from glue_cli.foundation.progress import Progress
from glue_cli.spec.schema import DataSpec

_DTYPES = {
    "images": (torch.uint8,),
    "inputs": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    "labels": (torch.int64,),
    "targets": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
}


def read_safetensors_folder(
    data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress
) -> Dataset | None:
    """Read a split: `images` uint8 [N, C, H, W] or `inputs` float [N, ...]; `labels` int64 [N] or `targets` float.

    Class names are a JSON list under the metadata key `class_names`, if it is there; labels are numbered as in
    the train split. Floats become float32.

    Raises:
        DataError: the file is missing or damaged, a tensor is missing, of another dtype or length, or not finite, or a
            class is unknown to the train split.
    """
    name = find_split(data, split, lambda name: (root / f"{name}.safetensors").is_file())
    if name is None:
        return None
    path = root / f"{name}.safetensors"
    if not path.is_file():
        raise DataError(f"'{path}' is missing", hint="check data.root in the spec")
    dataset, train = read_safetensors(path), root / f"{split_name(data, 'train')}.safetensors"
    if dataset.labels is None or train == path or not train.is_file():  # the test split may be the only one
        return dataset
    return renumbered(dataset, of_train(_read_class_names(train)), f"'{path}'")


def read_safetensors(path: Path) -> Dataset:
    """Read one file of the format; see `read_safetensors_folder`."""
    try:
        checkpoint = read_checkpoint(path)
        names, metadata = set(checkpoint.entries), checkpoint.metadata
        inputs_name = _one_of(path, names, "images", "inputs")
        targets_name = _one_of(path, names, "labels", "targets")
        # Not mapped into memory: if the file was cut meanwhile, the process would be killed without a word.
        tensors = read_tensors(checkpoint, (inputs_name, targets_name))
    except CheckpointError as error:
        raise DataError(error.message, items=error.items, hint="write the file again") from error
    inputs = _check_tensor(path, inputs_name, tensors[inputs_name])
    targets = _check_tensor(path, targets_name, tensors[targets_name])
    if len(inputs) == 0:
        raise DataError(
            f"'{path}': tensor '{inputs_name}' holds no example",
            hint="write a file with at least one example, or name another in data.splits",
        )
    if len(targets) != len(inputs):
        raise DataError(
            f"'{path}': tensor '{targets_name}' has {len(targets):,} examples, wanted {len(inputs):,}, "
            f"as '{inputs_name}' has",
            hint="write both from the same examples",
        )
    class_names = _parse_class_names(path, metadata.get("class_names"))
    if targets_name == "labels":
        _check_labels(path, targets, class_names)
    return Dataset(inputs, targets, class_names)


def _read_class_names(path: Path) -> tuple[str, ...] | None:
    try:
        return _parse_class_names(path, read_checkpoint(path).metadata.get("class_names"))
    except CheckpointError as error:
        raise DataError(error.message, items=error.items, hint="write the file again") from error


def _one_of(path: Path, names: set[str], first: str, second: str) -> str:
    present = [name for name in (first, second) if name in names]
    if len(present) != 1:
        what = "both" if present else "neither"
        raise DataError(
            f"'{path}': found {what} of the tensors '{first}' and '{second}', wanted one of them",
            hint=f"the file holds {shown(', '.join(sorted(names)) or 'no tensor')}",
        )
    return present[0]


def _check_tensor(path: Path, name: str, tensor: Tensor) -> Tensor:
    shape = list(tensor.shape)
    if tensor.dtype not in _DTYPES[name]:
        wanted = " or ".join(_dtype_name(dtype) for dtype in _DTYPES[name])
        raise DataError(
            f"'{path}': tensor '{name}' is {_dtype_name(tensor.dtype)}, wanted {wanted}",
            hint="convert it where the file is written, with tensor.to(...)",
        )
    if name == "images" and tensor.dim() != 4:
        raise DataError(
            f"'{path}': tensor 'images' has shape {shape}, wanted [N, C, H, W]",
            hint="of grey images, write [N, 1, H, W]; what is no image, write as 'inputs'",
        )
    if name == "labels" and tensor.dim() != 1:
        raise DataError(
            f"'{path}': tensor 'labels' has shape {shape}, wanted [N]",
            hint="write a class number an example; several numbers an example are 'targets'",
        )
    if tensor.dim() == 0:
        raise DataError(
            f"'{path}': tensor '{name}' is a single number, wanted [N, ...]", hint="write an entry an example"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()
        finite = tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else tensor.isfinite()
        if not finite.all():
            raise DataError(
                f"'{path}': tensor '{name}' is NaN or infinite in example {int((~finite).nonzero()[0])}",
                hint="leave that example out, or fill in its numbers",
            )
    return tensor


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parse_class_names(path: Path, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"'{path}': metadata key 'class_names' is not a JSON list of strings",
            hint="write json.dumps(names) there, one name a class in the order of the labels",
        )
    return tuple(names)


def _check_labels(path: Path, labels: Tensor, class_names: tuple[str, ...] | None) -> None:
    wrong = labels < 0
    wanted = "0 or more"
    if class_names is not None:
        wrong |= labels >= len(class_names)
        wanted = f"0 to {len(class_names) - 1}, as there are {len(class_names)} class names"
    if wrong.any():
        example = int(wrong.nonzero()[0])
        raise DataError(
            f"'{path}': tensor 'labels' is {int(labels[example])} in example {example} (from 0), wanted {wanted}",
            hint="number the classes from 0, in the order of their names",
        )
