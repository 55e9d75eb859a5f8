"""Copies of models that were built by anybody's code."""

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from glue_cli.foundation.errors import SpecError


def copy_model(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """Return a copy of a model.

    Args:
        shared: tensors that the copy has in common with the model.
    Raises:
        SpecError: something in the model cannot be copied.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        for value in vars(module).values():  # such as the weight that an old weight norm makes again in each forward
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a module's attributes may be anything
        raise SpecError(
            f"the model cannot be copied, which a search needs: {error}",
            hint="keep locks, files and the like out of the module, or give it a __deepcopy__",
        ) from error
