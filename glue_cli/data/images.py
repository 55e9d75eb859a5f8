"""Decode images into one tensor, with Pillow on all cores; convert and resize them."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Literal

import torch
from torch import Tensor

from glue_cli.foundation.errors import DataError, ResourceError
from glue_cli.foundation.memory import free_memory
from glue_cli.foundation.pointers import pointer_to
from glue_cli.foundation.printable import shown
from glue_cli.foundation.progress import Advanced, Finished, Progress, Started
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.units import size
from glue_cli.spec.resizing import Resizing

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile

Mode = Literal["RGB", "L"]
_CHUNK = 64  # images per task of the pool: enough to outweigh its cost, few enough for frequent progress
# Pillow goes by the content, not the name, and would start Ghostscript for PostScript; so only these are allowed.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "GIF", "TIFF", "JPEG2000", "AVIF")
_OBJECT = re.compile(r" <_io\..*>")  # Pillow names the Python object that it was given, with its address
_ORIENTATION = 274  # the EXIF tag of the orientation
# Limits on the size in a header: any camera image passes, and larger ones unless they are all of one colour.
_ALWAYS_ALLOWED, _PIXELS_PER_BYTE = 40_000_000, 100


@dataclass(frozen=True)
class EncodedImage:
    """An image as a file or as its bytes; messages refer to it by `name`."""

    name: str
    content: bytes | None = None

    def open(self) -> IO[bytes]:
        return open(self.name, "rb", opener=regular) if self.content is None else BytesIO(self.content)


def decode_all(
    images: Sequence[EncodedImage], way: int | Resizing | None, progress: Progress, *, mode: Mode = "RGB"
) -> Tensor:
    """Return the images, uint8 [N, 3, H, W], or [N, 1, H, W] with the mode L.

    Args:
        way: how to resize; a number is the size to which the central square of each image is resized, bicubic with
            antialiasing; with None, all images must be of one size.
    Raises:
        DataError: an image is broken, of another size or has more than 8 bits a channel, or Pillow is not installed.
        ResourceError: all images together do not fit into memory.
    Cost: decodes on as many threads as torch uses.
    """
    first = _decode(images[0], way, mode)
    width, height = first.size
    n_bytes = len(mode) * height * width  # of an image
    if len(images) * n_bytes > free_memory(torch.device("cpu")):
        needed = size(len(images) * n_bytes)
        raise ResourceError(
            f"{len(images):,} images of {width} x {height} pixels take {needed}, more memory than is free",
            hint="set data.image_size lower, or take fewer images",
        )
    buffer = bytearray(len(images) * n_bytes)

    def decode_chunk(start: int) -> int:
        chunk = images[start : start + _CHUNK]
        for i, encoded in enumerate(chunk, start):
            image = _decode(encoded, way, mode)
            if image.size != (width, height):
                raise DataError(
                    f"{_quoted(encoded.name)} is {image.width}x{image.height} pixels, {_quoted(images[0].name)} is "
                    f"{width}x{height}; wanted images of one size",
                    hint="set data.image_size",
                )
            # Splitting into bands gives [C, H, W] without numpy.
            buffer[i * n_bytes : (i + 1) * n_bytes] = b"".join(band.tobytes() for band in image.split())
        return len(chunk)

    progress(Started("decode", len(images), "images"))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow releases the GIL while it decodes
        # `map` keeps the order, so the first error is the one reported; it then cancels the tasks not yet started.
        for done in accumulate(pool.map(decode_chunk, range(0, len(images), _CHUNK))):
            progress(Advanced(done))
    progress(Finished())
    return torch.frombuffer(buffer, dtype=torch.uint8).view(len(images), len(mode), height, width)


def sizes_of(images: Iterable[EncodedImage]) -> frozenset[tuple[int, int]]:
    """Return the heights and widths in the headers of images, leaving out broken images."""
    sizes = set()
    for encoded in images:
        with suppress(Exception), _opened(encoded) as file:  # `decode_all` reports any error
            is_on_its_side = file.format != "TIFF" and _orientation(file) > 4  # Pillow rotates a TIFF itself
            sizes.add((file.width, file.height) if is_on_its_side else (file.height, file.width))
    return frozenset(sizes)


def is_grey(encoded: EncodedImage) -> bool:
    """Tell from its header whether an image has one channel of at most 8 bits; False for a broken one."""
    try:
        with _opened(encoded) as file:
            return file.mode in ("1", "L")
    except Exception:  # `decode_all` reports any error
        return False


@contextmanager
def _opened(encoded: EncodedImage) -> Iterator["ImageFile"]:
    """Open an image and check its header.

    Raises:
        DataError: its header states a size far too large for the file, it was not fetched, or Pillow is not installed.
    """
    name = encoded.name
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"reading {_quoted(name)} needs Pillow, which is not installed", hint="pip install Pillow"
        ) from error
    with encoded.open() as content:
        if pointer := pointer_to(content.read(64)):
            what, command = pointer
            raise DataError(f"{_quoted(name)} is {what}, not the image", hint=f"fetch the images: {command}")
        content.seek(0)
        with Image.open(content, formats=_formats()) as file:
            n_pixels, n_bytes = file.width * file.height, content.seek(0, os.SEEK_END)
            if n_pixels > max(_ALWAYS_ALLOWED, _PIXELS_PER_BYTE * n_bytes):
                raise DataError(
                    f"{_quoted(name)} claims {file.width:,} x {file.height:,} pixels in {n_bytes:,} bytes",
                    hint="scale it down: glue takes 40 megapixels, or 100 pixels for each byte of the file",
                )
            yield file


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow reads; for AVIF and JPEG 2000 it may lack the libraries."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(file: "ImageFile") -> int:
    """Return the EXIF orientation of an image: 1 is upright, 5 and above lie on their side."""
    with suppress(Exception):  # a damaged entry can make Pillow raise anything
        return int(file.getexif().get(_ORIENTATION, 1))
    return 1


def _quoted(name: str) -> str:
    """Return the name of an image for a message; the place of one in a table has quotes of its own."""
    return name if "'" in name else f"'{name}'"


def _upright(image: "PillowImage", orientation: int) -> "PillowImage":
    """Rotate or mirror an image to the way viewers show it."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _decode(encoded: EncodedImage, way: int | Resizing | None, mode: Mode) -> "PillowImage":
    """Return an image upright, and resized as `decode_all` says."""
    name = encoded.name
    try:
        with _opened(encoded) as file:
            file_mode = file.mode
            file.load()  # also turns a TIFF upright and resets its EXIF orientation
            orientation = _orientation(file)
            # Converting directly loses a palette's transparency, with a warning.
            image = (file.convert("RGBA") if "transparency" in file.info else file).convert(mode)
            image = _upright(image, orientation)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can make Pillow raise anything
        reason = _OBJECT.sub("", str(error))
        raise DataError(
            f"{_quoted(name)} is not a whole image: {shown(reason)}",
            hint=f"replace the file or remove it; glue reads {', '.join(_formats())}",
        ) from error
    if file_mode[0] in "IF":  # Pillow clips these to 255 when converting to RGB
        raise DataError(
            f"{_quoted(name)} has more than 8 bits a channel (mode {file_mode})", hint="convert the images to 8 bits"
        )
    return image if way is None else _resized(image, way)


def _resized(image: "PillowImage", way: int | Resizing) -> "PillowImage":
    from PIL.Image import Resampling

    if isinstance(way, int):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return image.resize((way, way), Resampling.BICUBIC, box=(left, top, left + side, top + side))
    by = Resampling[way.filter.upper()]
    if way.before is None:
        return image.resize((way.width, way.height), by)
    if isinstance(way.before, int):
        short = min(image.size)
        image = image.resize((way.before * image.width // short, way.before * image.height // short), by)
    elif way.before != "nothing":
        image = image.resize(way.before[::-1], by)
    beside, above = image.width - way.width, image.height - way.height
    left, top = (round(beside / 2), round(above / 2)) if way.rounds else (beside // 2, above // 2)
    return image.crop((left, top, left + way.width, top + way.height))  # black where it is smaller


def chosen_resizing(image_size: int | None, stated: Resizing | None) -> int | Resizing | None:
    """Return how images are resized to `image_size`: as the model's files say, if they give this size."""
    fits = stated is not None and (stated.height, stated.width) == (image_size, image_size)
    return stated if fits else image_size
