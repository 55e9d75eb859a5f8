"""The layers whose adapters can be applied by their factors, and what each does with them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from glue_cli.blend.adapters.stacked import StackedFactors

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLVE: dict[int, Callable[..., Tensor]] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a plain linear layer, or the `Conv1D` of transformers, which stores the transpose."""
    return type(module) is nn.Linear or stores_transpose(module)


def stores_transpose(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_supported(module: nn.Module) -> bool:
    """Tell whether the forward of a module is known: subclasses may do anything with their weights."""
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return is_linear(module) or (type(module) in CONVOLUTIONS and getattr(module, "groups", None) == 1)


def pads_with_other_than_zeros(module: nn.Module) -> bool:
    """Tell whether PEFT, which pads with zeros beside any convolution, computes something else until it merges."""
    return isinstance(module, CONVOLUTIONS) and module.padding_mode != "zeros"


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a weight is the transpose of b @ a, as in `AdaptedBase.transposed`."""
    return stores_transpose(module) or isinstance(module, nn.Embedding)


def update_output(module: nn.Module, factors: StackedFactors, coefficients: Tensor, inputs: Tensor) -> Tensor:
    """Return sum_k alpha_k s_k B_k (A_k x), which is added to the output of a supported module.

    Args:
        coefficients: alpha_k s_k for each row of the factors, [R]; differentiable.
        inputs: those of the module.
    Cost: R (n_in + n_out) products for each position.
    """
    if isinstance(module, nn.Embedding):
        return (functional.embedding(inputs, factors.a.T) * coefficients) @ factors.b.T
    if isinstance(module, CONVOLUTIONS):
        down = module._conv_forward(inputs, factors.a, None)  # with its stride and padding
        return _CONVOLVE[factors.a.dim()](down * coefficients.view(-1, *[1] * (factors.a.dim() - 2)), factors.b)
    return functional.linear(functional.linear(inputs, factors.a) * coefficients, factors.b)


def merged_weight(module: nn.Module, factors: StackedFactors, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of a convolution with the update merged into it, rounded to `dtype`, as float32."""
    weight = module.get_parameter("weight").float()
    update = (factors.b.flatten(1) * coefficients) @ factors.a.flatten(1)
    return (weight + update.view(weight.shape)).to(dtype).float()


def rows_of(module: nn.Module, start: int, stop: int) -> Tensor:
    """Return rows of a linear layer's weight, [stop - start, n_in], in the dtype in which it is stored."""
    weight = module.get_parameter("weight")
    return weight[:, start:stop].T if stores_transpose(module) else weight[start:stop]


def n_outputs(module: nn.Module) -> int:
    return module.get_parameter("weight").shape[1 if stores_transpose(module) else 0]
