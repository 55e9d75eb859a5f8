"""The models of torchvision, by their names in `torchvision.models.list_models()`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from glue_cli.models.libraries.faults import (
    accepted_names,
    call_library,
    import_library,
    refuse_downloads,
    unknown_name,
)

_WEIGHTS = ("weights", "weights_backbone")


def find_torchvision(name: str, args: Mapping[str, Any], folder: Path) -> Callable[[], Any]:
    """Return a function that builds `torchvision:NAME` with fresh weights.

    Args:
        args: the model's own arguments, such as `num_classes`.
    Raises:
        SpecError: torchvision is missing or was built for another torch, or it has no such model.
    """
    arch = f"torchvision:{name}"
    models = import_library("torchvision", arch).models
    if name not in models.list_models():
        raise unknown_name(arch, "torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    names = accepted_names(builder)
    # a segmentation model downloads its backbone's weights unless they are set to None
    fresh = {name: None for name in _WEIGHTS if name in names}
    own = {**refuse_downloads(arch, args, _WEIGHTS), **fresh}
    return partial(call_library, arch, builder, own, [name for name in names if name not in _WEIGHTS])
