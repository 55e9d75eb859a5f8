"""The state of an optimizer, as `foundation.state` has states."""

import torch
from torch import Tensor

from glue_cli.foundation.state import State, list_state, part_of


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
            optimizer.state[parameter] = {
                name: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in saved.items()
            }
