"""The one account that all methods share."""

from dataclasses import dataclass


@dataclass
class Cost:
    """What a search has spent, in passes over a minibatch; `forwards` includes those for validation."""

    forwards: int = 0
    validation_forwards: int = 0
    backwards: int = 0
    examples: int = 0

    @property
    def equivalents(self) -> int:
        """Forwards, with a backward counted as two."""
        return self.forwards + 2 * self.backwards
