"""BatchNorm's statistics computed anew from data, by one process or several.

Every batch is normalised by its own statistics, and dropout and the like stay in eval mode. What each batch gives is
added in float64 in the order of the batches: the same bits however many processes share them.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glue_cli.foundation.batchnorm_names import VARIANCE
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.batchnorm import batchnorms, statistics_of
from glue_cli.running.forward import Batch
from glue_cli.running.moments import layers_of, observing, shrunk_statistics

# So many batches are shared out before what they give is exchanged: few exchanges, and only so many rows in memory.
_ROUND = 64
_FIELDS = ("running_mean", VARIANCE)

_ONE_VALUE = "Expected more than 1 value per channel"  # what torch says

Forward = Callable[[nn.Module, Batch], object]


class SumOverBatches:
    """The sum of rows of numbers, one from each batch, over batches that processes share.

    Args:
        ranks: the processes; every one has to be given the same batches.
    Attributes:
        total: float64 on the CPU, once a round is over; n: the number of batches.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.total, self.n = torch.zeros(0, dtype=torch.float64), 0
        self._ranks = ranks or Ranks()
        self._own: list[Tensor] = []  # of the batches of this round
        self._n_in_round = 0

    def rounds(self, batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
        """Yield this process's batches, round by round; each one's row has to be added in its round."""
        remaining = iter(batches)
        while True:
            yield self._share(remaining)
            if not self._n_in_round:
                return
            self._add_up()

    def add(self, row: Tensor) -> None:
        """Add the row of a batch."""
        self._own.append(row)

    def _share(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield this process's batches of a round, and count all of them."""
        place, self._n_in_round = self._ranks.place, 0
        for batch in islice(batches, _ROUND):
            if self._n_in_round % place.size == place.rank:
                yield batch
            self._n_in_round += 1

    def _add_up(self) -> None:
        size, n = self._ranks.size, self._n_in_round
        found = self._ranks.gather(self._own)
        numbers = [number for rank in range(size) for number in range(rank, n, size)]
        for number in sorted(range(n), key=numbers.__getitem__):
            wide = found[number].double()
            self.total = wide if not self.n else self.total + wide
            self.n += 1
        self._own = []


@torch.no_grad()
def refresh_statistics(
    model: nn.Module, batches: Iterable[Batch], forward: Forward, ranks: Ranks | None = None
) -> None:
    """Replace the running statistics of a model in eval mode by the mean over batches, by forward passes alone.

    Each time that a layer runs has the same weight, as in `torch.optim.swa_utils.update_bn`; one that never runs keeps
    what it has.

    Args:
        ranks: the processes that share the batches; each one's model gets the statistics.
    Source: section 3 of the paper, "refreshing BatchNorm statistics".
    """
    modules = [module for _, module in batchnorms(model)]
    momenta, rows = [module.momentum for module in modules], SumOverBatches(ranks)
    before = {name: tensor.clone() for name, tensor in statistics_of(model).items()}
    for module in modules:
        module.momentum = None  # a cumulative mean
        module.training = True  # not `train`: what lies inside, such as timm's dropout, stays in eval mode
    for own in rows.rounds(batches):
        for batch in own:
            for module in modules:
                module.reset_running_stats()
            _forward(forward, model, batch)
            rows.add(torch.cat([torch.zeros(0), *map(_times_run, modules)]))
    sums = torch.split(rows.total, [len(_times_run(module)) for module in modules])
    for (name, module), momentum, found in zip(batchnorms(model), momenta, sums, strict=True):
        assert module.num_batches_tracked is not None
        n_runs, total = found[0], found[1:].view(len(_FIELDS), -1)
        for field, mean in zip(_FIELDS, total / n_runs, strict=True):
            old = before[f"{name}.{field}" if name else field]
            getattr(module, field).copy_(mean if n_runs else old)
        module.num_batches_tracked.fill_(int(n_runs))
        module.momentum = momentum
    model.eval()


def _forward(forward: Forward, model: nn.Module, batch: Batch) -> None:
    """Run a forward pass.

    Raises:
        DataError: a layer gets one value a channel, which have no variance.
    """
    try:
        forward(model, batch)
    except ValueError as error:
        if _ONE_VALUE not in str(error):
            raise
        raise DataError(
            "a BatchNorm gets one value a channel, of which there are no statistics",
            hint="take more than one example (data.target.train, the batch size), or --batchnorm average",
        ) from error


def _times_run(module: _BatchNorm) -> Tensor:
    """Return how often a layer has run since its statistics were reset, and as many times those: float64, CPU."""
    assert module.num_batches_tracked is not None
    n_runs = module.num_batches_tracked.detach().double().cpu().view(1)
    return torch.cat([n_runs, *(getattr(module, field).detach().double().cpu() * n_runs for field in _FIELDS)])


@torch.no_grad()
def refresh_from_few(model: nn.Module, batches: Iterable[Batch], forward: Forward, ranks: Ranks | None = None) -> None:
    """Move the running statistics of a model in eval mode towards those of the batches, as far as they are certain.

    Args:
        ranks: as of `refresh_statistics`.
    """
    rows = SumOverBatches(ranks)
    for own in rows.rounds(batches):
        for batch in own:
            with observing(model) as moments:
                _forward(forward, model, batch)
            rows.add(moments.row)
    statistics = statistics_of(model)
    for name, tensor in shrunk_statistics(layers_of(model), rows.total).items():
        statistics[name].copy_(tensor)
