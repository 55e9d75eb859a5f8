"""Models whose weights a library has quantised, as transformers loads them."""

import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.models.libraries.faults import reason_of
from glue_cli.models.libraries.transformers_models import find_class

# The name of a method in config.json -> the module that transformers needs, and the package that has it.
_PACKAGES = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum", "optimum-quanto"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
}


def check_library(method: str, path: Path) -> None:
    """Check that the library of a quantisation method is installed, without importing it; unknown ones pass.

    Raises:
        CheckpointError: it is not.
    """
    module, package = _PACKAGES.get(method, ("transformers", "transformers"))
    if find_spec(module) is None:
        message = f"'{path}' is quantised ({method}), and {package}, which computes with it, is not installed"
        raise CheckpointError(message, hint=f"pip install {package}")


def load_quantised(
    name: str, args: Mapping[str, Any], folder: Path, device: torch.device, *, need_not_have: Collection[str]
) -> nn.Module:
    """Return `transformers:CLASS` with the quantised weights of its folder, in eval mode.

    Args:
        name, args, folder: as for `find_transformers`.
        need_not_have: the names of tensors that the folder may lack.
    Raises:
        CheckpointError: transformers cannot load them, or some are missing.
        SpecError: as for `find_transformers`.
    """
    model_class, config = find_class(name, args, folder)
    model: nn.Module
    try:
        model, found = model_class.from_pretrained(
            config.name_or_path,
            config=config,
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # the library's code, which may raise anything
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"transformers cannot load the quantised '{config.name_or_path}': {reason_of(error)}",
            hint="load it with transformers alone to see the whole message, or name the base that it was made from",
        ) from error
    if getattr(model, "hf_quantizer", None) is None:  # transformers has only warned, and taken codes for weights
        message = f"transformers does not know how '{config.name_or_path}' is quantised"
        raise CheckpointError(message, hint="pip install -U transformers, or name the base that it was made from")
    wrong = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if lacking := sorted(wrong - {*need_not_have}):
        message = f"'{config.name_or_path}' lacks weights of '{type(model).__name__}', or has them in other shapes"
        raise CheckpointError(
            message, items=lacking, hint="set model.arch to the class that the adapters were trained on"
        )
    return model.eval().requires_grad_(False)


def find_layer_without_gradient(model: nn.Module) -> str | None:
    """Return the name of a quantised layer through which no gradient passes; None if there is none.

    bitsandbytes' packed 4-bit layers on the CPU are such: nothing is said, and the gradient ends there. One layer of
    each kind is tried.
    """
    tried = set()
    layers: Iterable[tuple[str, nn.Module]] = model.named_modules()
    for name, layer in layers:
        weight = layer._parameters.get("weight")
        kind = (type(layer), type(weight), layer._parameters.get("bias") is None)
        if weight is None or type(weight) is nn.Parameter:  # a library's are of a class of its own
            continue
        if not isinstance(layer, nn.Linear) or kind in tried:
            continue
        tried.add(kind)
        if not _passes_gradient(layer, weight):
            return name
    return None


def _passes_gradient(layer: nn.Linear, weight: Tensor) -> bool:
    dtype = weight.dtype if weight.is_floating_point() else torch.float32  # else codes, of which the layer knows more
    inputs = torch.ones(1, layer.in_features, device=weight.device, dtype=dtype)
    try:
        with torch.no_grad():
            layer(inputs)  # after which the library may have packed its weights
    except Exception:  # the library's code, which may want inputs of another kind; then nothing was found out
        return True
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is found out here
        inputs.requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(layer(inputs).sum(), inputs)
        except (RuntimeError, NotImplementedError):
            return False
    return bool(gradient.count_nonzero())
