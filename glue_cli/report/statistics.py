"""Means and standard deviations over seeds, and a finetuning curve in a few numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

TAIL = 5

Series = Mapping[int, float]  # a figure of merit by epoch; epoch 0 is the prior


@dataclass(frozen=True)
class Stat:
    """The mean over n seeds, their standard deviation, and the standard error of the mean; the last two need n > 1."""

    mean: float
    sd: float | None
    se: float | None
    n: int


@dataclass(frozen=True)
class Point:
    """A curve's value over the seeds at an epoch or a budget."""

    x: int
    y: Stat


@dataclass(frozen=True)
class Measures:
    """A curve in a few numbers: epoch 0, the last epoch, the mean of the last `TAIL`, and of all except epoch 0."""

    prior: Stat | None
    last: Stat | None
    tail: Stat | None
    epochs: Stat | None
    curve: list[Point]


def stat(values: Iterable[float | None]) -> Stat | None:
    """Return the statistics of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = stdev(known) if len(known) > 1 else None
    return Stat(fmean(known), sd, sd / len(known) ** 0.5 if sd is not None else None, len(known))


def measure(series: Iterable[Series]) -> Measures:
    """Return the measures of one method's curves, one curve per seed."""
    known = [s for s in series if s]
    finetuned = [[s[epoch] for epoch in sorted(s) if epoch > 0] for s in known]
    return Measures(
        stat(s.get(0) for s in known),
        stat(values[-1] for values in finetuned if values),
        stat(fmean(values[-TAIL:]) for values in finetuned if values),
        stat(fmean(values) for values in finetuned if values),
        _curve(known),
    )


def _curve(series: Sequence[Series]) -> list[Point]:
    points = ((x, stat(s.get(x) for s in series)) for x in sorted({x for s in series for x in s}))
    return [Point(x, y) for x, y in points if y]
