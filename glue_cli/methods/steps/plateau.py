"""When a validation loss has stopped falling."""

from glue_cli.foundation.state import State

# A smaller relative improvement counts as none.
_MIN_IMPROVEMENT = 1e-3


class Plateau:
    """Waits for a loss to stay level `patience` times running.

    Args:
        loss: where it starts from; None where that is not known yet.
    """

    def __init__(self, patience: int, loss: float | None = None) -> None:
        self._patience, self._loss, self._n_stale = patience, loss, 0

    def reached(self, loss: float) -> bool:
        """Take the next loss; return whether it is a plateau by now."""
        if self._loss is None or loss < self._loss - _MIN_IMPROVEMENT * abs(self._loss):
            self._loss, self._n_stale = loss, 0
        else:
            self._n_stale += 1
        return self._n_stale >= self._patience

    def state(self) -> State:
        return {"loss": self._loss, "n_stale": self._n_stale}

    def restore(self, state: State) -> None:
        self._loss, self._n_stale = state["loss"], state["n_stale"]
