"""Renumber the labels of a data set to match other classes: those of a model's outputs, or of the train split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glue_cli.checkpoints.classes import TRUTHS, is_number, is_numbering, listed, match_classes
from glue_cli.data.dataset import Dataset
from glue_cli.foundation.errors import DataError


@dataclass(frozen=True)
class Classes:
    """The classes that labels are to be renumbered to.

    Attributes:
        names: of the classes, in order; none if only their numbers are known.
        owner: whose classes they are, for messages.
        hint: what the user can do about data with other classes.
    """

    names: tuple[str, ...]
    owner: str
    hint: str


def of_train(names: Sequence[str] | None) -> Classes:
    """Return the classes of the train split, which number the labels of every split."""
    return Classes(tuple(names or ()), "the train split", "give the classes the same names in every split")


def renumber(
    labels: Tensor, own: tuple[str, ...] | None, classes: Classes, where: str
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Renumber labels to other classes, matched by name; return them and the class names that apply to them.

    If one side has no names, or its names are only numbers, the labels stay, and the other side's names apply. Where
    the classes' names are numbers in another order, labels that are among them are names too; truths that are not
    among the names stay.

    Args:
        labels: int64 [N].
        own: the names of the current classes.
        where: what the data are called in messages.
    Raises:
        DataError: a label's class is not among the others; the message lists both.
    """
    names = classes.names
    if not names or own == names or not len(labels):
        return labels, own
    if own is None and not are_names(labels, names):
        return labels, names if int(labels.max()) < len(names) else None  # else the names are not of these labels
    if own == TRUTHS and None in match_classes(own, names):
        return labels, names
    own = own or tuple(map(str, range(int(labels.max()) + 1)))
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
        return labels, own  # which are words, and so more useful
    table = torch.tensor([-1 if place is None else place for place in places])
    return labels if torch.equal(table[used], used) else table[labels], names


def are_names(labels: Tensor, names: Sequence[str]) -> bool:
    """Tell whether labels that are whole numbers are the names of classes: numbers that are not in order."""
    if not all(map(is_number, names)) or is_numbering(names):
        return False
    return set(map(str, labels.bincount().nonzero().squeeze(1).tolist())) <= set(names)


def doubt_about(dataset: Dataset, classes: Classes, *, of_library: bool) -> str | None:
    """Return a sentence on how labels are read, if that is a guess; None if there is nothing to guess.

    Args:
        of_library: whether the model is one of transformers, whose checkpoints usually name their classes.
    """
    labels, own, names = dataset.labels, dataset.class_names, classes.names
    if labels is None or not len(labels):
        return None
    if not names and own and of_library and not is_numbering(own):
        order = listed([f"{number} {name}" for number, name in enumerate(own)])
        return f"{classes.owner} does not name its classes; those of the data are taken to be {order}"
    if not names:
        return None
    if own is None and are_names(labels, names):
        order = listed([f"'{name}' is class {number}" for number, name in enumerate(names)])
        return f"the labels are taken for the classes' names, which {classes.owner} has in another order: {order}"
    if own == TRUTHS and None in match_classes(own, names):
        return f"false and true are taken to be the classes 0 and 1 of {classes.owner}, {listed(names)}"
    return None


def renumbered(dataset: Dataset, classes: Classes, where: str) -> Dataset:
    """Return the data set with labels renumbered to other classes; see `renumber`. The inputs are not copied."""
    if (labels := dataset.labels) is None:
        return dataset
    targets, names = renumber(labels, dataset.class_names, classes, where)
    return replace(dataset, targets=targets, class_names=names)


def classes_without_example(dataset: Dataset) -> list[str]:
    """Return the names of the classes that no example has."""
    labels, names = dataset.labels, dataset.class_names
    if labels is None or names is None:
        return []
    counts = labels.bincount(minlength=len(names)).tolist()
    return [name for name, count in zip(names, counts, strict=False) if not count]
