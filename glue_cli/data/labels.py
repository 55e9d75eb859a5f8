"""Labels as people write them: whole numbers, or the names of classes."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from glue_cli.foundation.errors import DataError


def encode_labels(
    written: Sequence[object], where: Callable[[int], str], train: Callable[[], Iterable[object]]
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels, int64 [N], and the class names where the labels are names.

    The names are those of the train split, sorted, so that every split gives a class the same number.

    Args:
        written: a label an example, all whole numbers or all names.
        where: says where the label of example i stands, for the messages.
        train: returns the train split's labels as written; called for names alone.
    Raises:
        DataError: a label is neither or of the other kind, negative, or a class that train does not have.
    """
    kind = type(written[0])
    for i, label in enumerate(written):
        if type(label) not in (int, str):
            raise DataError(f"{where(i)}: the label is {label!r}, wanted a whole number or a class name")
        if type(label) is not kind:
            raise DataError(
                f"{where(i)}: the label is {label!r}, but {where(0)} has {written[0]!r}",
                hint="wanted whole numbers everywhere, or class names everywhere",
            )
        if isinstance(label, int) and not 0 <= label < 2**31:
            raise DataError(f"{where(i)}: the label is {label}, wanted 0 or more, as classes are counted")
    if kind is int:
        return torch.tensor(written, dtype=torch.int64), None
    names = tuple(sorted({str(name) for name in train()}))
    numbers = {name: number for number, name in enumerate(names)}
    for i, name in enumerate(written):
        if name not in numbers:
            raise DataError(
                f"{where(i)}: class '{name}' is unknown to the train split",
                hint=f"train has {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}",
            )
    return torch.tensor([numbers[str(name)] for name in written], dtype=torch.int64), names
