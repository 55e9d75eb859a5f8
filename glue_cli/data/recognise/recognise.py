"""Recognise the data in a folder."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from glue_cli.data.image_files import folders_in
from glue_cli.data.recognise.files import FINDERS
from glue_cli.data.recognise.found_data import FoundData, without_train
from glue_cli.data.recognise.table import find_table
from glue_cli.foundation.errors import DataError


def recognise_data(
    root: Path, cache: Path | None, *, for_writing: bool = False, n_numbers: int | None = None
) -> FoundData | None:
    """Return a description of the data in a folder; None if no format fits.

    Data without a train split, or in the only folder in this one, are described if there are no others.

    Args:
        cache: a folder for files that the library `datasets` converts; None keeps none.
        for_writing: whether the model writes text, so that no column is a label.
        n_numbers: how many numbers an example the model predicts; None if it does not.
    Raises:
        SpecError: they need a library that is not installed.
        DataError: they are damaged.
    """

    def look(folder: Path, *, stand_in: bool = False) -> FoundData | None:
        return _look(folder, cache, stand_in=stand_in, for_writing=for_writing, n_numbers=n_numbers)

    if found := look(root):
        return found
    folders = folders_in(root)
    if len(folders) == 1 and (found := look(root / folders[0])):
        doubt = f"data.root: the data are one folder deeper, in '{folders[0]}'"
        return replace(found, within=folders[0], doubts=(doubt, *found.doubts))
    with suppress(DataError):  # what was guessed to be data need not be
        found = look(root, stand_in=True)
    return without_train(found) if found else None


def _look(
    root: Path, cache: Path | None, *, stand_in: bool, for_writing: bool, n_numbers: int | None
) -> FoundData | None:
    found = (data for find in FINDERS if (data := find(root, stand_in=stand_in)))
    fitting = (data for data in found if not (for_writing and data.targets == "labels"))
    usable = (data for data in fitting if not (n_numbers and data.format == "jsonl"))  # which has no numbers
    if data := next(usable, None):
        return data
    return find_table(root, cache, stand_in=stand_in, for_writing=for_writing, n_numbers=n_numbers)
