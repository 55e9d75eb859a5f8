"""Links in a model's folder: they may not lead out of it, to what nobody meant to read or to copy. Needs no torch."""

from collections.abc import Iterable
from pathlib import Path

from glue_cli.foundation.errors import CheckpointError


def check_links(folder: Path, files: Iterable[Path]) -> None:
    """Check that files in a folder lie there, whatever links they are.

    The Hub's cache is allowed: a folder in `snapshots` whose files are links to the `blobs` beside that.

    Raises:
        CheckpointError: one leads elsewhere.
    """
    home = folder.resolve()
    snapshots = next((path for path in (home, *home.parents) if path.name == "snapshots"), None)
    allowed = [home, *([snapshots.parent / "blobs"] if snapshots else [])]
    outside = [
        f"'{file}' is '{real}'"
        for file in files
        if not any((real := file.resolve()).is_relative_to(place) for place in allowed)
    ]
    if outside:
        raise CheckpointError(
            f"the folder '{folder}' has links that lead out of it",
            items=outside,
            hint="name the file that is meant, or copy it into the folder",
        )
