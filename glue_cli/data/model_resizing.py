"""Read how images are resized from the folders of models. Needs no torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args

from glue_cli.checkpoints.image_settings import is_of_images, settings_of
from glue_cli.spec.resizing import Filter, Resizing

_FILTERS: dict[object, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_WHOLE_FROM = 384  # pixels, from which on ConvNeXt's processor resizes all of an image, and cuts nothing off
# To these a whole number is a square, to which all of an image is resized before the cut; to others a shortest edge.
_SQUARE_BEFORE_CUT = ("Deit", "DeiT", "Beit", "BEiT", "Flava")
_CUTS_FIRST = "Perceiver"  # and resizes what is left
_BEYOND = 256 / 224  # the edge to which LeViT's processor resizes, of what it is told
# Settings by which a processor does more to the size of an image than scale it and cut its centre out.
_MORE = ("do_thumbnail", "do_align_long_axis", "do_crop_margin", "do_image_splitting")
_USUAL = 224 / 256  # the share of the resized edge that ConvNeXt's processor keeps, if nothing is said


def stated_resizing(folders: Iterable[Path]) -> Resizing | None:
    """Return how the first of the folders that says so resizes images, as transformers or timm write it."""
    for folder in folders:
        for file, content in settings_of(folder):
            if stated := _of_transformers(content, str(file)) or _of_timm(content, str(file)):
                return stated
    return None


def is_unknown_way(content: Mapping[str, Any]) -> bool:
    """Tell whether an image processor of transformers resizes images in a way that glue does not know."""
    acts = any(content.get(key) for key in ("do_resize", "do_center_crop", *_MORE))
    return is_of_images(content) and acts and _of_transformers(content, "") is None


def _of_transformers(content: Mapping[str, Any], source: str) -> Resizing | None:
    if not is_of_images(content) or any(content.get(key) for key in _MORE):
        return None
    by: Filter = _FILTERS.get(content.get("resample"), "bicubic")
    size, crop = content.get("size"), content.get("crop_size") if content.get("do_center_crop") else None
    if not content.get("do_resize", True):
        only = _lengths(crop)
        return Resizing(*only, "nothing", by, source) if only else None
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type"))
    if "ConvNext" in kind:
        shortest = _shortest(size)
        edge = size if shortest is None else shortest
        share = content.get("crop_pct") or _USUAL
        if not _is_length(edge) or not isinstance(share, float):
            return None
        return Resizing(edge, edge, None if edge >= _WHOLE_FROM else int(edge / share), by, source)
    if crop is not None:
        cut, before = _lengths(crop), _before_cut(kind, size, content.get("crop_pct"))
        return Resizing(*cut, before, by, source) if cut and before else None
    whole = _lengths(size)
    return Resizing(*whole, None, by, source) if whole else None


def _before_cut(kind: str, size: object, share: object) -> int | tuple[int, int] | None:
    """Return to what an image is resized before its centre is cut out: its shorter edge, or its height and width.

    Args:
        share: of the resized edge that is kept, if the processor's class knows such a setting.
    """
    is_square = isinstance(size, dict) or any(name in kind for name in _SQUARE_BEFORE_CUT)
    shortest, whole = _shortest(size) if is_square else size, _lengths(size)
    if kind.startswith(_CUTS_FIRST):
        return None
    if isinstance(share, float):
        edge = shortest or (whole[0] if whole and whole[0] == whole[1] else None)
        return int(edge / share) if _is_length(edge) else None
    if _is_length(shortest):
        return int(_BEYOND * shortest) if "Levit" in kind else shortest
    return whole


def _shortest(size: object) -> int | None:
    edge = size.get("shortest_edge") if isinstance(size, dict) and "longest_edge" not in size else None
    return edge if _is_length(edge) else None


def _of_timm(content: Mapping[str, Any], source: str) -> Resizing | None:
    size, share = content.get("input_size"), content.get("crop_pct", _USUAL)
    by: Filter | None = next((name for name in get_args(Filter) if name == content.get("interpolation")), None)
    if by is None or not isinstance(size, list) or len(size) != 3 or not all(map(_is_length, size)):
        return None
    if content.get("crop_mode") == "squash" and share == 1:
        return Resizing(size[1], size[2], None, by, source)
    is_square = size[1] == size[2] and content.get("crop_mode", "center") == "center"
    edge = int(size[1] / share) if is_square and share else None
    return Resizing(size[1], size[2], edge, by, source, rounds=True) if edge else None


def _lengths(size: object) -> tuple[int, int] | None:
    """Return height and width, written as both of them or as one number for both."""
    if isinstance(size, dict):
        found = size.get("height"), size.get("width")
    else:
        found = (size, size)
    height, width = found
    return (height, width) if _is_length(height) and _is_length(width) else None


def _is_length(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0
