"""Check that links in a model's folder do not lead out of it, so nothing else is read or copied. Needs no torch."""

from collections.abc import Iterable
from pathlib import Path

from glue_cli.foundation.errors import CheckpointError


def check_links(folder: Path, files: Iterable[Path]) -> None:
    """Check that files in a folder are really inside it, with all links followed.

    The Hub's cache is allowed: a folder in `snapshots` whose files are links to `blobs`, next to `snapshots`.

    Raises:
        CheckpointError: a link leads elsewhere.
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
