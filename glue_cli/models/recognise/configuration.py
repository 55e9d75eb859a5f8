"""The architecture that a checkpoint's metadata or the configuration beside it name. Needs no torch."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.json_files import read_object
from glue_cli.foundation.user_code import PREFIX
from glue_cli.models.recognise.recognised import Recognised, channels, whole
from glue_cli.models.tasks import has_loss, no_loss_for


def by_metadata(expert: Checkpoint, folder: Path) -> Recognised | None:
    """Return the architecture that glue recorded in a checkpoint; None if glue did not write it.

    Args:
        folder: the folder of the new spec, from which files that the architecture names have to be found.
    """
    model = expert.glue.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("arch"), str):
        return None
    args = model.get("args") if isinstance(model.get("args"), dict) else {}
    assert isinstance(args, dict)
    return Recognised(
        model["arch"],
        args,
        "as the experts say of themselves",
        doubts=tuple(_missing_files(model["arch"], args, folder)),
        n_outputs=whole(args.get("num_classes")) or whole(args.get("num_labels")),
        image_size=whole(args.get("image_size")) or whole(args.get("img_size")),
    )


def _missing_files(arch: str, args: Mapping[str, Any], folder: Path) -> list[str]:
    if arch.startswith(PREFIX):
        module = arch.removeprefix(PREFIX).partition(":")[0].partition(".")[0]
        if not any((folder / path).is_file() for path in (f"{module}.py", f"{module}/__init__.py")):
            return [f"model.arch: copy '{module}.py' beside the spec, unless '{module}' is an installed package"]
    path = args.get("path")
    if isinstance(path, str) and not (folder / os.path.expanduser(path) / "config.json").is_file():
        return [f"model.args.path: there is no '{path}' beside the spec: name the model folder"]
    return []


def by_configuration(expert: Checkpoint, folder: Path) -> Recognised | None:
    """Return the architecture of transformers or timm that the `config.json` beside a checkpoint names, if any.

    Args:
        folder: the folder of the new spec, to which the path of the model's folder is relative.
    """
    beside = expert.folder or expert.path.parent
    config = read_object(beside / "config.json")
    if isinstance(config.get("architecture"), str):
        return _of_timm(config)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        return None
    labels, is_regression = config.get("id2label"), config.get("problem_type") == "regression"
    doubts = () if has_loss(architectures[0]) else (f"model: {no_loss_for(architectures[0])}",)
    if config.get("problem_type") == "multi_label_classification":
        doubts = (*doubts, "model: it was made for several labels an example, which glue has no loss for")
    if is_regression and labels is None:
        labels = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own, which it does not write
    images = read_object(beside / "preprocessor_config.json")
    size = images.get("crop_size") or images.get("size")
    height = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    return Recognised(
        f"transformers:{architectures[0]}",
        {"path": named_from(beside, folder)},
        f"as '{beside / 'config.json'}' says",
        doubts=doubts,
        n_outputs=len(labels) if isinstance(labels, dict) else None,
        is_regression=is_regression,
        image_size=whole(config.get("image_size")) or whole(height),
        mean=channels(images.get("image_mean")) if _is_plain(images) else None,
        std=channels(images.get("image_std")) if _is_plain(images) else None,
    )


def _is_plain(images: Mapping[str, Any]) -> bool:
    """Tell whether images become (white 1 - mean) / std; what else a folder asks for is read when the data are."""
    factor = images.get("rescale_factor", 1 / 255)
    is_usual = isinstance(factor, float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)
    applies = images.get("do_normalize", True) and images.get("do_rescale", True)
    return bool(applies and is_usual and not images.get("rescale_offset") and not images.get("include_top"))


def _of_timm(config: Mapping[str, Any]) -> Recognised:
    pretrained = config.get("pretrained_cfg")
    settings = pretrained if isinstance(pretrained, dict) else {}
    model_args = config.get("model_args")
    args = dict(model_args) if isinstance(model_args, dict) else {}
    n_outputs = whole(config.get("num_classes")) or whole(settings.get("num_classes"))
    if n_outputs:
        args["num_classes"] = n_outputs
    size = settings.get("input_size")
    return Recognised(
        f"timm:{config['architecture']}",
        args,
        "as timm's config.json says",
        n_outputs=n_outputs,
        image_size=whole(args.get("img_size")) or (whole(size[-1]) if isinstance(size, list) and size else None),
        mean=channels(settings.get("mean")),
        std=channels(settings.get("std")),
    )


def named_from(path: Path, folder: Path) -> str:
    """Return a path, given relative to the current folder, as it has to be written in a spec in `folder`."""
    return str(path) if path.is_absolute() else os.path.relpath(path, folder)
