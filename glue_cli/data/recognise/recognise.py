"""Which data lie in a folder."""

from pathlib import Path

from glue_cli.data.recognise.files import FINDERS
from glue_cli.data.recognise.found import FoundData
from glue_cli.data.recognise.table import find_table


def recognise_data(root: Path, cache: Path | None) -> FoundData | None:
    """Return what the data in a folder are; None where no format fits.

    Args:
        cache: a folder for what the library `datasets` converts; None keeps nothing.
    Raises:
        SpecError: they need a library that is not installed.
        DataError: they are damaged.
    """
    return next((found for find in FINDERS if (found := find(root))), None) or find_table(root, cache)
