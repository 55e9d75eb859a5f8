"""The architectures that glue builds itself: one registry, and the one door to it, `build_model`.

Importing this module imports neither torch nor any architecture.
"""

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from glue_cli.core.errors import ResourceError, SpecError

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: dict[
    str, str
] = {  # name in `model.arch` -> module:function; the function's parameters are `model.args`
    "cnn": "glue_cli.models.cnn:cnn",
    "resnet20": "glue_cli.models.resnet:resnet20",
    "mobilenet_v2": "glue_cli.models.mobilenet:mobilenet_v2",
    "vit": "glue_cli.models.vit:vit",
}


def check_architecture(arch: str) -> None:
    """Check that `arch` is a name of the registry; builds and imports nothing.

    Raises:
        SpecError: it is not; the hint has the nearest name, if one is near, and all names.
    """
    if arch in ARCHITECTURES:
        return
    near = difflib.get_close_matches(arch, ARCHITECTURES, n=1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    names = ", ".join(f"'{name}'" for name in ARCHITECTURES)
    raise SpecError(f"model.arch: '{arch}' is not an architecture that glue knows", hint=f"{guess}glue knows {names}")


def build_model(arch: str, args: Mapping[str, Any], *, seed: int) -> "nn.Module":
    """Build an architecture with fresh weights, on the CPU, in training mode.

    Args:
        arch: a name of `ARCHITECTURES`.
        args: the architecture's arguments, as in the spec's `model.args`; what is missing has its default.
        seed: decides the initial weights, which are a pure function of (arch, args, seed): the global random state
            is neither read nor moved, CUDA's included.
    Raises:
        SpecError: no such architecture, or its arguments are wrong; every fault of the arguments is listed.
        ResourceError: the weights do not fit into memory.
    """
    check_architecture(arch)
    from glue_cli.models.arguments import check_arguments

    module, _, function = ARCHITECTURES[arch].partition(":")
    architecture: Callable[..., nn.Module] = getattr(import_module(module), function)
    checked = check_arguments(arch, architecture, args)

    import torch

    # Not torch.manual_seed: it would seed CUDA's generators as well, which fork_rng(devices=[]) does not give back.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        try:
            return architecture(**checked)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            given = ", ".join(f"{name}={value}" for name, value in checked.items())
            raise ResourceError(
                f"model: the weights of '{arch}' with {given} do not fit into memory",
                hint="choose smaller 'model.args'",
            ) from error
