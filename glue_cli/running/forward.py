"""Forward passes through models of any library: their inputs, and which of their outputs glue uses."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glue_cli.foundation.errors import SpecError

Inputs = Tensor | Mapping[str, Tensor]  # [N, ...], or tensors [N, ...] by the name of the model's argument
Batch = tuple[Inputs, Tensor]  # inputs and targets [N, ...], on the device


def outputs_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return a model's outputs, [N, ...]: the tensor that it returns, or the `logits` in what it returns.

    Raises:
        SpecError: the model returns neither.
    """
    returned = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    outputs = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", returned)
    if not isinstance(outputs, torch.Tensor):
        raise SpecError(
            f"the model returns {type(returned).__name__}, wanted a tensor, or one under the name 'logits'",
            hint="set model.arch to a model with a head for the task",
        )
    return outputs
