"""What a long piece of work says while it runs; who listens decides whether and how to show it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Started:
    """A task begins: `total` units of work, None when unknown."""

    task: str
    total: int | None
    unit: str


@dataclass(frozen=True)
class Advanced:
    """`done` units of the running task are done; `figures` are the latest readings, such as the loss."""

    done: int
    figures: Mapping[str, float] = field(default_factory=dict)
    alpha: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Finished:
    """The running task ended well."""


@dataclass(frozen=True)
class Noted:
    """Something that the user should know, in one line."""

    text: str
    warning: bool = False


Event = Started | Advanced | Finished | Noted
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Listen to nothing."""
