"""Find the image files in a folder by their names. Needs no Pillow."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.units import counted

# The names of the formats that `images` decodes.
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    *(".avif", ".avifs"),
)
_SAME_KIND = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_LITTER = ("thumbs.db", "desktop.ini")  # written by operating systems, not by the user
_LITTER_FOLDERS = ("__macosx",)  # which macOS adds to its archives, with a copy of every folder
_MOST_KINDS = 5  # endings that a message lists


@dataclass(frozen=True)
class ImageFiles:
    """The files in a folder and the folders in it; hidden ones are ignored.

    Attributes:
        images: files with an image's ending: a folder's own, sorted by name, then those of its subfolders.
        others: the number of other files, by ending.
    """

    images: tuple[Path, ...] = ()
    others: Counter[str] = field(default_factory=Counter)


def find_image_files(folder: Path) -> ImageFiles:
    """Look for images in a folder and all its subfolders; links to folders are followed.

    Raises:
        DataError: an image is a link to nothing, or a folder cannot be read.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in _walk(folder):
        ending = path.suffix.lower()
        if ending in ENDINGS:
            images.append(path)
        else:
            others[ending or "without an ending"] += 1
    check_fetched(folder, images)
    return ImageFiles(tuple(images), others)


def has_image(folder: Path) -> bool:
    """Tell whether `find_image_files` finds one, without looking further than to the first."""
    return any(path.suffix.lower() in ENDINGS for path in _walk(folder))


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; not hidden ones, nor those that macOS adds to archives."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and _is_meant(entry.name))


def _is_meant(folder: str) -> bool:
    return folder[0] != "." and folder.lower() not in _LITTER_FOLDERS


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()  # a link may point to a folder above

    def refuse(error: OSError) -> None:
        raise DataError(f"'{error.filename}' cannot be read: {error.strerror}", hint="check its permissions")

    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (home := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(home)
        folders[:] = sorted(filter(_is_meant, folders))
        for name in sorted(files):
            if name[0] != "." and name.lower() not in _LITTER:
                yield Path(here, name)


def check_fetched(folder: Path, files: list[Path]) -> None:
    """Check that no file is a broken link, as git-annex and DVC leave for files that are not fetched.

    Raises:
        DataError: a file is a broken link.
    """
    missing = [path for path in files if path.is_symlink() and not path.exists()]
    if missing:
        raise DataError(
            f"'{folder}' has {counted(len(missing), 'link')} to files that are not there",
            items=[f"'{path}' is a link to '{os.readlink(path)}'" for path in missing],
            hint="fetch the files (git annex get, dvc pull), or remove the links",
        )


def tell_kinds(folder: Path, images: Iterable[Path], progress: Progress) -> None:
    """Report a folder with several kinds of images: a model may learn the kind instead of the class."""
    endings = (path.suffix.lower() for path in images)
    kinds = Counter(_SAME_KIND.get(ending, ending) for ending in endings)
    if len(kinds) > 1:
        progress(Noted(f"'{folder}' has images of several kinds: {_listed(kinds)}"))


def warn_of_others(folder: Path, others: Counter[str], progress: Progress) -> None:
    """Report how many files of a folder are skipped, by ending."""
    if n_files := others.total():
        progress(Noted(f"'{folder}': {counted(n_files, 'file')} passed over: {_listed(others)}", warning=True))


def _listed(counts: Counter[str]) -> str:
    kinds = [f"{count:,} {ending}" for ending, count in counts.most_common(_MOST_KINDS)]
    return ", ".join([*kinds, *(["..."] if len(counts) > _MOST_KINDS else [])])
