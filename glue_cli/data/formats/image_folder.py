"""Images in folders, `ROOT/SPLIT/CLASS/*.jpg`: decoded once, then read from a cache."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glue_cli.checkpoints.classes import composed
from glue_cli.data.cache import read_cache, write_cache
from glue_cli.data.dataset import Dataset
from glue_cli.data.image_files import (
    ENDINGS,
    check_fetched,
    find_image_files,
    folders_in,
    has_image,
    tell_kinds,
    warn_of_others,
)
from glue_cli.data.images import EncodedImage, chosen_resizing, decode_all
from glue_cli.data.split_names import find_split
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Progress
from glue_cli.foundation.units import counted
from glue_cli.spec.resizing import Resizing
from glue_cli.spec.schema import DataSpec

_CACHE_VERSION = 3  # increase it when the same files decode to different pixels


@dataclass(frozen=True)
class _Image:
    path: Path
    label: int
    n_bytes: int
    times_ns: tuple[int, int]  # of the last change of its content, and of anything


def read_image_folder(
    data: DataSpec,
    split: str,
    *,
    root: Path,
    cache: Path | None,
    progress: Progress,
    resizing: Resizing | None = None,
) -> Dataset | None:
    """Read a split: RGB images, uint8 [N, 3, H, W], and labels, int64 [N], by the sorted class folders of train.

    A class folder may have subfolders. Files that are not images are skipped, with a warning.
    With `data.image_size` the central square of each image is resized to it, bicubic with antialiasing, or as
    `resizing` says if that gives this size; without it, all images must be of one size. `data.splits` names the
    folders of the splits.

    Raises:
        DataError: a folder is missing or empty, a class is unknown to train, an image is broken, not fetched or of
            another size, or Pillow is not installed.
    Cost: decodes every image once, on as many threads as torch uses; a cached split is memory-mapped.
    """
    train, folder = _split_folder(data, "train", root), _split_folder(data, split, root)
    if train is None or folder is None:
        return None
    class_names = _list_classes(train)
    files, others = _list_images(folder, class_names)
    warn_of_others(folder, others, progress)
    tell_kinds(folder, (file.path for file in files), progress)
    labels = torch.tensor([file.label for file in files])
    way = chosen_resizing(data.image_size, resizing)
    key = f"images-{_cache_key(folder, files, class_names, way)}.safetensors"
    cached = read_cache(cache / key) if cache else None
    if cached is not None and torch.equal(cached["labels"], labels):
        return Dataset(cached["images"], labels, class_names)
    images = decode_all([EncodedImage(str(file.path)) for file in files], way, progress)
    if cache:
        write_cache(cache / key, {"images": images, "labels": labels}, "decoded images", progress)
    return Dataset(images, labels, class_names)


def _split_folder(data: DataSpec, split: str, root: Path) -> Path | None:
    name = find_split(data, split, lambda name: (root / name).is_dir())
    if name is None:
        return None
    folder = root / name
    if folder.is_dir():
        return folder
    near = f"; set data.splits.{split} if the folder has another name" if split not in data.splits else ""
    raise DataError(f"'{folder}' is missing", hint=f"check data.root in the spec{near}")


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders of a split by the names of the classes, in the order of the folders' names.

    A name is spelt in Unicode's composed form, as file systems and archives write the same letter in either.

    Raises:
        DataError: two folders have one name.
    """
    found: dict[str, Path] = {}
    for name in folders_in(folder):
        path = folder / name
        if (other := found.setdefault(composed(name), path)) != path:
            raise DataError(
                f"'{other}' and '{path}' are folders of one name, in two spellings of Unicode", hint="make them one"
            )
    return found


def _list_classes(folder: Path) -> tuple[str, ...]:
    """Return the classes: the folders of the train split, each of which has an image."""
    found = _class_folders(folder)
    if not found:
        raise DataError(f"'{folder}' has no class folder", hint="wanted a folder a class, with its images")
    for path in found.values():
        if not has_image(path):
            raise DataError(
                f"'{path}' has no image; wanted files ending in {', '.join(ENDINGS)}",
                hint="remove the folder, or put the images of the class into it",
            )
    return tuple(found)


def _list_images(folder: Path, class_names: Sequence[str]) -> tuple[list[_Image], Counter[str]]:
    """Return the images of a split, class by class, and the number of its other files by ending."""
    here = _class_folders(folder)
    unknown = [name for name in here if name not in set(class_names)]
    if unknown:
        raise DataError(
            f"'{folder}' has {counted(len(unknown), 'class folder')} that the train split does not have",
            items=[f"'{name}'" for name in unknown],
            hint="every class needs training examples: remove these folders, or add the classes to train",
        )
    files: list[_Image] = []
    others = _others_beside_classes(folder)
    for label, name in enumerate(class_names):
        if name not in here:
            continue
        image_files = find_image_files(here[name])
        others.update(image_files.others)
        for path in image_files.images:
            stat = path.stat()
            files.append(_Image(path, label, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns)))
    if not files:
        raise DataError(f"'{folder}' has no image; wanted '{folder}/CLASS/*.jpg'", hint="check data.root in the spec")
    return files, others


def _others_beside_classes(folder: Path) -> Counter[str]:
    """Count the files outside the class folders, by ending.

    Raises:
        DataError: a class folder was not fetched.
    """
    with os.scandir(folder) as entries:
        paths = [Path(entry) for entry in entries if not entry.is_dir() and entry.name[0] != "."]
    check_fetched(folder, paths)
    return Counter({"beside the class folders": len(paths)} if paths else {})


def _cache_key(folder: Path, files: Sequence[_Image], class_names: tuple[str, ...], way: int | Resizing | None) -> str:
    # The folder is part of the key: with fixed times in an archive, two splits can have equal names, sizes and times,
    # and must still not share a cache.
    rows = [[str(file.path.relative_to(folder)), file.label, file.n_bytes, *file.times_ns] for file in files]
    rounds = isinstance(way, Resizing) and way.rounds
    content = [_CACHE_VERSION, str(folder.resolve()), class_names, str(way), rounds, rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
