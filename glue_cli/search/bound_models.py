"""Copies of a model whose blended tensors are views of one row, so that writing to the row changes the model."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.running.copies import copy_model
from glue_cli.search.bank.matrix import Span

# Makes tensors that depend on alpha [G, K] but are not blended; differentiable.
MakeTensors = Callable[[Tensor], Mapping[str, Tensor]]


def make_nothing(alpha: Tensor) -> dict[str, Tensor]:
    """Make no tensors: every tensor of the model is blended or does not depend on alpha."""
    return {}


def bind(model: nn.Module, spans: Mapping[str, Span], row: Tensor, made: Collection[str]) -> nn.Module:
    """Return a copy of the model whose tensors at `spans` are views of `row` [d].

    Args:
        made: the names of tensors that the copy does not share with the model; all others are shared.
    """
    tied = tied_names(model)
    own = {alias for name in made for alias in (name, *tied.get(name, ()))}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    copied = copy_model(model, [tensor for name, tensor in tensors if name not in own])
    place_views(copied, spans, row)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = without_cudnn(module.forward)
    return copied


def place_views(model: nn.Module, spans: Mapping[str, Span], row: Tensor) -> None:
    """Let the tensors at `spans` be views of `row` [d]; tied ones under all their names."""
    tied = tied_names(model)
    for name, span in spans.items():
        shared = nn.Parameter(span.view(row), requires_grad=False)
        for alias in (name, *(other for other in tied.get(name, ()) if other not in spans)):
            path, _, leaf = alias.rpartition(".")
            module = model.get_submodule(path)
            if leaf in module._parameters:
                module._parameters[leaf] = shared
            else:
                module._buffers[leaf] = shared.data


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Give tensors of a bound model new values and clear their gradients; return its tensors in the same order."""
    leaves = []
    for name, tensor in tensors.items():
        parameter = model.get_parameter(name)
        parameter.data.copy_(tensor.detach())
        parameter.grad = None
        leaves.append(parameter.requires_grad_(torch.is_grad_enabled()))
    return leaves


def without_cudnn(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a recurrent layer without cuDNN, which moves weights out of their row and has no backward in eval mode."""

    def run(*arguments: Any, **named: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return forward(*arguments, **named)

    return run


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return, for each parameter with several names, its other names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: [n for n in group if n != name] for group in names.values() if len(group) > 1 for name in group}
