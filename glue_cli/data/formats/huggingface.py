"""What the `datasets` library reads from disk: `save_to_disk`, Parquet, CSV, JSON, and folders of images."""

import glob
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache as cached
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

from glue_cli.data.cache import file_checksum
from glue_cli.data.dataset import Dataset, Replies, Texts
from glue_cli.data.formats.arrow_claims import check_saved
from glue_cli.data.formats.columns import may_be_read, read_columns
from glue_cli.data.formats.csv_files import read_csv
from glue_cli.data.formats.parquet_claims import check_growth
from glue_cli.data.formats.table_files import check_image_folder, find_table_files, identity_of_files
from glue_cli.data.image_files import find_image_files, tell_kinds, warn_of_others
from glue_cli.data.split_names import find_split, split_name
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.pointers import pointer_to
from glue_cli.foundation.progress import Progress, silent
from glue_cli.foundation.regular_files import find_irregular, regular
from glue_cli.spec.resizing import Resizing
from glue_cli.spec.schema import DataSpec

# First bytes of archives, which datasets would unpack: gzip, zip, bzip2, xz, zstd, lz4, 7z, rar; tar has them later.
_GZIP = b"\x1f\x8b"
_COMPRESSED = (
    *(_GZIP, b"PK\3\4", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"),
    *(b"7z\xbc\xaf\x27\x1c", b"Rar!"),
)
_TAR, _TAR_AT = b"ustar", 257
_LISTED = 8  # names in a message
_METADATA = (".csv", ".jsonl", ".parquet")  # endings of a table that describes a folder's images


def read_huggingface(
    data: DataSpec,
    split: str,
    *,
    root: Path,
    cache: Path | None,
    progress: Progress,
    resizing: Resizing | None = None,
) -> Dataset | Texts | Replies | None:
    """Read a split from `root`, whose inputs and targets are the columns that `data.columns` names.

    Looked for, in this order, with SPLIT as `data.splits` says, else train, test, and val by any usual name: the
    folder SPLIT as `save_to_disk` writes it or with images in it; the files SPLIT.parquet, SPLIT-*.parquet,
    SPLIT/*.parquet and data/SPLIT-*.parquet; the same in CSV and JSON.

    Nothing is downloaded, no code from the data set is run, and no file is unpickled.

    Raises:
        SpecError: a column is missing, or it is not clear which are meant; or `datasets` is not installed.
        DataError: the split is missing, or a file or a value in it is not what it should be.
    """
    with opening(data, root, cache, progress) as open_split:
        table = open_split(split)
        if table is None:
            return None

        @cached
        def open_train() -> Any:
            return table if split == "train" else open_split("train", progress=silent)

        where = f"'{root}' ({split})"
        return read_columns(data, table, open_train, root=root, where=where, progress=progress, resizing=resizing)


@contextmanager
def opening(
    data: DataSpec, root: Path, cache: Path | None, progress: Progress = silent
) -> Iterator[Callable[..., Any]]:
    """Yield a function that opens a split as a table of `datasets`; it returns None for a missing val split.

    Args:
        progress: is told which files in folders of images are skipped.
    Raises:
        SpecError: `datasets` is not installed.
        DataError: raised by the function: the split is missing, or cannot be read.
    """
    datasets = _import_datasets()
    with _working_folder(cache) as working:
        yield partial(_open, datasets, data, root=root, working=working, progress=progress)


def _import_datasets() -> Any:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise SpecError(
            "data.format 'huggingface' needs the library datasets, which is not installed",
            hint="pip install 'glue-cli[hf]'",
        ) from error
    datasets.config.HF_HUB_OFFLINE = True  # otherwise datasets reports downloads, even for files on disk
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are also raised as exceptions
    return datasets


@contextmanager
def _working_folder(cache: Path | None) -> Iterator[Path]:
    """Yield a folder for converted files, so that `datasets` does not write to the user's home."""
    if cache is not None:
        yield cache / "huggingface"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _open(datasets: Any, data: DataSpec, split: str, *, root: Path, working: Path, progress: Progress) -> Any | None:
    """Return a split as a `datasets.Dataset`, or None for a val split that is not there."""
    name = find_split(data, split, lambda name: find_table_files(root, name, silent) is not None)
    if name is None:
        return None
    match = find_table_files(root, name, progress)
    if match is None:
        raise DataError(
            f"'{root}' has no file or folder of the split '{name}' that glue reads",
            items=_what_is_in(root),
            hint=f"check data.root in the spec; wanted {name}.parquet, .csv, .tsv, .jsonl or .json (.csv and .tsv "
            f"also with .gz), or a folder {name}; other names go into data.splits",
        )
    builder, paths = match
    files = {split: [glob.escape(str(path)) for path in paths]}
    if builder == "imagefolder":  # it numbers the classes that it sees, so it must see those of train too
        folders = {"train": root / (split_name(data, "train") or ""), split: paths[0]}
        files = {name: [f"{glob.escape(str(folder))}/**"] for name, folder in folders.items()}
        check_image_folder(paths[0])
        _tell_of_files(paths[0], progress)
    try:
        if builder == "arrow":
            check_saved(paths[0])
            return datasets.load_from_disk(str(paths[0])).with_format(None)
        if builder != "imagefolder":
            _check_plain(paths, may_be_gzip=builder == "csv")
        if builder == "parquet":
            check_growth(paths)
        if builder == "csv":
            return datasets.Dataset.from_pandas(read_csv(paths, may_be_read(data)), preserve_index=False)
        kept = _folder_for(paths, working)
        load = partial(datasets.load_dataset, builder, data_files=files, split=split, cache_dir=str(kept))
        return _load_whole(load, kept)
    except DataError:
        raise
    except Exception as error:  # a damaged file can make datasets, pandas and pyarrow raise anything
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise DataError(f"'{paths[0]}' cannot be read: {reason}", hint="write the file again") from error


def _folder_for(paths: Sequence[Path], working: Path) -> Path:
    """Return the folder of what files are converted to, and remove what they were converted to before a change."""
    of_places = working / sha256(repr([str(path.resolve()) for path in paths]).encode()).hexdigest()[:16]
    kept = of_places / identity_of_files(paths)
    for stale in of_places.glob("*") if of_places.is_dir() else ():
        if stale != kept:
            rmtree(stale, ignore_errors=True)
    return kept


def _tell_of_files(folder: Path, progress: Progress) -> None:
    """Report the files that `datasets` skips in a folder of images: all but images and the tables about them."""
    files = find_image_files(folder)
    tables = Counter(path.suffix for path in folder.rglob("metadata.*") if path.suffix in _METADATA)
    warn_of_others(folder, files.others - tables, progress)
    tell_kinds(folder, files.images, progress)


def _what_is_in(root: Path) -> list[str]:
    """Return a line on what lies in a folder; none where it is empty or cannot be read."""
    with suppress(OSError):
        names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if path.name[0] != ".")
        return [f"it has {', '.join(names[:_LISTED])}{', ...' if names[_LISTED:] else ''}"] if names else []
    return []


def _check_plain(paths: Sequence[Path], *, may_be_gzip: bool) -> None:
    """Refuse special files and archives: `datasets` would wait for a FIFO, and unpack an archive of any name.

    Args:
        may_be_gzip: whether files called .gz are read.
    Raises:
        DataError: a file is not a regular file, is compressed or was not fetched.
    """
    for path in paths:
        if find_irregular([path]):
            raise DataError(f"'{path}' is no regular file", hint="put the file itself there, no pipe or device")
        with open(path, "rb", opener=regular) as file:
            start = file.read(_TAR_AT + len(_TAR))
        if pointer := pointer_to(start):
            what, command = pointer
            raise DataError(f"'{path}' is {what}, not the data", hint=f"fetch them: {command}")
        if may_be_gzip and path.suffix == ".gz" and start.startswith(_GZIP):
            continue
        if start.startswith(_COMPRESSED) or start[_TAR_AT:] == _TAR:
            raise DataError(f"'{path}' is compressed, or an archive", hint="unpack it")


def _load_whole(load: Callable[..., Any], working: Path) -> Any:
    """Return a table; convert it again if the cached one has changed since it was written."""
    kept = set(working.rglob("*.arrow"))
    try:
        table = load()
        is_whole = all(_is_whole(path) for path in _files_of(table) if path in kept)
    except Exception:
        if not kept:
            raise
        is_whole = False
    if not is_whole:
        table, kept = load(download_mode="force_redownload"), set()
    for path in _files_of(table):
        if path not in kept:
            with suppress(OSError):  # without its checksum it is converted again the next time
                _checksum_of(path).write_text(str(file_checksum(path)))
    return table


def _files_of(table: Any) -> list[Path]:
    return [Path(file["filename"]) for file in table.cache_files]


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.crc32")


def _is_whole(path: Path) -> bool:
    try:
        return _checksum_of(path).read_text() == str(file_checksum(path))
    except (OSError, ValueError):
        return False
