"""What was found of a checkpoint's architecture. Needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recognised:
    """An architecture, as the spec's `model` says it, and how its images are prepared.

    Attributes:
        arch, args: `model.arch` and `model.args`.
        source: how it was found, for people.
        doubts: what nothing told and the user has to check, a line each.
        n_outputs: the classes of its head; None where that is not known.
        image_size: height and width of its images, pixels; None where it takes any, or none.
        mean, std: a number a channel, in units of white = 1; None where nothing says them.
    """

    arch: str
    args: Mapping[str, Any]
    source: str
    doubts: tuple[str, ...] = ()
    n_outputs: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def whole(value: Any) -> int | None:
    """Return a whole number above zero as it is, and None for anything else."""
    return value if type(value) is int and value > 0 else None


def channels(value: Any) -> tuple[float, ...] | None:
    """Return a list of finite numbers, one a channel, and None for anything else."""
    if not isinstance(value, list | tuple) or not value:
        return None
    is_numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in value)
    return tuple(float(number) for number in value) if is_numbers else None
