"""BatchNorm's statistics from few examples: pulled towards those before, as far as they are uncertain.

With 25 images the statistics of a layer are so noisy that a blend with them can be worse than with the experts'
averaged ones. How noisy they are is known from how much the examples differ.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glue_cli.foundation.batchnorm_names import STATISTICS
from glue_cli.running.batchnorm import batchnorms

_LEAST_VARIANCE = 1e-8  # below it a channel is constant, and says nothing of how far a layer's statistics moved

Layers = Sequence[tuple[str, int]]  # the name of each BatchNorm, and its number of channels


def layers_of(model: nn.Module) -> Layers:
    """Return the BatchNorms whose moments a row holds, in its order."""
    return [(name, module.num_features) for name, module in batchnorms(model)]


@dataclass(frozen=True)
class _Moments:
    """What the inputs of a layer were: sums over batches and examples, float64.

    Of each example, a is how far the mean of its values is from the mean before, and b the mean of their squared
    distances from it, by channel.

    Attributes:
        before: the layer's mean and variance before, [2, C]; the same in every batch.
        sums: of a, a^2, b, b^2 and a b, [5, C].
        counts: of batches, examples, and values of each channel, [3].
    """

    before: Tensor
    sums: Tensor
    counts: Tensor

    @classmethod
    def of(cls, module: _BatchNorm, inputs: Tensor) -> "_Moments":
        """Return the moments of the inputs [N, C, ...] of one forward pass."""
        assert module.running_mean is not None and module.running_var is not None
        before = torch.stack([module.running_mean, module.running_var]).double()
        values = inputs.detach().float()
        if values.dim() > 2:
            variances, means = torch.var_mean(values, tuple(range(2, values.dim())), correction=0)
        else:
            variances, means = torch.zeros_like(values), values
        a = means.double() - before[0]
        b = variances.double() + a * a
        counts = torch.tensor([1, len(values), values.numel() // values.shape[1]], dtype=torch.float64)
        return cls(before, torch.stack([a, a * a, b, b * b, a * b]).sum(1), counts)

    @classmethod
    def of_row(cls, row: Tensor, n_channels: int) -> "_Moments":
        """Return the moments that a sum of rows holds; of the means before, the sum is divided by the batches."""
        before, sums, counts = torch.split(row, [2 * n_channels, 5 * n_channels, 3])
        # Exact: a sum of equal float32 has room in a float64.
        return cls(before.view(2, -1) / counts[0].clamp_min(1), sums.view(5, -1), counts)

    def row(self) -> Tensor:
        """Return all numbers in a row on the CPU."""
        return torch.cat([self.before.flatten().cpu(), self.sums.flatten().cpu(), self.counts])

    def shrunk(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance [C], each pulled towards the one before.

        A layer's mean moves by the share 1 - e / d of its way, where d is the squared length of the way, and e the
        expected squared error of its end, both summed over channels in units of their variances: the James-Stein
        estimate with its positive part. Its variance moves alike, with lengths and errors of logarithms. With many
        examples nothing is left of the pull; with one the error is unknown, and nothing moves.

        Source: W. James, C. Stein, Estimation with quadratic loss, 1961.
        """
        mean_before, variance_before = self.before
        _, n, n_values = self.counts.tolist()
        if n < 2:
            return mean_before, variance_before
        a, aa, b, bb, ab = self.sums / n
        variance = (b - a * a).clamp_min(0)
        error = (aa - a * a) / (n - 1)
        # The squared distances from the new mean are b - 2 (mean of a) a + ... for each example.
        error_of_variance = ((bb - b * b) + 4 * a * a * (aa - a * a) - 4 * a * (ab - a * b)) / (n - 1)
        unit = ((variance + variance_before) / 2).clamp_min(_LEAST_VARIANCE)
        share = _share((a * a / unit).sum(), (error / unit).sum())
        floor = variance.clamp_min(_LEAST_VARIANCE)
        way = floor.log() - variance_before.clamp_min(_LEAST_VARIANCE).log()
        share_of_variance = _share((way * way).sum(), (error_of_variance.clamp_min(0) / floor**2).sum())
        unbiased = variance * n_values / max(1, n_values - 1)  # as torch's running variance
        return mean_before + share * a, variance_before.lerp(unbiased, share_of_variance)


def _share(squared_way: Tensor, squared_error: Tensor) -> float:
    return (1 - squared_error / squared_way).clamp(0, 1).item() if squared_way > 0 else 0.0


class Observed:
    """The moments that one forward pass of a model has left."""

    def __init__(self, layers: Layers) -> None:
        self._rows = {name: torch.zeros(7 * n_channels + 3, dtype=torch.float64) for name, n_channels in layers}

    @property
    def row(self) -> Tensor:
        """All moments in a row, float64; zeros of layers that have not run. Rows of several batches can be added."""
        return torch.cat([torch.zeros(0, dtype=torch.float64), *self._rows.values()])

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Return a hook that adds the moments of a layer's inputs."""

        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, _BatchNorm)
            self._rows[name] += _Moments.of(module, inputs[0]).row()

        return observe


@contextmanager
def observing(model: nn.Module) -> Iterator[Observed]:
    """Observe every BatchNorm of a model in eval mode; each uses its batch, and its running statistics stay."""
    observed, momenta, handles = Observed(layers_of(model)), [], []
    for name, module in batchnorms(model):
        momenta.append((module, module.momentum))
        module.momentum = 0.0
        module.training = True  # not `train`: what lies inside, such as timm's dropout, stays in eval mode
        handles.append(module.register_forward_pre_hook(observed.hook(name)))
    try:
        yield observed
    finally:
        for handle in handles:
            handle.remove()
        for module, momentum in momenta:
            module.momentum = momentum
            module.training = False


def shrunk_statistics(layers: Layers, total: Tensor) -> dict[str, Tensor]:
    """Return running means and variances, float32, and counters of batches, by their names in a state dict.

    Args:
        total: the sum of the batches' rows. A layer that never ran is left out.
    """
    found: dict[str, Tensor] = {}
    rows = torch.split(total, [7 * n_channels + 3 for _, n_channels in layers])
    for (name, n_channels), row in zip(layers, rows, strict=True):
        moments = _Moments.of_row(row, n_channels)
        if n_batches := int(moments.counts[0]):
            tensors = (*(tensor.float() for tensor in moments.shrunk()), torch.tensor(n_batches))
            found |= {f"{name}.{field}" if name else field: t for field, t in zip(STATISTICS, tensors, strict=True)}
    return found
