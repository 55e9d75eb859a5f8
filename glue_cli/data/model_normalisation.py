"""Read the mean and std of images from the folders of models, and what else these say. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.image_settings import is_of_images, settings_of
from glue_cli.data.model_resizing import is_unknown_way, stated_resizing
from glue_cli.spec.normalisation import ImageNormalisation
from glue_cli.spec.schema import Spec

_WHITE = 255  # as a byte
_FLIPS = "do_flip_channel_order"


def as_models_say(spec: Spec, checkpoints: Sequence[Checkpoint]) -> Spec:
    """Return the spec with what its models' folders say of images; where they differ, the first one counts.

    Args:
        checkpoints: the checkpoints given to the command.
    """
    folders = [checkpoint.model_folder for checkpoint in checkpoints]
    path = spec.model.args.get("path")
    folders += [spec.path(path)] if isinstance(path, str) else []
    folders += [spec.start_of_experts] if spec.start_of_experts else []
    normalisations = [stated for folder in dict.fromkeys(folders) if folder and (stated := stated_in(folder))]
    if resizing := stated_resizing(folder for folder in folders if folder):
        spec = spec.resizing_as(resizing)
    if not normalisations:
        return spec
    first, *others = normalisations
    for other in others:
        if (other.mean, other.std) != (first.mean, first.std):
            text = f"'{other.source}' says to normalise images otherwise ({other}); '{first.source}' counts"
            first = replace(first, warnings=(*first.warnings, text))
    return spec.normalising(first)


def stated_in(folder: Path) -> ImageNormalisation | None:
    """Return the normalisation in a model's folder, as transformers or timm write it; None if there is none."""
    for file, content in settings_of(folder):
        stated = _of_transformers(content) or _of_timm(content)
        if stated and _is_sound(*stated):
            warnings = []
            if content.get(_FLIPS):
                warnings.append(f"'{file}' wants the channels in the order BGR, and glue gives RGB")
            if is_unknown_way(content):
                warnings.append(f"'{file}' resizes images in a way of its own, and glue to the central square")
            mean, std = (numbers[:1] if len(set(numbers)) == 1 else numbers for numbers in stated)
            return ImageNormalisation(mean, std, str(file), tuple(warnings))
    return None


def _of_transformers(content: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std from an image processor, which applies them to bytes times rescale_factor."""
    if not is_of_images(content):
        return None
    mean, std = [0.0], [1.0]
    if content.get("do_normalize", True):
        if "image_mean" not in content or "image_std" not in content:
            return None
        mean, std = _numbers(content["image_mean"]), _numbers(content["image_std"])
    if content.get("include_top"):  # EfficientNet's processor divides once more
        std = [s * again for s, again in zip(cycle(std), _numbers(content.get("image_std")), strict=False)]
    factor = _numbers(content.get("rescale_factor", 1 / _WHITE)) if content.get("do_rescale", True) else [1.0]
    if len(factor) != 1 or not factor[0] > 0:
        return None
    white = factor[0] * _WHITE
    # EfficientNet's processor may subtract 1 after rescaling.
    offset = 1.0 if content.get("rescale_offset") and content.get("do_rescale", True) else 0.0
    return tuple((m + offset) / white for m in mean), tuple(s / white for s in std)


def _of_timm(content: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if "mean" not in content or "std" not in content or "input_size" not in content:
        return None
    return tuple(_numbers(content["mean"])), tuple(_numbers(content["std"]))


def _numbers(written: Any) -> list[float]:
    """Return one or several numbers from a file as a tuple; an empty one for anything else."""
    several = written if isinstance(written, list) else [written]
    return [float(n) for n in several] if all(type(n) in (int, float) for n in several) else []


def _is_sound(mean: Sequence[float], std: Sequence[float]) -> bool:
    return bool(mean and std) and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
