"""How the processes of a job share the forwards of a step: a piece is some of the step's blends on some of its rows.

A minibatch is cut into slices of equal size, and the forwards of all blends on all slices are dealt out in blocks.
Where each blend is judged by itself, all slices of the first blend come first, then those of the next: a process makes
no blend but its own. The steps of Gauss-Newton need the outputs at one blend beside those at the others, so there all
blends on the first slice come first: a process that has all blends of a slice computes that one once. How a minibatch
is cut depends on its size alone, never on the number of processes, so that each forward gives the same bits wherever
it runs; what they found is gathered and added up in the order of the examples.

Where BatchNorm uses the statistics of the batch, nothing is cut, since a slice has others than the whole: the blends
alone are dealt out. Exchanging the statistics of every layer instead would take longer than it saves: on two cores,
52 layers of MobileNetV2 times 1.7 ms, against 52 ms for half a minibatch (examples/benchmarks/ranks.py).
"""

from collections.abc import Sequence

from torch import Tensor

from glue_cli.foundation.ranks import Ranks
from glue_cli.running.means import ExampleSums
from glue_cli.search.pieces import WHOLE, Piece

# A minibatch has two slices, or as many as make slices of so many examples. With 64 examples, two slices take 0.8 to
# 1.0 times as long as one forward of ResNet-20, MobileNetV2 or a small ViT on one CPU core (MobileNetV2 in bfloat16:
# 1.3 times), and four take MobileNetV2 1.4 times as long.
_SLICE = 64
_FEWEST_SLICES = 2


class Sharing:
    """Which pieces are this process's, and what those of all processes have found.

    Args:
        is_cut: whether minibatches may be cut; without a launcher they never are.
    """

    def __init__(self, ranks: Ranks, *, is_cut: bool) -> None:
        self.ranks, self._is_cut = ranks, is_cut and ranks.place.is_launched

    def pieces(self, n_rows: int, n_blends: int) -> list[Piece]:
        """Return this process's pieces of a step with so many blends on so many rows: slice by slice."""
        slices = self._slices(n_rows)
        own = self.ranks.share(len(slices) * n_blends)
        pieces = []
        for number, rows in enumerate(slices):
            first, last = (min(max(edge - number * n_blends, 0), n_blends) for edge in (own.start, own.stop))
            if first < last:
                pieces.append(Piece(rows, slice(first, last)))
        return pieces

    def by_blend(self, found: Sequence[Tensor], n_blends: int) -> list[list[Tensor]]:
        """Return what was found for each blend, slice by slice.

        Args:
            found: a tensor for each blend of each of this process's pieces.
        """
        of_all = self.ranks.gather(found)
        return [of_all[blend::n_blends] for blend in range(n_blends)]

    def blends_first(self, n_rows: int, n_blends: int) -> Sequence[Piece]:
        """Return this process's pieces of a step whose blends are judged each by itself: blend by blend."""
        if not self.ranks.place.is_launched:
            return WHOLE
        every = [Piece(rows, slice(blend, blend + 1)) for blend in range(n_blends) for rows in self._slices(n_rows)]
        own = self.ranks.share(len(every))
        return every[own.start : own.stop]

    def in_blends(self, found: Sequence[Tensor], n_blends: int) -> list[list[Tensor]]:
        """As `by_blend`, for the pieces of `blends_first`."""
        of_all = self.ranks.gather(found)
        n_slices = len(of_all) // n_blends
        return [of_all[first : first + n_slices] for first in range(0, len(of_all), n_slices)]

    def _slices(self, n_rows: int) -> list[slice]:
        n = min(n_rows, max(_FEWEST_SLICES, n_rows // _SLICE)) if self._is_cut else 1
        return [slice(number * n_rows // n, (number + 1) * n_rows // n) for number in range(n)]


def gathered_sums(sums: Sequence[ExampleSums], ranks: Ranks) -> list[ExampleSums]:
    """Return the sums of the batches of all processes, those of the first process first."""
    of_all = ranks.gather([tensor for one in sums for tensor in (one.sums, one.counts)])
    return [ExampleSums(*pair) for pair in zip(of_all[::2], of_all[1::2], strict=True)]
