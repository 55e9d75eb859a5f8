"""Model architectures: glue's own, those of other libraries, and the user's; `build_model` builds all of them.

Importing this module imports neither torch nor any architecture or library.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.foundation.errors import ResourceError, SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.nearest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

# the name in `model.arch` -> module:function; `model.args` are the function's arguments
ARCHITECTURES: dict[str, str] = {
    "cnn": "glue_cli.models.cnn:cnn",
    "resnet20": "glue_cli.models.resnet:resnet20",
    "mobilenet_v2": "glue_cli.models.mobilenet:mobilenet_v2",
    "vit": "glue_cli.models.vit:vit",
}
LIBRARIES: dict[str, tuple[str, str]] = {
    # the part of `model.arch` before the colon -> what the part after it names, and a module:function that takes
    # the part after it, `model.args` and the spec's folder, and returns a function that builds the model
    "torchvision": ("NAME", "glue_cli.models.libraries.torchvision_models:find_torchvision"),
    "timm": ("NAME", "glue_cli.models.libraries.timm_models:find_timm"),
    "transformers": ("CLASS", "glue_cli.models.libraries.transformers_models:find_transformers"),
    "python": ("MODULE:FUNCTION", "glue_cli.models.libraries.python_models:find_python"),
}


def architecture_forms() -> list[str]:
    """Return the values that `model.arch` may have: names, and forms such as `timm:NAME`."""
    return [*ARCHITECTURES, *(f"{library}:{form}" for library, (form, _) in LIBRARIES.items())]


def check_architecture(arch: str) -> None:
    """Check that `arch` is one of glue's own, or has the form LIBRARY:NAME; builds and imports nothing.

    Raises:
        SpecError: it is neither; the hint has a similar name, if there is one, and all names.
    """
    library, colon, name = arch.partition(":")
    if arch in ARCHITECTURES or (library in LIBRARIES and name):
        return
    guess = did_you_mean(library, LIBRARIES if name else ARCHITECTURES, ending=f"{colon}{name}")
    names = ", ".join(f"'{name}'" for name in ARCHITECTURES)
    forms = ", ".join(f"{library}:{what}" for library, (what, _) in LIBRARIES.items())
    raise SpecError(
        f"model.arch: '{arch}' is not an architecture that glue knows",
        hint=f"{guess} glue knows {names}, and takes {forms}".lstrip(),
    )


def build_model(
    arch: str, args: Mapping[str, Any], *, seed: int, folder: Path = Path("."), weightless: bool = False
) -> "nn.Module":
    """Build an architecture with fresh weights, on the CPU, in training mode.

    Args:
        arch: a name of `ARCHITECTURES`, or one in a library of `LIBRARIES`.
        args: the architecture's arguments, as in the spec's `model.args`; missing ones have their defaults.
        seed: determines the initial weights, together with `arch` and `args`; the global random state, CUDA's
            included, is neither read nor changed.
        folder: the folder of the spec, from which the user's modules and model folders are looked up.
        weightless: whether the parameters need no values; see `running.weightless`.
    Raises:
        SpecError: there is no such architecture, or its arguments are wrong; every fault is listed. A library is
            missing or cannot be imported. The user's function fails or returns no module.
        ResourceError: the weights do not fit into memory.
    """
    check_architecture(arch)
    build = _find(arch, args, folder)  # imports what it needs, outside the random state below

    import torch
    from torch import nn

    from glue_cli.models.local_batchnorm import localise_batchnorm
    from glue_cli.running.weightless import build_weightless

    # Not torch.manual_seed: it would also seed CUDA's generators, which fork_rng(devices=[]) does not restore.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        try:
            model = build_weightless(build) if weightless else build()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            given = ", ".join(f"{name}={value}" for name, value in args.items()) or "its defaults"
            raise ResourceError(
                f"model: the weights of '{arch}' with {given} do not fit into memory",
                hint="choose smaller 'model.args'",
            ) from error
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"model.arch '{arch}' gives a {type(model).__name__}, wanted a torch.nn.Module",
            hint="return the model itself",
        )
    localise_batchnorm(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise SpecError(
            f"model.arch '{arch}' gives a ScriptModule, which glue cannot copy",
            hint="return it before torch.jit.script",
        )
    if lazy := next((name for name, tensor in _tensors(model) if nn.parameter.is_lazy(tensor)), None):
        raise SpecError(
            f"model.arch '{arch}': '{lazy}' is lazy and has no shape yet",
            hint="make a forward pass on dummy inputs in your function before it returns the model",
        )
    return model.train()


def _tensors(model: "nn.Module") -> Iterator[tuple[str, "Tensor"]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _find(arch: str, args: Mapping[str, Any], folder: Path) -> Callable[[], Any]:
    """Return a function that builds an architecture that `check_architecture` accepts."""
    if arch in ARCHITECTURES:
        from glue_cli.models.arguments import check_arguments

        architecture = _load(ARCHITECTURES[arch])
        return partial(architecture, **check_arguments(arch, architecture, args))
    library, _, name = arch.partition(":")
    build: Callable[[], Any] = _load(LIBRARIES[library][1])(name, args, folder)
    return build


def _load(location: str) -> Callable[..., Any]:
    module, _, function = location.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), function)
    return loaded
