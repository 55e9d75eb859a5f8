"""Recognise the data in a folder."""

from pathlib import Path

from glue_cli.data.recognise.files import FINDERS
from glue_cli.data.recognise.found_data import FoundData
from glue_cli.data.recognise.table import find_table


def recognise_data(root: Path, cache: Path | None) -> FoundData | None:
    """Return a description of the data in a folder; None if no format fits.

    Args:
        cache: a folder for files that the library `datasets` converts; None keeps none.
    Raises:
        SpecError: they need a library that is not installed.
        DataError: they are damaged.
    """
    return next((data for find in FINDERS if (data := find(root))), None) or find_table(root, cache)
