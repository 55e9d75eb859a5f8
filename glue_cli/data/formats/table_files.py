"""Find the files of a split for the library `datasets`, which would take more for them than is meant."""

import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from glue_cli.data.image_files import ENDINGS, find_image_files
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Noted, Progress

# By file ending; compressed JSON is only found, so that it can be said what to do.
_BUILDERS = {"parquet": "parquet", "csv": "csv", "jsonl": "json", "json": "json", "tsv": "csv"}
_BUILDERS |= {"csv.gz": "csv", "tsv.gz": "csv", "jsonl.gz": "json", "json.gz": "json"}
# train-00000-of-00002-0f1e2d.parquet, or train-part1.csv
_SHARD = re.compile(r"-(?:part|shard|chunk)?[-_]?\d+(?:-of-(?P<n>\d+))?(?:-\w+)?")
_OTHER_FORMAT = "set data.format: image-folder, which reads and counts them by their names"


def find_table_files(root: Path, name: str, progress: Progress) -> tuple[str, list[Path]] | None:
    """Return the builder of `datasets` that reads a split, and the split's files or folder; None if there are none.

    Raises:
        DataError: some of its shards are missing.
    """
    folder = root / name
    if (folder / "state.json").is_file():
        return "arrow", [folder]
    if folder.is_dir() and find_image_files(folder).images:
        return "imagefolder", [folder]
    places = [(ending, files) for ending in _BUILDERS for files in _places(root, name, ending) if files]
    if not places:
        return None
    (ending, files), *others = places
    _check_shards(files, name)
    if others:
        also = ", ".join(f"'{paths[0]}'" for _, paths in others)
        progress(Noted(f"the {name} split is read from '{files[0]}', and not from {also}", warning=True))
    return _BUILDERS[ending], files


def _places(root: Path, name: str, ending: str) -> Iterator[list[Path]]:
    """Yield the files of each place where a split may be."""
    yield [path for path in [root / f"{name}.{ending}"] if path.exists() and not path.is_dir()]
    for folder in (root, root / "data"):
        shards = sorted(folder.glob(f"{_escaped(name)}-*.{ending}"))
        yield [path for path in shards if _SHARD.fullmatch(_stem(path).removeprefix(name))]
    yield sorted((root / name).glob(f"*.{ending}"))


def is_table(path: Path) -> bool:
    """Tell from its name whether a file may be part of a split."""
    return path.name != _stem(path)


def split_of(path: Path) -> str:
    """Return the name of the split that a table's file may belong to."""
    return _stem(path).partition("-")[0]


def _stem(path: Path) -> str:
    """Return a table's name without its ending, which may have two parts."""
    return next((path.name.removesuffix(f".{end}") for end in _BUILDERS if path.name.endswith(f".{end}")), path.name)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _check_shards(files: Sequence[Path], name: str) -> None:
    parts = [_SHARD.fullmatch(_stem(path).removeprefix(name)) for path in files]
    found = [match for match in parts if match and match["n"]]
    if found and len(found) != (n := int(found[0]["n"])):
        raise DataError(f"'{files[0]}' is one of {n} parts, of which {len(found)} are there", hint="fetch the others")


def check_image_folder(folder: Path) -> None:
    """Check that `datasets` reads all images of a folder, those only, and the classes that are meant.

    It takes the names of the folders around images for classes, passes over folders that begin with `__`, and reads
    a.png.bak as an image.

    Raises:
        DataError: it does not.
    """
    if any(folder.rglob("metadata.*")):
        return  # which names the images
    for path in folder.rglob("*"):
        within = path.relative_to(folder).parts
        if any(part.startswith(".") for part in within) or path.is_dir():
            continue
        is_image = path.suffix.lower() in ENDINGS
        if is_image and len(within) == 1:
            raise DataError(f"'{path}' lies in no class folder", hint=f"wanted '{folder}/CLASS/{path.name}'")
        if is_image and any(part.startswith("__") for part in within[:-1]):
            raise DataError(f"'{path}': the library datasets passes over such a folder", hint=_OTHER_FORMAT)
        if not is_image and "".join(path.suffixes[-2:-1]).lower() in ENDINGS:
            raise DataError(f"'{path}': the library datasets takes it for an image", hint=_OTHER_FORMAT)


def identity_of_files(paths: Sequence[Path]) -> str:
    """Return what files that have been converted are known by: their places, sizes, times and inodes."""
    described = []
    for path in paths:
        stat = path.stat()
        described.append((str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return sha256(repr(described).encode()).hexdigest()[:16]
