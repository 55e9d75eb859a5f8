"""Images in folders, `ROOT/SPLIT/CLASS/*.jpg`: decoded once, then read from a cache."""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from glue_cli.core.errors import DataError, ResourceError
from glue_cli.core.progress import Advanced, Finished, Noted, Progress, Started
from glue_cli.core.spec import DataSpec
from glue_cli.core.tensors import write_checkpoint
from glue_cli.data.dataset import Dataset, split_name

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
_CACHE_VERSION = 1  # raise it when the same files would decode to other pixels
_CHUNK = 64  # images a task of the pool: long against the cost of a task, short against the wait for progress
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)  # as Pillow has them


@dataclass(frozen=True)
class _Image:
    path: Path
    label: int
    n_bytes: int
    mtime_ns: int


def read_image_folder(
    data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress
) -> Dataset | None:
    """Read a split: RGB images, uint8 [N, 3, H, W], and labels, int64 [N], by the sorted class folders of train.

    With `data.image_size` the central square of each image is resized to it, bicubic with antialiasing; without it,
    all images must be of one size. `data.splits` names the folders of the splits.

    Raises:
        DataError: a folder is missing or empty, a class is unknown to train, an image is broken or of another size, or
            Pillow is not installed.
    Cost: decodes every image once, in torch's number of threads; a cached split is mapped from its file.
    """
    train, folder = _split_folder(data, "train", root), _split_folder(data, split, root)
    if train is None or folder is None:
        return None
    class_names = _list_classes(train)
    files = _list_images(folder, class_names, is_train=folder == train)
    if cache is None:
        return _decode_all(files, class_names, data.image_size, progress)
    cached = cache / f"images-{_cache_key(folder, files, class_names, data.image_size)}.safetensors"
    dataset = _read_cache(cached, len(files), class_names)
    if dataset is None:
        dataset = _decode_all(files, class_names, data.image_size, progress)
        try:
            write_checkpoint(cached, {"images": dataset.inputs, "labels": dataset.targets}, {"kind": "decoded images"})
        except ResourceError as error:
            progress(Noted(f"the decoded images are not cached: {error.message}", warning=True))
    return dataset


def _split_folder(data: DataSpec, split: str, root: Path) -> Path | None:
    name = split_name(data, split)
    if name is None:
        return None
    folder = root / name
    if folder.is_dir():
        return folder
    if split == "val" and "val" not in data.splits:
        return None
    near = f"; set data.splits.{split} if the folder has another name" if split not in data.splits else ""
    raise DataError(f"'{folder}' is missing", hint=f"check data.root in the spec{near}")


def _list_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(folder: Path) -> tuple[str, ...]:
    names = _list_folders(folder)
    if not names:
        raise DataError(f"'{folder}' has no class folder", hint="wanted a folder a class, with its images")
    return tuple(names)


def _list_images(folder: Path, class_names: Sequence[str], *, is_train: bool) -> list[_Image]:
    here = _list_folders(folder)
    unknown = [name for name in here if name not in set(class_names)]
    if unknown:
        more = [f"and {len(unknown) - 5} more"] if len(unknown) > 5 else []
        raise DataError(
            f"'{folder}' has {len(unknown)} class folder(s) that the train split does not have",
            items=[f"'{name}'" for name in unknown[:5]] + more,
            hint="every class needs training examples: remove these folders, or add the classes to train",
        )
    files: list[_Image] = []
    for label, name in enumerate(class_names):
        if name not in here:
            continue
        with os.scandir(folder / name) as entries:
            found = sorted(
                (entry for entry in entries if entry.name.lower().endswith(ENDINGS) and entry.name[0] != "."),
                key=lambda entry: entry.name,
            )
        if is_train and not found:
            raise DataError(
                f"'{folder / name}' has no image; wanted files ending in {', '.join(ENDINGS)}",
                hint="remove the folder, or put the images of the class right into it",
            )
        for entry in found:
            stat = entry.stat()
            files.append(_Image(Path(entry.path), label, stat.st_size, stat.st_mtime_ns))
    if not files:
        raise DataError(f"'{folder}' has no image; wanted '{folder}/CLASS/*.jpg'", hint="check data.root in the spec")
    return files


def _decode_all(
    files: Sequence[_Image], class_names: tuple[str, ...], image_size: int | None, progress: Progress
) -> Dataset:
    first = _decode(files[0].path, image_size)
    width, height = first.size
    n_bytes = 3 * height * width  # of an image
    buffer = bytearray(len(files) * n_bytes)

    def decode_chunk(start: int) -> int:
        chunk = files[start : start + _CHUNK]
        for i, file in enumerate(chunk, start):
            image = _decode(file.path, image_size)
            if image.size != (width, height):
                raise DataError(
                    f"'{file.path}' is {image.width}x{image.height} pixels, '{files[0].path}' is {width}x{height}; "
                    "wanted images of one size",
                    hint="set data.image_size",
                )
            # Bands make the planes that a batch wants, without numpy.
            buffer[i * n_bytes : (i + 1) * n_bytes] = b"".join(band.tobytes() for band in image.split())
        return len(chunk)

    progress(Started("decode", len(files), "images"))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow lets go of the GIL while it decodes
        # `map` keeps the order, so the first fault is the one reported, and drops what is not yet begun.
        for done in accumulate(pool.map(decode_chunk, range(0, len(files), _CHUNK))):
            progress(Advanced(done))
    progress(Finished())
    images = torch.frombuffer(buffer, dtype=torch.uint8).view(len(files), 3, height, width)
    return Dataset(images, torch.tensor([file.label for file in files]), class_names)


def _decode(path: Path, image_size: int | None) -> "PillowImage":
    """Return an image in RGB, its central square resized to `image_size` when that is given."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading '{path}' needs Pillow, which is not installed", hint="pip install Pillow") from error
    try:
        with Image.open(path) as file:
            mode = file.mode
            # The direct way loses a palette's transparency, with a warning.
            image = (file.convert("RGBA") if "transparency" in file.info else file).convert("RGB")
    except (*_READ_ERRORS, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' is not a whole image: {error}", hint="replace the file or remove it") from error
    if mode[0] in "IF":  # Pillow clips these to 255 on the way to RGB
        raise DataError(f"'{path}' has more than 8 bits a channel (mode {mode})", hint="convert the images to 8 bits")
    if image_size is None:
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=square)


def _cache_key(folder: Path, files: Sequence[_Image], class_names: tuple[str, ...], image_size: int | None) -> str:
    # The folder is part of the key: an archive unpacked with fixed times can hold equal names, sizes and times in two
    # splits, and one must not be taken for the other.
    rows = [[file.path.name, file.label, file.n_bytes, file.mtime_ns] for file in files]
    content = [_CACHE_VERSION, str(folder.resolve()), class_names, image_size, rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _read_cache(path: Path, n_images: int, class_names: tuple[str, ...]) -> Dataset | None:
    """Return what was cached, or None when there is nothing, or nothing whole."""
    try:
        with safe_open(path, framework="pt") as file:
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (SafetensorError, OSError):
        return None
    if images.shape[:1] != (n_images,) or images.dtype != torch.uint8 or images.dim() != 4:
        return None
    if labels.shape != (n_images,) or labels.dtype != torch.int64:
        return None
    return Dataset(images, labels, class_names)
