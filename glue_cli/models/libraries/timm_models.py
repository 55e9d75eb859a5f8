"""The models of timm, by their names in `timm.list_models()`; a tag after a dot is allowed."""

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

_WEIGHTS = ("pretrained", "checkpoint_path")


def find_timm(name: str, args: Mapping[str, Any], folder: Path) -> Callable[[], Any]:
    """Return a function that builds `timm:NAME` with fresh weights.

    Args:
        args: arguments of `timm.create_model`, such as `num_classes` and `img_size`.
    Raises:
        SpecError: timm is missing, or it has no such model.
    """
    arch = f"timm:{name}"
    timm = import_library("timm", arch)
    if ":" in name or not timm.is_model(name):  # hf-hub:REPO would be downloaded
        raise unknown_name(arch, "timm", name, timm.list_models())
    accepted = [other for other in accepted_names(timm.model_entrypoint(name)) if other not in _WEIGHTS]
    create = partial(timm.create_model, name, pretrained=False)
    return partial(call_library, arch, create, refuse_downloads(arch, args, _WEIGHTS), accepted)
