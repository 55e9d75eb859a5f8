"""BatchNorm that exchanges nothing with other processes by itself."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class LocalBatchNorm(_BatchNorm):
    """BatchNorm of inputs with any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def localise_batchnorm(model: nn.Module) -> None:
    """Let every SyncBatchNorm be an ordinary BatchNorm, with the same tensors; subclasses, which add to it, stay.

    It is for GPUs alone, and makes all processes wait for each other in every forward, also where each has another
    blend; where they train together, `running.parallel.share_batchnorm` takes its place.
    """
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = LocalBatchNorm  # type: ignore[assignment]
