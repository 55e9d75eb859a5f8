"""When a run saves its state, and whether it goes on from one. Needs no torch."""

import re
from dataclasses import dataclass

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class SaveEvery:
    """How often a state is saved: every so many seconds, or steps; one of the two."""

    seconds: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Saving:
    """What the user wants of states.

    Attributes:
        resumes: whether a run goes on from the state that an earlier one has left.
        every: None for every 30 s, or less often where saving would take more than 2 % of the time.
    """

    resumes: bool = False
    every: SaveEvery | None = None


def parse_save_every(text: str) -> SaveEvery:
    """Read `30s`, `10m`, `1.5h`, or `500` steps.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?) ?(s|m|h|)", text.strip())
    number, unit = (found[1], found[2]) if found else ("0", "")
    if float(number) == 0 or not unit and "." in number:
        raise ValueError(f"'{text}' is no time and no number of steps: wanted one such as 30s, 10m or 500")
    return SaveEvery(seconds=float(number) * _UNITS[unit]) if unit else SaveEvery(steps=int(number))
