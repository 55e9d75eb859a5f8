"""What was found of the data in a folder. Needs no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["labels", "numbers", "tokens"]

# What people call the splits, the usual name first.
_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval"),
}


@dataclass(frozen=True)
class FoundData:
    """A data section of the spec, and what it will give.

    Attributes:
        format: a name of `glue_cli.data.FORMATS`.
        splits, columns: as in the spec; empty where the usual names do.
        counts: examples by split, as far as they are known.
        targets: class labels, numbers to predict, or the next tokens of a text.
        n_classes: of labels; None where only a whole reading would tell.
        class_names: of labels, where they have names.
        sizes: heights and widths of the images that were looked at, pixels; empty for other data.
        doubts: what nothing told and the user has to check, a line each.
        choices: keys and values of the section that the user has to choose between.
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


def match_splits(names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]] | None:
    """Return what each split is called, and what to check of that; None where nothing is called train.

    A folder without a test split is evaluated on its validation split, and validates on part of the training split.
    """
    found = {split: name for split, known in _NAMES.items() for name in reversed(known) if name in names}
    if "train" not in found:
        return None
    doubts: tuple[str, ...] = ()
    if "test" not in found:
        if "val" in found:
            found["test"] = found.pop("val")
            doubts = (f"data.splits: there is no test split, so '{found['test']}' is evaluated in its place",)
        else:
            doubts = ("data.splits: there is no test split, which glue evaluate wants by default",)
    return found, doubts


def unusual(splits: Mapping[str, str], *, usual: Mapping[str, Collection[str]] | None = None) -> dict[str, str]:
    """Return the names of splits that a spec has to say.

    Args:
        usual: names that a format looks for by itself, besides the split's own.
    """
    return {
        split: name for split, name in splits.items() if name != split and name not in (usual or {}).get(split, ())
    }
