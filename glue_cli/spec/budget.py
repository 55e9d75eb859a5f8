"""Parse the budget of a search. Needs no torch."""

import re
from dataclasses import dataclass
from typing import Literal

_UNITS: dict[str, tuple[Literal["forwards", "seconds", "examples"], int]] = {
    "": ("forwards", 1),
    "s": ("seconds", 1),
    "m": ("seconds", 60),
    "h": ("seconds", 3600),
    "ex": ("examples", 1),
}

_MOST = 1e15  # more is a typing error, and would overflow


@dataclass(frozen=True)
class Budget:
    """A limit on a search: forwards of a minibatch (a backward counts as two), examples (likewise), or seconds."""

    limit: float
    unit: Literal["forwards", "seconds", "examples"]


def parse_budget(text: str) -> Budget:
    """Read `300` forwards, `90s`, `2m`, `1.5h`, or `1e6ex` examples.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\+?\d+)?) ?(s|m|h|ex|)", text.strip())
    unit, factor = _UNITS[match[2] if match else ""]
    limit = float(match[1]) * factor if match else 0
    if not 0 < limit <= _MOST:
        raise ValueError(f"'{text}' is no budget: wanted forwards, time or examples, such as 300, 2m or 1e6ex")
    return Budget(limit, unit)


def in_forwards(forwards: int, backwards: int) -> int:
    """Return passes over minibatches counted in forwards: a backward takes about as long as two."""
    return forwards + 2 * backwards
