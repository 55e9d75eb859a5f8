"""The state of work that can be interrupted and continued: a flat mapping of names to tensors, numbers, strings, None.

Taking a state copies nothing: its tensors may be the ones in use. Code that keeps a state has to copy them, or write
them to a file, before the work continues. A part whose figures are not finite says so with `GOOD: False`: such a state
is not worth keeping, since the work will end there. Needs no torch.
"""

from collections.abc import Callable
from typing import Any

State = dict[str, Any]
GOOD = "is_good"
# Called between two steps with a function that returns the current state. If it raises an exception, the work ends.
SaveState = Callable[[Callable[[], State]], None]


def save_nothing(state: Callable[[], State]) -> None:
    """Keep no state: the `SaveState` of work that is not to be continued."""


def prefixed(prefix: str, state: State) -> State:
    """Return the state of a part with the names `prefix.name`, under which the state of the whole holds it."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def part_of(state: State, prefix: str) -> State:
    """Return the state of a part from the state of the whole; the inverse of `prefixed`."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}


def list_state(prefix: str, items: list[State]) -> State:
    """Return the states of a list's items under the names `prefix.0.name`, `prefix.1.name` and so on."""
    return {key: value for i, item in enumerate(items) for key, value in prefixed(f"{prefix}.{i}", item).items()}


def list_of(state: State, prefix: str) -> list[State]:
    """Return the states of a list's items from the state of the whole; the inverse of `list_state`."""
    items: dict[int, State] = {}
    for name, value in part_of(state, prefix).items():
        number, _, rest = name.partition(".")
        items.setdefault(int(number), {})[rest] = value
    return [items[i] for i in range(len(items))]


def is_good(state: State) -> bool:
    """Tell whether no part of a state says that its figures are not finite."""
    return all(value for name, value in state.items() if name.rpartition(".")[2] == GOOD)
