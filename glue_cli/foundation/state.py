"""The state of work that can stop and go on: one flat mapping of names to tensors, numbers, strings and None.

A state is cheap to take: its tensors may be those at work. Whoever keeps one copies them, or writes them to a file,
before the work goes on. Needs no torch.
"""

from collections.abc import Callable
from typing import Any

State = dict[str, Any]
# Called between two steps with a function that returns the state there. An exception that it raises ends the work.
Checkpoint = Callable[[Callable[[], State]], None]


def no_checkpoint(state: Callable[[], State]) -> None:
    """Keep no state."""


def prefixed(prefix: str, state: State) -> State:
    """Return the state of a part under the names that it has in the state of the whole, `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def part_of(state: State, prefix: str) -> State:
    """Return the state of a part, which `prefixed` has put into the state of the whole."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}


def list_state(prefix: str, items: list[State]) -> State:
    """Return the states of a list's items under the names `prefix.0.name`, `prefix.1.name` and so on."""
    return {key: value for i, item in enumerate(items) for key, value in prefixed(f"{prefix}.{i}", item).items()}


def list_of(state: State, prefix: str) -> list[State]:
    """Return the states of a list's items, which `list_state` has put into the state of the whole."""
    items: dict[int, State] = {}
    for name, value in part_of(state, prefix).items():
        number, _, rest = name.partition(".")
        items.setdefault(int(number), {})[rest] = value
    return [items[i] for i in range(len(items))]
