"""BatchNorm's statistics from few examples: pulled towards those before, as far as they are uncertain.

With 25 images the statistics of a layer are so noisy that a blend with them can be worse than with the experts'
averaged ones. How noisy they are is known from how much the examples differ.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glue_cli.foundation.batchnorm_names import STATISTICS
from glue_cli.running.batchnorm import batchnorms
from glue_cli.running.forward import Batch

_LEAST_VARIANCE = 1e-8  # below it a channel is constant, and says nothing of how far a layer's statistics moved


@dataclass
class Moments:
    """What a layer's inputs were: sums over the examples, float64, by channel.

    Of each example, a is how far the mean of its values is from the mean before, and b the mean of their squared
    distances from it.

    Attributes:
        before: the layer's mean and variance before, [2, C].
        sums: of a, a^2, b, b^2 and a b, [5, C].
        n_batches, n_examples, n_values: how many batches, examples, and values of each channel there were.
    """

    before: Tensor
    sums: Tensor
    n_batches: int = 0
    n_examples: int = 0
    n_values: int = 0

    def add(self, inputs: Tensor) -> None:
        """Add the inputs [N, C, ...] of one forward pass."""
        values = inputs.float()
        if values.dim() > 2:
            variances, means = torch.var_mean(values, tuple(range(2, values.dim())), correction=0)
        else:
            variances, means = torch.zeros_like(values), values
        a = means.double() - self.before[0]
        b = variances.double() + a * a
        self.sums += torch.stack([a, a * a, b, b * b, a * b]).sum(1)
        self.n_batches += 1
        self.n_examples += len(values)
        self.n_values += values.numel() // values.shape[1]

    def shrunk(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance [C], each pulled towards the one before.

        A layer's mean moves by the share 1 - e / d of its way, where d is the squared length of the way, and e the
        expected squared error of its end, both summed over channels in units of their variances: the James-Stein
        estimate with its positive part. Its variance moves alike, with lengths and errors of logarithms. With many
        examples nothing is left of the pull; with one the error is unknown, and nothing moves.

        Source: W. James, C. Stein, Estimation with quadratic loss, 1961.
        """
        mean_before, variance_before = self.before
        n = self.n_examples
        if n < 2:
            return mean_before, variance_before
        a, aa, b, bb, ab = self.sums / n
        variance = (b - a * a).clamp_min(0)
        error = n / (n - 1) * (aa - a * a) / n
        # The squared distances from the new mean are b - 2 (mean of a) a + ... for each example.
        error_of_variance = n / (n - 1) * ((bb - b * b) + 4 * a * a * (aa - a * a) - 4 * a * (ab - a * b)) / n
        unit = ((variance + variance_before) / 2).clamp_min(_LEAST_VARIANCE)
        share = _share((a * a / unit).sum(), (error / unit).sum())
        floor = variance.clamp_min(_LEAST_VARIANCE)
        way = floor.log() - variance_before.clamp_min(_LEAST_VARIANCE).log()
        share_of_variance = _share((way * way).sum(), (error_of_variance.clamp_min(0) / floor**2).sum())
        unbiased = variance * self.n_values / max(1, self.n_values - 1)  # as torch's running variance
        return mean_before + share * a, variance_before.lerp(unbiased, share_of_variance)


def _share(squared_way: Tensor, squared_error: Tensor) -> float:
    return (1 - squared_error / squared_way).clamp(0, 1).item() if squared_way > 0 else 0.0


class Observer:
    """Observes the inputs of every BatchNorm of models that run, several copies of one model together."""

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}

    def watch(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Observe every BatchNorm of a model in eval mode; it uses its batch, and its statistics stay as they are."""
        handles = []
        for name, module in batchnorms(model):
            module.training = True  # not `train`: what lies inside stays in eval mode
            module.momentum = 0.0
            handles.append(module.register_forward_pre_hook(self._hook(name)))
        return handles

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, _BatchNorm)
            assert module.running_mean is not None and module.running_var is not None
            if name not in self.moments:
                before = torch.stack([module.running_mean, module.running_var]).double()
                self.moments[name] = Moments(before, before.new_zeros(5, before.shape[1]))
            self.moments[name].add(inputs[0].detach())

        return observe

    def statistics(self) -> dict[str, Tensor]:
        """Return the running means and variances, float32, and counters of batches, by their names in a state dict."""
        found: dict[str, Tensor] = {}
        for name, moments in self.moments.items():
            n_batches = torch.tensor(moments.n_batches, device=moments.sums.device)
            tensors = (*(tensor.float() for tensor in moments.shrunk()), n_batches)
            found |= {f"{name}.{field}" if name else field: t for field, t in zip(STATISTICS, tensors, strict=True)}
        return found


@torch.no_grad()
def refresh_from_few(
    model: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], object]
) -> None:
    """Replace the running statistics of a model in eval mode by those of the batches, as far as they are certain.

    Every batch is normalised by its own statistics, as in `refresh_statistics`. Dropout and the like stay in eval
    mode.
    """
    observer = Observer()
    with _momenta_kept(model):
        handles = observer.watch(model)
        for batch in batches:
            forward(model, batch)
        for handle in handles:
            handle.remove()
    model.eval()
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in observer.statistics().items():
        tensors[name].copy_(tensor)


@contextmanager
def _momenta_kept(model: nn.Module) -> Iterator[None]:
    momenta = [(module, module.momentum) for _, module in batchnorms(model)]
    yield
    for module, momentum in momenta:
        module.momentum = momentum
