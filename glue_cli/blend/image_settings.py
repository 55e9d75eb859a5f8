"""Compare how the folders of experts prepare images. Needs no library."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.image_settings import is_of_images, settings_of
from glue_cli.foundation.json_text import brief_json

# Settings of an image processor, and the one without which each is not used.
_USED_WITH = {
    **dict.fromkeys(("do_normalize", "do_rescale", "do_resize", "do_center_crop"), ""),
    **dict.fromkeys(("do_flip_channel_order", "do_thumbnail", "do_align_long_axis", "do_image_splitting"), ""),
    **dict.fromkeys(("do_crop_margin", "do_pad", "include_top"), ""),
    **dict.fromkeys(("image_mean", "image_std"), "do_normalize"),
    **dict.fromkeys(("rescale_factor", "rescale_offset"), "do_rescale"),
    **dict.fromkeys(("size", "resample", "crop_pct"), "do_resize"),
    "crop_size": "do_center_crop",
}
_OF_OTHERS = ("mean", "std", "interpolation", "input_size", "crop_pct", "crop_mode", "size", "resize_mode")


def image_notes(folders: Sequence[Path]) -> list[str]:
    """Return sentences on folders that prepare images otherwise than the first one that says how.

    Only what both of them say is compared: what is left out depends on the library's class and version.
    """
    said = [(file, settings) for folder in folders for file, settings in _settings(folder)]
    notes = []
    for file, settings in said[1:]:
        first, of_first = said[0]
        both = [key for key in settings if key in of_first and not _are_alike(settings[key], of_first[key])]
        if differing := [f"{key} is {brief_json(settings[key])}, there {brief_json(of_first[key])}" for key in both]:
            notes.append(f"{file} prepares images otherwise than {first}: {'; '.join(differing)}")
    return notes


def _settings(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the file of a folder that says how images are prepared, if there is one, and what is used of it."""
    for file, content in settings_of(folder):
        if is_of_images(content):
            said = {key: value for key, value in content.items() if value is not None}
            yield file, {key: said[key] for key, by in _USED_WITH.items() if key in said and said.get(by, True)}
            return
        if "mean" in content:
            yield file, {key: content[key] for key in _OF_OTHERS if key in content}
            return


def _are_alike(one: Any, other: Any) -> bool:
    """Tell whether two values mean the same: the older 224 is {"height": 224, "width": 224} or a shortest edge."""
    if isinstance(one, dict) != isinstance(other, dict):
        written, number = (one, other) if isinstance(one, dict) else (other, one)
        return all(value == number for value in written.values())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
