"""The rows that blends are written to, and the models bound to them, shared by all blends of one bank."""

from collections.abc import Callable, Collection, Hashable

import torch
from torch import Tensor, nn

from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.bound_models import bind


class BlendRows:
    """Rows of d float32, and models whose tensors are views of one row each.

    Blends with running statistics, with those of the batch, in either precision and as written are never used at the
    same time, so that they share the rows; each kind has models of its own.

    Args:
        model: the architecture, on the device; tensors outside the bank are shared with it.
        made: the names of tensors that each bound model has of its own.
    """

    def __init__(self, model: nn.Module, bank: ExpertBank, made: Collection[str]) -> None:
        self._model, self._bank, self._made = model, bank, made
        self._rows = torch.empty(0, bank.n_columns, device=bank.device)
        self._bound: dict[tuple[Hashable, int], nn.Module] = {}

    def take(self, m: int) -> Tensor:
        """Return the first m rows, [m, d], with whatever was written to them last."""
        if m > len(self._rows):
            self._bound.clear()
            self._rows = self._rows.new_empty(0)  # frees the memory before new rows are made
            self._rows = torch.empty(m, self._bank.n_columns, device=self._bank.device)
        return self._rows[:m]

    def model(self, kind: Hashable, row: int, prepare: Callable[[nn.Module], None]) -> nn.Module:
        """Return the model of a kind that is bound to a row.

        Args:
            prepare: changes a newly bound model into one of this kind.
        """
        self.take(row + 1)
        if (kind, row) not in self._bound:
            bound = bind(self._model, self._bank.spans, self._rows[row], self._made)
            prepare(bound)
            self._bound[kind, row] = bound
        return self._bound[kind, row]
