"""BatchNorm's running statistics: with a derivative, or replaced by those of a batch; see `refreshing` for new ones.

torch's own `batch_norm` has no derivative with respect to them: it raises when they require a gradient. In eval mode
BatchNorm is an affine map, so that the gradient of a blend's loss can pass through the blended statistics too.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glue_cli.foundation.batchnorm_names import STATISTICS


def differentiate_statistics(model: nn.Module) -> None:
    """Give the forward of every BatchNorm in `model` this derivative; for eval mode only."""
    for _, module in batchnorms(model):
        module.forward = _DifferentiableForward(module)  # type: ignore[method-assign]


def use_batch_statistics(model: nn.Module) -> None:
    """Let every BatchNorm of a model in eval mode normalise by its batch; its running statistics stay as they are."""
    for _, module in batchnorms(model):
        module.training = True  # not `train`: what lies inside, such as timm's dropout, stays in eval mode
        module.track_running_stats = False


def has_batchnorm(model: nn.Module) -> bool:
    """Tell whether a model has a BatchNorm with running statistics."""
    return any(True for _ in batchnorms(model))


def keep_own_counters(model: nn.Module) -> None:
    """Give each BatchNorm its own batch counter, as a copied model may share it with the original."""
    for _, module in batchnorms(model):
        if module.num_batches_tracked is not None:
            module.num_batches_tracked = module.num_batches_tracked.clone()


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of a model, by their names in its state dict."""
    return {
        f"{name}.{field}" if name else field: getattr(module, field)
        for name, module in batchnorms(model)
        for field in STATISTICS
    }


def batchnorms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield every BatchNorm of a model that has running statistics, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


class _DifferentiableForward:
    """A BatchNorm's own forward, with y = (x - mean) / sqrt(var + eps) * weight + bias by torch's own kernel.

    The kernel gets the statistics as constants m and v; their part of the gradient passes through its weight and
    bias: y = (x - m) / sqrt(v + eps) * W + B with W = weight sqrt(v + eps) / sqrt(var + eps) and
    B = bias + (m - mean) weight / sqrt(var + eps), which equal weight and bias in value, but not in derivative. They
    take the place of the module's tensors while its forward runs, which may do more: timm's applies an activation.
    """

    def __init__(self, module: _BatchNorm) -> None:
        self._module, self._forward = module, module.forward

    def __call__(self, input: Tensor) -> Tensor:
        module = self._module
        buffers, parameters = dict(module._buffers), dict(module._parameters)
        mean, variance = module.running_mean, module.running_var
        assert mean is not None and variance is not None
        fixed_mean, fixed_variance = mean.detach(), variance.detach()
        ratio = ((fixed_variance + module.eps) / (variance + module.eps)).sqrt()  # 1, with a derivative
        weight = ratio if module.weight is None else ratio * module.weight
        bias = (fixed_mean - mean) * weight * torch.rsqrt(fixed_variance + module.eps)
        if module.bias is not None:
            bias = bias + module.bias
        module._buffers.update({"running_mean": fixed_mean, "running_var": fixed_variance})
        module._parameters.update({"weight": weight, "bias": bias})  # type: ignore[dict-item]
        try:
            outputs: Tensor = self._forward(input)
            return outputs
        finally:
            module._buffers.update(buffers)
            module._parameters.update(parameters)
