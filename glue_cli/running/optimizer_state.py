"""The state of an optimizer, as `foundation.state` has states."""

import torch
from torch import Tensor

from glue_cli.foundation.state import State, list_state, part_of
from glue_cli.running.sharding import part_like


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Return an optimizer's state of each parameter, such as its moments; empty before the first step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return list_state("parameters", [dict(optimizer.state.get(parameter, {})) for parameter in parameters])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore what `optimizer_state` has returned, in an optimizer of the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    for i, parameter in enumerate(parameters):
        saved = part_of(state, f"parameters.{i}")
        if saved:
            optimizer.state[parameter] = {name: _beside(parameter, value) for name, value in saved.items()}


def _beside(parameter: Tensor, value: object) -> object:
    """Return a copy on the parameter's device, in its memory format too: a fused step walks through the memory."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape:
        value = part_like(value, parameter)
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
