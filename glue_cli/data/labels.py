"""Read labels written as whole numbers, in quotes or not, as truths, or as names of classes."""

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from glue_cli.checkpoints.classes import TRUTHS, composed
from glue_cli.foundation.errors import DataError

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)")  # 007 is a name
# A label of another kind -> what the user can do about it.
_MENDS: dict[type, str] = {
    float: "numbers to predict are read with format: huggingface, columns: {target: NAME} and loss: mse",
    list: "glue reads one label an example, not several, nor one a word",
    type(None): "give it a label, or leave the example out",
}


def encode_labels(
    written: Sequence[object], where: Callable[[int], str], train: Callable[[], Iterable[object]]
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels, int64 [N], and the class names where the labels are names.

    The names are those of the train split, sorted, so that a class has one number in every split. If all of the
    train split's labels are whole numbers, some or all of them in quotes, they are numbers, else names in every split,
    whatever a reader has made of them there; 1.0 is 1, as pandas writes it where a value is missing. False is 0 and
    true 1, and these are their names.

    Args:
        written: one label per example, all whole numbers, all truths or all names.
        where: returns the place of the label of example i, for messages.
        train: returns the train split's labels as written.
    Raises:
        DataError: a label is neither a whole number nor text, differs in kind from the others, is negative, or is not
            a class of train.
    """
    if written and all(isinstance(label, bool) for label in written):
        return torch.tensor(written, dtype=torch.int64), TRUTHS
    written = [*map(_plain, written)]
    for i, label in enumerate(written):
        if type(label) not in (int, str):
            raise DataError(
                f"{where(i)}: the label is {label!r}, wanted a whole number or a class name",
                hint=_MENDS.get(type(label)),
            )
    names = _names_of_train(train, written)
    if are_numbers(names) and all(map(_is_number, written)):
        return _check_numbers([int(str(label)) for label in written], where), None
    for i, label in enumerate(written):
        if isinstance(label, int) != isinstance(written[0], int):
            raise DataError(
                f"{where(i)}: the label is {label!r}, but {where(0)} has {written[0]!r}",
                hint="wanted whole numbers everywhere, or class names everywhere",
            )
    numbers = {name: number for number, name in enumerate(names)}
    for i, name in enumerate(map(str, written)):
        if name not in numbers:
            raise DataError(
                f"{where(i)}: class '{name}' is unknown to the train split",
                hint=f"train has {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}: give it an example of "
                "this class, or leave these out",
            )
    return torch.tensor([numbers[str(name)] for name in written], dtype=torch.int64), names


def _names_of_train(train: Callable[[], Iterable[object]], written: Sequence[object]) -> tuple[str, ...]:
    """Return the names of the train split's labels; those of numbers are these labels' own if there is no such split.

    Raises:
        DataError: the labels have names, and the train split cannot be read.
    """
    are_whole = all(map(_is_number, written))
    try:
        labels = [*train()]
    except DataError:
        if not are_whole:
            raise
        return names_in(written)
    if are_whole and all(isinstance(label, bool) for label in labels):  # false is 0 and true 1
        return names_in(written)
    return names_in(labels)


def _is_number(label: object) -> bool:
    return _NUMBER.fullmatch(str(label)) is not None


def names_in(labels: Iterable[object]) -> tuple[str, ...]:
    """Return the names among labels, sorted as they are written; 1.0 is 1."""
    written = sorted({str(label) for label in map(_whole, labels) if label is not None})
    return tuple(dict.fromkeys(map(composed, written)))


def _plain(label: object) -> object:
    """Return a label in one spelling: 1.0 is 1, and a letter with its accent one character."""
    return composed(label) if isinstance(label, str) else _whole(label)


def _whole(label: object) -> object:
    return int(label) if isinstance(label, float) and label.is_integer() else label


def are_numbers(names: Iterable[str]) -> bool:
    """Tell whether names of labels are whole numbers."""
    return all(map(_NUMBER.fullmatch, names))


def _check_numbers(numbers: Sequence[int], where: Callable[[int], str]) -> Tensor:
    for i, number in enumerate(numbers):
        if not 0 <= number < 2**31:
            raise DataError(
                f"{where(i)}: the label is {number}, wanted 0 or more, as classes are counted",
                hint="number the classes from 0, or write their names",
            )
    return torch.tensor(numbers, dtype=torch.int64)
