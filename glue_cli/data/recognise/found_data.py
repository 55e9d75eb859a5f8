"""A description of the data in a folder, and the matching of split names. Needs no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from glue_cli.data.split_names import OF_VALIDATION

Kind = Literal["labels", "numbers", "tokens"]

# Names that people give to the splits, the most common first.
_NAMES = {
    "train": ("train", "training"),
    "val": OF_VALIDATION,
    "test": ("test", "testing", "eval"),
}


@dataclass(frozen=True)
class FoundData:
    """A data section for the spec, and what its data contain.

    Attributes:
        format: a name of `glue_cli.data.FORMATS`.
        splits, columns: as in the spec; empty if the default names fit.
        counts: examples by split, as far as they are known.
        targets: class labels, numbers to predict, or the next tokens of a text.
        n_classes: number of label classes; None if only reading all data would tell.
        class_names: names of the label classes, if they have any.
        sizes: heights and widths of the images that were looked at, pixels; empty for other data.
        doubts: what could not be determined and the user has to check, one line each.
        choices: keys and values of the section that the user has to choose between.
        within: the folder in the given one that the splits are in; empty if that is the given one.
        lacks_train: whether the user has to name the train split.
    """

    format: str
    splits: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    targets: Kind = "labels"
    n_classes: int | None = None
    class_names: tuple[str, ...] = ()
    sizes: frozenset[tuple[int, int]] = frozenset()
    doubts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    within: str = ""
    lacks_train: bool = False


def match_splits(names: Collection[str], *, stand_in: bool = False) -> tuple[dict[str, str], tuple[str, ...]] | None:
    """Return the name of each split, and what the user has to check; None without a train split.

    A folder without a test split is evaluated on its validation split, and validates on part of the training split.

    Args:
        stand_in: whether the only split, or one of a usual name, is taken for a train split that is not there.
    """
    splits = {split: name for split, known in _NAMES.items() for name in reversed(known) if name in names}
    doubts: tuple[str, ...] = ()
    if "train" not in splits and stand_in and splits:
        return {"train": splits.get("test") or splits["val"]}, ()
    if "train" not in splits and stand_in and len(names) == 1:
        splits["train"] = next(iter(names))
        doubts = (f"data.splits: '{splits['train']}' is taken for the train split",)
    if "train" not in splits:
        return None
    if "test" not in splits:
        if "val" in splits:
            splits["test"] = splits.pop("val")
            doubts = (f"data.splits: there is no test split, so '{splits['test']}' is evaluated in its place",)
        else:
            doubts = (*doubts, "data.splits: there is no test split, which glue evaluate wants by default")
    return splits, doubts


def without_train(data: FoundData) -> FoundData:
    """Return a description without the train split that another split has stood in for."""
    name = data.splits.get("train")
    if name not in (*_NAMES["val"], *_NAMES["test"]):
        return data
    return replace(
        data,
        splits=unusual({"test": name}),
        counts={"test": data.counts["train"]},
        doubts=(*data.doubts, "data.splits: no train split was found: name it with data.splits"),
        lacks_train=True,
    )


def unusual(splits: Mapping[str, str]) -> dict[str, str]:
    """Return the split names that a spec has to state; every format looks for val by all its usual names."""
    return {split: name for split, name in splits.items() if split not in ("val", name)}
