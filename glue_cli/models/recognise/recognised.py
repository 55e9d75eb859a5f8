"""The record of a recognised architecture. Needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recognised:
    """An architecture, as the spec's `model` has it, and how its images are prepared.

    Attributes:
        arch, args: `model.arch` and `model.args`.
        source: how it was recognised, for people.
        doubts: what could not be recognised and the user has to check, one line each.
        n_outputs: the number of the head's classes, or of the numbers it predicts; None if it is not known.
        is_regression: whether it says that it predicts numbers.
        image_size: height and width of its images, pixels; None if it takes any size, or no images.
        mean, std: the normalisation of images, one number per channel, white = 1; None if it is not known.
    """

    arch: str
    args: Mapping[str, Any]
    source: str
    doubts: tuple[str, ...] = ()
    n_outputs: int | None = None
    is_regression: bool = False
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def n_numbers(self) -> int | None:
        """How many numbers an example it predicts; None for classes or texts. A single output is no class."""
        return self.n_outputs if self.is_regression or self.n_outputs == 1 else None


def whole(value: Any) -> int | None:
    """Return the value if it is a whole number above zero, else None."""
    return value if type(value) is int and value > 0 else None


def channels(value: Any) -> tuple[float, ...] | None:
    """Return the value as floats if it is a list of finite numbers, one per channel, else None."""
    if not isinstance(value, list | tuple) or not value:
        return None
    is_numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in value)
    return tuple(float(number) for number in value) if is_numbers else None
