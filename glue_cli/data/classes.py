"""Labels of a data set as numbers of somebody else's classes: a model's outputs, or the train split's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glue_cli.checkpoints.classes import is_numbering, listed, match_classes
from glue_cli.data.dataset import Dataset
from glue_cli.foundation.errors import DataError


@dataclass(frozen=True)
class Classes:
    """What labels are to number.

    Attributes:
        names: of the classes, in their order; none where only the numbers are known.
        owner: whose they are, for messages.
        hint: what to do about data that have others.
    """

    names: tuple[str, ...]
    owner: str
    hint: str


def of_train(names: Sequence[str] | None) -> Classes:
    """Return the classes of the train split, which count in every split."""
    return Classes(tuple(names or ()), "the train split", "give the classes the same names in every split")


def renumber(
    labels: Tensor, own: tuple[str, ...] | None, classes: Classes, where: str
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels as numbers of other classes, matched by name, and the names that then count.

    Where one side has no names, or only numbers for names, the labels stay as they are, and the names are the other's.

    Args:
        labels: int64 [N].
        own: the names of the classes that the labels number now.
        where: what the data are called in messages.
    Raises:
        DataError: a label's class is not among the others, with both lists.
    """
    names = classes.names
    if not names or own == names or not len(labels):
        return labels, own
    if own is None:
        return labels, names if int(labels.max()) < len(names) else None  # else these are no names of these labels
    used = labels.bincount().nonzero().squeeze(1)
    places = match_classes(own, names)
    lost = [own[number] for number in used.tolist() if places[number] is None]
    if lost:
        raise DataError(
            f"{where} has classes that {classes.owner} does not have: {listed(lost)}",
            items=[f"{where}: {listed(own)}", f"{classes.owner}: {listed(names)}"],
            hint=classes.hint,
        )
    if is_numbering(names) and set(own).isdisjoint(names):
        return labels, own  # which are words, and say more
    table = torch.tensor([-1 if place is None else place for place in places])
    return labels if torch.equal(table[used], used) else table[labels], names


def renumbered(dataset: Dataset, classes: Classes, where: str) -> Dataset:
    """Return the data set with labels that number other classes; see `renumber`. The inputs are shared."""
    if (labels := dataset.labels) is None:
        return dataset
    targets, names = renumber(labels, dataset.class_names, classes, where)
    return replace(dataset, targets=targets, class_names=names)


def classes_without_example(dataset: Dataset) -> list[str]:
    """Return the names of the classes that no label is of."""
    labels, names = dataset.labels, dataset.class_names
    if labels is None or names is None:
        return []
    counts = labels.bincount(minlength=len(names)).tolist()
    return [name for name, count in zip(names, counts, strict=False) if not count]
