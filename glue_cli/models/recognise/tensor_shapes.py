"""Recognise an architecture, glue's own or torchvision's, by the names and shapes of a checkpoint's tensors."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.errors import GlueError
from glue_cli.models import build_model
from glue_cli.models.libraries.faults import import_library
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.models.tensors import tensors_of

Shapes = Mapping[str, tuple[int, ...]]
Arguments = dict[str, Any]

_HEAD = re.compile(r"(?:fc|head|heads\.head|classifier(?:\.\d+)?)\.weight")
_NOT_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")
_STEM = "model.args.stem_stride: the tensors do not tell it; 2, the default, is torchvision's, 1 is for small images"
_HEADS = "model.args.heads: the tensors do not tell the number; 3 is the default"


def by_tensors(expert: Checkpoint) -> Recognised | None:
    """Return the architecture whose tensors have the names and shapes of a checkpoint's, if there is one.

    Cost: builds the few models that are possible.
    """
    shapes = {name: entry.shape for name, entry in expert.entries.items()}
    for arch, args, doubts in (*_own_candidates(shapes), *_torchvision_candidates(shapes)):
        if _has_shapes(arch, args, shapes):
            return Recognised(
                arch,
                args,
                "as the names and shapes of the tensors tell",
                doubts=doubts,
                n_outputs=args.get("num_classes"),
                image_size=args.get("image_size"),
            )
    return None


def _has_shapes(arch: str, args: Arguments, shapes: Shapes) -> bool:
    try:
        model = build_model(arch, args, seed=0)
    except GlueError:  # the checkpoint is of another architecture, so that the arguments make no sense
        return False
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()} == shapes


# ---- glue's own


def _own_candidates(shapes: Shapes) -> Iterator[tuple[str, Arguments, tuple[str, ...]]]:
    """Yield glue's own architectures with the arguments that the shapes of a few tensors imply."""
    for arch, (arguments, doubts) in _OWN.items():
        try:
            yield from ((arch, args, doubts) for args in arguments(shapes))
        except (KeyError, IndexError, ZeroDivisionError):  # it lacks the tensors of this architecture
            continue


def _cnn(shapes: Shapes) -> Iterator[Arguments]:
    width, in_channels, *_ = shapes["features.0.weight"]
    yield {"num_classes": shapes["head.weight"][0], "in_channels": in_channels, "width": width}


def _resnet20(shapes: Shapes) -> Iterator[Arguments]:
    yield {"num_classes": shapes["fc.weight"][0], "in_channels": shapes["conv1.weight"][1]}


def _mobilenet_v2(shapes: Shapes) -> Iterator[Arguments]:
    stem, in_channels, *_ = shapes["features.0.0.weight"]
    n_classes, n_last = shapes["classifier.1.weight"]
    for width in dict.fromkeys((stem / 32, n_last / 1280)):  # both widths are rounded, the larger one relatively less
        yield {"num_classes": n_classes, "in_channels": in_channels, "width_mult": width}


def _vit(shapes: Shapes) -> Iterator[Arguments]:
    width, in_channels, patch, *_ = shapes["patches.weight"]
    yield {
        "num_classes": shapes["head.weight"][0],
        "image_size": patch * math.isqrt(shapes["positions"][1] - 1),
        "patch": patch,
        "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "width": width,
        "mlp_ratio": shapes["blocks.0.mlp.0.weight"][0] // width,
        "in_channels": in_channels,
    }


_OWN: dict[str, tuple[Callable[[Shapes], Iterator[Arguments]], tuple[str, ...]]] = {
    "cnn": (_cnn, ()),
    "resnet20": (_resnet20, ()),
    "mobilenet_v2": (_mobilenet_v2, (_STEM,)),
    "vit": (_vit, (_HEADS,)),
}


# ---- torchvision's


def _torchvision_candidates(shapes: Shapes) -> Iterator[tuple[str, Arguments, tuple[str, ...]]]:
    """Yield torchvision's classifiers with as many parameters as the checkpoint, not counting the head.

    torchvision lists the number of parameters of each model, so that no model has to be built for this.
    """
    heads = [name for name in shapes if _HEAD.fullmatch(name)]
    if not heads:
        return
    try:
        models = import_library("torchvision", "torchvision:NAME").models
    except GlueError:  # torchvision is not installed
        return
    head = max(heads)
    n_classes, n_features = shapes[head][0], math.prod(shapes[head][1:])
    n_parameters = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_NOT_PARAMETERS))
    size, n_positions = _image_size(shapes)
    for name in models.list_models(module=models):
        weights = models.get_model_weights(name).DEFAULT.meta
        n_theirs = weights["num_params"] - (len(weights["categories"]) - n_classes) * (n_features + 1)
        if size is None and n_theirs == n_parameters:
            yield f"torchvision:{name}", {"num_classes": n_classes}, ()
        elif size is not None and name.startswith("vit_"):
            patch = shapes["conv_proj.weight"][-1]
            n_theirs += shapes["conv_proj.weight"][0] * (n_positions - (weights["min_size"][0] // patch) ** 2 - 1)
            if n_theirs == n_parameters:
                yield f"torchvision:{name}", {"num_classes": n_classes, "image_size": size}, ()


def _image_size(shapes: Shapes) -> tuple[int | None, int]:
    """Return the image size of a vision transformer of torchvision, and its number of positions; else None and 0."""
    if "encoder.pos_embedding" not in shapes or "conv_proj.weight" not in shapes:
        return None, 0
    n_positions = shapes["encoder.pos_embedding"][1]
    return shapes["conv_proj.weight"][-1] * math.isqrt(n_positions - 1), n_positions
