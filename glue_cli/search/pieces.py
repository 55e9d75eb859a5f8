"""Parts of a step's work: some of its blends on some of the rows of its minibatch."""

from collections.abc import Mapping
from dataclasses import dataclass

from glue_cli.running.forward import Batch

_ALL = slice(None)


@dataclass(frozen=True)
class Piece:
    """Blends number `blends` of a step on the rows `rows` of its minibatch."""

    rows: slice
    blends: slice

    def of(self, batch: Batch) -> Batch:
        """Return the piece's rows of a minibatch."""
        inputs, targets = batch
        if isinstance(inputs, Mapping):
            return {name: tensor[self.rows] for name, tensor in inputs.items()}, targets[self.rows]
        return inputs[self.rows], targets[self.rows]

    def count(self, n_blends: int) -> int:
        """Return how many blends the piece has, of a step with n of them."""
        return len(range(*self.blends.indices(n_blends)))


WHOLE = (Piece(_ALL, _ALL),)
