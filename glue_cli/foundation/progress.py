"""The events that a long piece of work reports while it runs; the listener decides whether and how to show them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Started:
    """A task begins; `total` is its number of units of work, None if that is not known."""

    task: str
    total: int | None
    unit: str


@dataclass(frozen=True)
class Advanced:
    """`done` units of the running task are done; `figures` are the latest values, such as the loss."""

    done: int
    figures: Mapping[str, float] = field(default_factory=dict)
    alpha: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Finished:
    """The running task has ended without an error."""


@dataclass(frozen=True)
class Noted:
    """A message to the user, in one line."""

    text: str
    warning: bool = False


Event = Started | Advanced | Finished | Noted
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event: the listener that shows nothing."""
