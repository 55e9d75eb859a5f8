"""Tells when a validation loss has stopped falling."""

from glue_cli.foundation.state import State

# A relative improvement smaller than this counts as none.
_MIN_IMPROVEMENT = 1e-3


class Plateau:
    """Waits until a loss has not improved `patience` times in a row.

    Args:
        loss: the first one; None if it is not known yet, or not finite.
    """

    def __init__(self, patience: int, loss: float | None = None) -> None:
        self._patience, self._loss, self._n_stale = patience, loss, 0

    def reached(self, loss: float | None) -> bool:
        """Take the next loss, or None for one that is not finite; return whether the plateau is reached."""
        if loss is not None and (self._loss is None or loss < self._loss - _MIN_IMPROVEMENT * abs(self._loss)):
            self._loss, self._n_stale = loss, 0
        else:
            self._n_stale += 1
        return self._n_stale >= self._patience

    def state(self) -> State:
        return {"loss": self._loss, "n_stale": self._n_stale}

    def restore(self, state: State) -> None:
        self._loss, self._n_stale = state["loss"], state["n_stale"]
