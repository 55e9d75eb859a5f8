"""What the map's results say: means by place, wins and losses against each rival, and steps that a start saves."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from cells import FAMILIES
from rivals import DEFAULT, RANDOM_EXPERTS, SCRATCH, START

Row = dict[str, Any]
WON, LEVEL, LOST = "won", "level", "lost"
ERRORS = 2  # a difference within so many of its standard errors is level


@dataclass(frozen=True)
class Found:
    """A finished cell: its place, and its lines by method."""

    group: str
    family: str
    start: str
    labels: int
    seed: int
    rows: Mapping[str, Row]

    @property
    def place(self) -> tuple[str, str, int]:
        return self.group, self.start, self.labels

    @property
    def without_experts(self) -> str:
        """The rival that uses no expert: the pretrained start, or a random one, trained on the target."""
        return START if START in self.rows else SCRATCH

    def figure(self, stage: str, method: str, name: str) -> float | None:
        """Return a figure of a method, None where the cell does not have it."""
        figures = self.rows.get(method, {}).get(stage, {})
        return figures.get(name)


def read_found(results: Path) -> list[Found]:
    """Read all finished cells, in the order of families, starts, labels and seeds."""
    by_cell: dict[tuple[str, str, int, int], dict[str, Row]] = defaultdict(dict)
    for path in sorted(results.glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            by_cell[row["family"], row["start"], row["labels"], row["seed"]][row["method"]] = row
    order = [family.name for family in FAMILIES]
    keys = sorted(by_cell, key=lambda key: (order.index(key[0]), key[1] != "random", *key[2:]))
    return [Found(group_of(key[0]), *key, by_cell[key]) for key in keys]


def group_of(family: str) -> str:
    """Return what a family is shown as: reviews of all domains are one."""
    return family.split("-")[0]


def by_place(cells: Iterable[Found]) -> dict[tuple[str, str, int], list[Found]]:
    """Return the cells by group, start and labels."""
    places: dict[tuple[str, str, int], list[Found]] = defaultdict(list)
    for cell in cells:
        places[cell.place].append(cell)
    return dict(places)


def mean_of(cells: Sequence[Found], stage: str, method: str, name: str) -> tuple[float, float | None] | None:
    """Return the mean of a figure over cells and the standard error of that, or None where a cell does not have it."""
    values = [cell.figure(stage, method, name) for cell in cells]
    known = [value for value in values if value is not None]
    return mean_and_error(known) if len(known) == len(cells) else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def verdict(beyond: float, error: float, *, more_is_better: bool) -> str:
    """Judge the default by what a rival's figure is beyond its own."""
    if abs(beyond) <= ERRORS * error:
        return LEVEL
    return LOST if (beyond > 0) == more_is_better else WON


def zero_shot_verdicts(cells: Iterable[Found]) -> dict[str, Counter[str]]:
    """Count, for each rival, the cells in which the default's loss on the test split is less, level or more."""
    return _verdicts(cells, "zero_shot", "loss", more_is_better=False)


def finetuned_verdicts(cells: Iterable[Found]) -> dict[str, Counter[str]]:
    """Count, for each rival, the cells in which the default's accuracy after finetuning is more, level or less."""
    return _verdicts(cells, "finetuned", "accuracy", more_is_better=True)


def _verdicts(cells: Iterable[Found], stage: str, name: str, *, more_is_better: bool) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in cells:
        for method in cell.rows.keys() - {DEFAULT}:
            beyond = cell.figure(stage, method, f"{name}_beyond")
            error = cell.figure(stage, method, f"{name}_standard_error")
            if beyond is not None and error is not None:
                counts[method][verdict(beyond, error, more_is_better=more_is_better)] += 1
    return dict(counts)


@dataclass(frozen=True)
class Behind:
    """How often the default's loss is above a rival's by more than two standard errors, and at most by how much.

    Attributes:
        n: the number of comparisons.
    """

    n: int
    n_behind: int
    most: float

    @classmethod
    def of(cls, compared: Iterable[tuple[float, float]]) -> "Behind":
        """Count, given what each rival's loss is beyond the default's, and the standard error of that."""
        pairs = [*compared]
        lost = [-beyond for beyond, error in pairs if verdict(beyond, error, more_is_better=False) == LOST]
        return cls(len(pairs), len(lost), max(lost, default=0.0))


def behind(cells: Iterable[Found]) -> Behind:
    """Compare with every rival in every cell; the standard errors are those of the test examples."""
    return Behind.of(pair for cell in cells for pair in _compared(cell).values())


def behind_over_seeds(cells: Iterable[Found]) -> Behind:
    """Compare with every rival by the mean over the seeds of a family, start and labels, if there are several.

    The standard errors are those between the seeds, which also draw the labels.
    """
    by_seed: dict[tuple[str, str, int], list[Found]] = defaultdict(list)
    for cell in cells:
        by_seed[cell.family, cell.start, cell.labels].append(cell)
    means = []
    for seeds in by_seed.values():
        compared = [_compared(cell) for cell in seeds]
        for rival in compared[0]:
            mean, error = mean_and_error([one[rival][0] for one in compared if rival in one])
            if error is not None:
                means.append((mean, error))
    return Behind.of(means)


def _compared(cell: Found) -> dict[str, tuple[float, float]]:
    """Return what each rival's loss is beyond the default's, and the standard error of that; controls are left out."""
    found = {}
    for method in cell.rows.keys() - {DEFAULT, RANDOM_EXPERTS}:
        beyond = cell.figure("zero_shot", method, "loss_beyond")
        error = cell.figure("zero_shot", method, "loss_standard_error")
        if beyond is not None and error is not None:
            found[method] = beyond, error
    return found


def harm_verdicts(cells: Iterable[Found]) -> Counter[str]:
    """Count the cells in which finetuning has made the default's own prior more, as or less accurate."""
    counts: Counter[str] = Counter()
    for cell in cells:
        prior = cell.rows[DEFAULT].get("prior_beyond_finetuned")
        if prior is None:
            continue
        beyond, error = prior["accuracy_beyond"], prior["accuracy_standard_error"]
        counts[verdict(beyond, error, more_is_better=True)] += 1
    return counts


def steps_to(row: Row, bar: float) -> float | None:
    """Return after how many steps of finetuning the accuracy on the test split is at a bar; None if it never is."""
    accuracies = row["finetuned"]["test_accuracy"]
    for epoch, accuracy in enumerate(accuracies):
        if accuracy >= bar:
            return epoch * row["finetuned"]["steps"] / (len(accuracies) - 1)
    return None


def savings(cells: Iterable[Found], method: str) -> Iterator[float]:
    """Yield, of each cell, the share of steps that a start needs to be where training without experts ends.

    That is Mashup Learning's measure: the steps to the accuracy that the rival without experts has after its last
    epoch, as a share of the steps that the rival itself takes to be there; infinite where it is never reached.
    """
    for cell in cells:
        if not {cell.without_experts, method} <= cell.rows.keys():  # a method that is newer than the cell
            continue
        rival = cell.rows[cell.without_experts]
        bar = rival["finetuned"]["test_accuracy"][-1]
        own, needed = steps_to(rival, bar), steps_to(cell.rows[method], bar)
        if own:
            yield math.inf if needed is None else needed / own


def median_saving(cells: Sequence[Found], method: str) -> float | None:
    shares = list(savings(cells, method))
    return median(shares) if shares else None
