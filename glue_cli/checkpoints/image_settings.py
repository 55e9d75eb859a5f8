"""The files in models' folders that say how images are prepared. Needs no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.json_files import read_object


def settings_of(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the settings that may state it: transformers' processor files, timm's and open_clip's configurations."""
    yield (file := folder / "preprocessor_config.json"), read_object(file)
    inner = read_object(file := folder / "processor_config.json").get("image_processor")
    yield file, inner if isinstance(inner, dict) else {}
    config = read_object(file := folder / "config.json")
    inner = config.get("pretrained_cfg")
    yield file, inner if isinstance(inner, dict) else config if "architecture" in config else {}
    inner = read_object(file := folder / "open_clip_config.json").get("preprocess_cfg")
    yield file, inner if isinstance(inner, dict) else {}


def is_of_images(content: Mapping[str, Any]) -> bool:
    """Tell whether these are settings of an image processor of transformers, not of one of sounds or texts."""
    return bool({"image_processor_type", "image_mean", "do_rescale"} & content.keys())
