"""Recognise the data in a folder."""

from pathlib import Path

from glue_cli.data.recognise.files import FINDERS
from glue_cli.data.recognise.found_data import FoundData
from glue_cli.data.recognise.table import find_table


def recognise_data(
    root: Path, cache: Path | None, *, for_writing: bool = False, n_numbers: int | None = None
) -> FoundData | None:
    """Return a description of the data in a folder; None if no format fits.

    Args:
        cache: a folder for files that the library `datasets` converts; None keeps none.
        for_writing: whether the model writes text, so that no column is a label.
        n_numbers: how many numbers an example the model predicts; None if it does not.
    Raises:
        SpecError: they need a library that is not installed.
        DataError: they are damaged.
    """
    found = (data for find in FINDERS if (data := find(root)))
    fitting = (data for data in found if not (for_writing and data.targets == "labels"))
    usable = (data for data in fitting if not (n_numbers and data.format == "jsonl"))  # which has no numbers
    return next(usable, None) or find_table(root, cache, for_writing=for_writing, n_numbers=n_numbers)
