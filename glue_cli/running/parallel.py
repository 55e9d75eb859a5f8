"""Training by several processes: each takes its part of every batch, and the step is that of the whole batch.

DistributedDataParallel adds up the gradients, or FSDP2 where the model does not fit one device (`sharding`). BatchNorm
normalises by the statistics of the whole batch; torch's own SyncBatchNorm does so on GPUs alone. Sums are rounded
differently with another number of processes, and dropout draws other numbers, so that the weights are not the same bit
for bit.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from glue_cli.foundation.ranks import Ranks
from glue_cli.running.forward import Batch
from glue_cli.running.losses import n_terms


def spread(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return what makes the forward passes of a training by several processes; alone, the model itself.

    Args:
        model: on the device; the same in every process. Its parameters are trained.
    """
    if ranks.size == 1:
        return model
    share_batchnorm(model)
    with warnings.catch_warnings():
        # Newer releases of torch call the option another name, which older ones do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # The graph is static: parameters that the outputs do not depend on, such as an unused pooler's, are no error.
        return DistributedDataParallel(model, broadcast_buffers=False, static_graph=True)


def share_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm take the statistics of the whole batch while it trains."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.forward = _OverAllProcesses(module)  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Part:
    """A process's part of a batch.

    Attributes:
        weight: what the sum of its losses is multiplied by, so that the mean over all processes is the batch's mean.
    """

    batch: Batch
    weight: float


def part_of(batch: Batch, ranks: Ranks) -> Part:
    """Return this process's part of a batch: some of its rows, or all of them if there is not one for each process."""
    inputs, targets = batch
    rows, weight = ranks.share(len(targets)), ranks.size / n_terms(targets)
    if len(targets) < ranks.size:
        rows, weight = range(len(targets)), 1 / n_terms(targets)
    chosen = slice(rows.start, rows.stop)
    if isinstance(inputs, Mapping):
        return Part(({name: tensor[chosen] for name, tensor in inputs.items()}, targets[chosen]), weight)
    return Part((inputs[chosen], targets[chosen]), weight)


class _OverAllProcesses:
    """The forward of a BatchNorm that, while it trains, takes its statistics over the parts of all processes."""

    def __init__(self, module: _BatchNorm) -> None:
        self._module, self._alone = module, module.forward

    def __call__(self, x: Tensor) -> Tensor:
        module = self._module
        if not module.training:
            return self._alone(x)
        others = [dimension for dimension in range(x.dim()) if dimension != 1]
        shape = [-1 if dimension == 1 else 1 for dimension in range(x.dim())]
        wide = x.float()
        count = wide.new_tensor([x.numel() / x.shape[1]])
        summed = _sum_of_all(torch.cat([wide.sum(others), count]))
        mean, n = summed[:-1] / summed[-1], summed[-1].detach()
        centred = wide - mean.view(shape)
        squares = _sum_of_all(centred.square().sum(others))
        variance = squares / n
        self._follow(mean.detach(), variance.detach() * n / (n - 1))
        outputs = centred * torch.rsqrt(variance + module.eps).view(shape)
        if module.affine:
            outputs = outputs * module.weight.view(shape) + module.bias.view(shape)
        return outputs.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of the batch."""
        module = self._module
        assert module.running_mean is not None and module.running_var is not None
        assert module.num_batches_tracked is not None
        module.num_batches_tracked += 1
        share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.lerp_(mean.to(module.running_mean), share)
        module.running_var.lerp_(variance.to(module.running_var), share)


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, as each process's loss depends on all summands."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_of_all(own: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(own)  # type: ignore[no-untyped-call]
    return total
