"""The names of splits on disk: as the spec says, or their usual ones. Needs no torch."""

from collections.abc import Callable

from glue_cli.foundation.errors import SpecError
from glue_cli.spec.schema import DataSpec

# Names that a validation split may have where the spec does not name it, the most common first.
OF_VALIDATION = ("val", "validation", "valid", "dev")


def find_split(data: DataSpec, split: str, is_there: Callable[[str], bool]) -> str | None:
    """Return the name of a split on disk, of val by any usual one; None where there is no val split.

    Args:
        is_there: tells whether a split of that name is on the disk.
    Raises:
        SpecError: as for `split_name`.
    """
    if split != "val" or "val" in data.splits:
        return split_name(data, split)
    return next((name for name in OF_VALIDATION if name not in data.splits.values() and is_there(name)), None)


def split_name(data: DataSpec, split: str) -> str:
    """Return the name of a split on disk: the one in `data.splits`, or else its own.

    Raises:
        SpecError: another split has taken that name, such as with `splits: {val: test}` the one of test.
    """
    named = dict(data.splits).get(split)  # type: ignore[call-overload]
    if named is not None:
        return str(named)
    if split not in data.splits.values():
        return split
    raise SpecError(
        f"data.splits gives the name '{split}' to another split, so there is no {split} split",
        hint=f"name the {split} split in data.splits",
    )
