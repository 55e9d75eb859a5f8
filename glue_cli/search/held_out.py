"""The loss of blends, as they would be written, on examples that were not used to make them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, starmap

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.forward import Batch
from glue_cli.running.means import ExampleSums
from glue_cli.search.criterion import Criterion
from glue_cli.search.protocol import WrittenBlend
from glue_cli.search.sharing import gathered_sums

Charge = Callable[[Tensor], None]  # is called with the targets of every forward


@dataclass(frozen=True)
class FixedBatches:
    """Batches that can be iterated over repeatedly, always the same, and their number."""

    again: Callable[[], Iterable[Batch]]
    n: int

    def first(self, n: int) -> "FixedBatches":
        """Return the first n of them."""
        return FixedBatches(lambda: islice(self.again(), n), n)


class Judge:
    """Judges one blend after the other, each as it would be written; `blend` is the last one.

    Args:
        ranks: the processes that share the batches; every one has to judge the same blends.
    """

    def __init__(self, blend: WrittenBlend, criterion: Criterion, ranks: Ranks | None = None) -> None:
        self.blend, self._criterion, self._ranks = blend, criterion, ranks or Ranks()

    def load(self, alpha: Tensor, refreshing: FixedBatches | None, charge: Charge) -> None:
        """Set the blend to alpha [G, K], with statistics of BatchNorm from the batches `refreshing` if given."""
        self.blend.load(alpha)
        if refreshing:
            self.blend.refresh(charged(refreshing.again(), charge), self._ranks)

    @torch.no_grad()
    def terms(self, batches: FixedBatches, charge: Charge) -> list[ExampleSums]:
        """Return the terms of the criterion for the blend, batch by batch."""
        own = self._ranks.share(batches.n)
        mine = (batch for number, batch in enumerate(charged(batches.again(), charge)) if number in own)
        return gathered_sums(list(starmap(self._sum_up, self.blend.outputs(mine))), self._ranks)

    def _sum_up(self, outputs: Tensor, targets: Tensor) -> ExampleSums:
        return ExampleSums.of(self._criterion.terms(outputs, targets), targets)


def charged(batches: Iterable[Batch], charge: Charge) -> Iterator[Batch]:
    """Yield the batches, and charge a forward for each."""
    for batch in batches:
        charge(batch[1])
        yield batch


@dataclass(frozen=True)
class Part:
    """Examples to judge blends by, and others to compute BatchNorm's statistics from; the two do not overlap."""

    judged: FixedBatches
    refreshing: FixedBatches


class HeldOut:
    """Judges blends as they would be written, on parts of the examples.

    With many examples there is one part: the validation data, and training data to refresh statistics from. With few,
    each fold is a part, which judges a blend whose alpha and statistics come from the other folds.
    """

    def __init__(self, judge: Judge, parts: Sequence[Part]) -> None:
        self._judge, self._parts = judge, parts
        self.n_batches = sum(part.judged.n for part in parts)

    def terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None, charge: Charge) -> Tensor:
        """Return the held-out terms of a blend, [N], float64; see `Objective.written_terms`."""
        sums: list[ExampleSums] = []
        for number, (part, n_judged) in enumerate(self._shared_out(n_batches)):
            refreshing = part.refreshing if statistics == "refreshed" else None
            self._judge.load(alphas if alphas.dim() == 2 else alphas[number], refreshing, charge)
            sums += self._judge.terms(part.judged.first(n_judged), charge)
        return ExampleSums.join(sums).shares

    def n_forwards(self, statistics: Statistics, n_batches: int | None = None) -> int:
        """Return how many forwards `terms` makes."""
        parts = self._shared_out(n_batches)
        return sum(n + (part.refreshing.n if statistics == "refreshed" else 0) for part, n in parts)

    def _shared_out(self, n_batches: int | None) -> list[tuple[Part, int]]:
        """Return the parts that the first batches belong to, each with its number of these batches."""
        left, shares = self.n_batches if n_batches is None else n_batches, []
        for part in self._parts:
            if left > 0:
                shares.append((part, min(left, part.judged.n)))
                left -= part.judged.n
        return shares
