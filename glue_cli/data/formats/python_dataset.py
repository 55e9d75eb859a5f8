"""A torch `Dataset` that a function of the user returns, read into memory once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.data.classes import of_train, renumbered
from glue_cli.data.dataset import Dataset
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Advanced, Finished, Progress, Started
from glue_cli.foundation.seeds import generator_states, restore_generators, seed_others
from glue_cli.foundation.user_code import PREFIX, importable, load_function
from glue_cli.spec.schema import DataSpec

_ITEMS_A_REPORT = 100
_WHOLE = (torch.int16, torch.int32, torch.int64)  # numbers that are no images, such as tokens


@contextmanager
def _same_draws() -> Iterator[None]:
    """Let what the user's code draws at random be the same in every run; after that the generators go on as before."""
    if find_spec("numpy"):
        import_module("numpy")  # which the user's code may do later
    cpu = torch.device("cpu")
    before = generator_states(cpu)
    torch.default_generator.manual_seed(0)
    seed_others(0)
    try:
        yield
    finally:
        restore_generators(before, cpu)


def read_python(
    data: DataSpec, split: str, *, root: Path, folder: Path, cache: Path | None, progress: Progress
) -> Dataset | None:
    """Read what `function(split)`, or `function(split, root)`, returns: a length, and items (input, target).

    An input is an image, uint8 [C, H, W], floats [...], or whole numbers [...], such as tokens; a target is a label,
    or floats [...]; all have one shape. A transform that draws random numbers draws the same in every run.
    The class names are in the data set's attribute `classes`, as in torchvision. If a split has some, the function is
    also called for the train split, whose classes number the labels.

    Args:
        root: passed to the function if the spec has `data.root`.
        folder: the spec's own, where the module is searched for.
    Returns:
        the split, or None where the function returns None for val.
    Raises:
        SpecError: the module or the function is not there.
        DataError: the function or an item raises an error, or returns something else than described.
    """
    location = data.format.removeprefix(PREFIX)
    with _same_draws(), importable(folder):
        function = load_function(location, folder, key="data.format")
        return _read(location, function, split, [root] if data.root else [], progress)


def _read(
    location: str, function: Callable[..., Any], split: str, roots: list[Path], progress: Progress
) -> Dataset | None:
    where = f"{location}({split!r})"
    user_dataset = _attempt(where, function, split, *roots)
    if user_dataset is None and split == "val":
        return None
    if not hasattr(user_dataset, "__len__") or not hasattr(user_dataset, "__getitem__"):
        raise DataError(
            f"{where} returns {_describe(user_dataset)}, wanted a torch Dataset with a length and items",
            hint="return an object with __len__ and __getitem__, such as a list of pairs",
        )
    if len(user_dataset) == 0:
        raise DataError(f"{where} has no item", hint="let it return at least one example for this split")
    inputs, targets = _stack(user_dataset, where, progress)
    for kind, tensor in (("input", inputs), ("target", targets)):
        wrong = ~tensor.isfinite().view(len(tensor), -1).all(1)
        if kind == "target" and tensor.dtype == torch.int64:
            wrong = tensor < 0
        if wrong.any():
            i = int(wrong.nonzero()[0])
            whole = kind == "target" and tensor.dtype == torch.int64
            raise DataError(
                f"{where}, item {i}: the {kind} is {tensor[i].tolist()}",
                hint="labels count from 0, and all of them count; for a regression return floats"
                if whole
                else "leave the example out, or return finite numbers",
            )
    dataset = Dataset(inputs, targets, _read_class_names(user_dataset, targets, where))
    if split == "train" or dataset.class_names is None:
        return dataset
    train = _attempt(f"{location}('train')", function, "train", *roots)
    return renumbered(dataset, of_train(_names_of(train)), where)


def _stack(user_dataset: Any, where: str, progress: Progress) -> tuple[Tensor, Tensor]:
    stacks: dict[str, Tensor] = {}
    progress(Started("read", len(user_dataset), "examples"))
    for i in range(len(user_dataset)):
        at = f"{where}, item {i}"
        item = _attempt(at, user_dataset.__getitem__, i)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"{at} is {_describe(item)}, wanted a pair (input, target)",
                hint="return the input and its target, two things, from __getitem__",
            )
        for kind, tensor in (("input", _to_input(item[0], at)), ("target", _to_target(item[1], at))):
            if i == 0:
                stacks[kind] = tensor.new_empty(len(user_dataset), *tensor.shape)
            first = stacks[kind][0]
            if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
                raise DataError(
                    f"{at}: the {kind} is {_describe(tensor)}, but that of item 0 {_describe(first)}",
                    hint="bring all items to one shape and dtype",
                )
            stacks[kind][i] = tensor
        if i % _ITEMS_A_REPORT == 0:
            progress(Advanced(i))
    progress(Advanced(len(stacks["input"])))
    progress(Finished())
    return stacks["input"], stacks["target"]


def _attempt(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"{what} fails: {type(error).__name__}: {error}", hint="mend it; it is your own") from error


def _to_input(value: Any, at: str) -> Tensor:
    tensor = _to_tensor(value)
    if tensor is not None and tensor.dtype == torch.uint8 and tensor.dim() == 3:
        return tensor
    if tensor is not None and tensor.is_floating_point():
        return tensor.float()
    if tensor is not None and tensor.dtype in _WHOLE:
        return tensor.long()
    raise DataError(
        f"{at}: the input is {_describe(value)}, wanted an image, uint8 [C, H, W], floats, or whole numbers",
        hint="several tensors may be one, taken apart in forward"
        if isinstance(value, dict | tuple | list)
        else "torchvision.transforms.PILToTensor makes a tensor of an image",
    )


def _to_target(value: Any, at: str) -> Tensor:
    tensor = _to_tensor(value)
    if tensor is not None and tensor.is_floating_point():
        return tensor.float()
    if tensor is not None and tensor.dim() == 0 and not tensor.is_complex():
        return tensor.long()
    several = "there is no loss for several labels an example, such as tags or masks: give one without an axis, or"
    raise DataError(
        f"{at}: the target is {_describe(value)}, wanted a label, as a whole number, or floats",
        hint=f"{several} floats, with loss: mse"
        if tensor is not None and tensor.dim()
        else "return an int for a class, or floats for a regression",
    )


def _to_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if not isinstance(value, int | float | list | tuple) and not hasattr(value, "__array__"):
        return None
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _describe(value: Any) -> str:
    """Describe a value by type or shape, such as 'a str' or 'float32 [3, 8, 8]'."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _names_of(user_dataset: Any) -> tuple[str, ...] | None:
    names = getattr(user_dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None  # the attribute means something else here
    return tuple(names)


def _read_class_names(user_dataset: Any, targets: Tensor, where: str) -> tuple[str, ...] | None:
    names = _names_of(user_dataset)
    if targets.dtype != torch.int64 or names is None:
        return None
    if len(names) <= int(targets.max()):
        raise DataError(
            f"{where} has {len(names)} names in 'classes', but a label {int(targets.max())}",
            hint="name every class in 'classes', in the order of the labels",
        )
    return names
