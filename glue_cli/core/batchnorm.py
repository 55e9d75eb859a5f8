"""BatchNorm in eval mode, with a derivative with respect to its running statistics.

torch's own `batch_norm` has none: it raises when they require a gradient. Written as the affine map that it is in
eval mode, the gradient of a blend's loss passes through the blended statistics too.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def differentiate_statistics(model: nn.Module) -> None:
    """Replace the forward of every BatchNorm in `model` by its affine form; for eval mode only."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.forward = _AffineForward(module)  # type: ignore[method-assign]


class _AffineForward:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, computed in float32."""

    def __init__(self, module: _BatchNorm) -> None:
        self._module = module

    def __call__(self, input: Tensor) -> Tensor:
        module = self._module
        mean, variance = module.running_mean, module.running_var
        assert mean is not None and variance is not None
        scale = torch.rsqrt(variance + module.eps)
        if module.weight is not None:
            scale = scale * module.weight
        shift = -mean * scale
        if module.bias is not None:
            shift = shift + module.bias
        shape = (1, -1) + (1,) * (input.dim() - 2)
        return torch.addcmul(shift.view(shape), input, scale.view(shape)).to(input.dtype)
