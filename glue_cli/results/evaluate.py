"""`glue.evaluate/1`: the result that `glue evaluate` writes, the terminal shows and a report reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glue_cli.results.record import WithFigures, spread, where_known


@dataclass(frozen=True, kw_only=True)
class EvaluatedCheckpoint(WithFigures):
    """A checkpoint's figures on one split, by name, such as `loss` and `accuracy`.

    Attributes:
        weights: the name of the evaluated set of weights if the file has several.
        class_accuracy: the accuracy of each class, by its name.
    """

    checkpoint: str
    split: str
    examples: int | None = None
    weights: str | None = where_known()
    figures: Mapping[str, float | None] = spread(dict)
    class_accuracy: Mapping[str, float | None] | None = where_known()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A demand on a checkpoint's figure, and whether the checkpoint met it.

    Attributes:
        demand: `under`, `over` or `compare`, for the option `--fail-under`, `--fail-over` or `--compare`.
        value: the checkpoint's figure.
        bar: the limit for it; with `compare`, the baseline's figure.
        standard_error: with `compare`, that of the difference, paired by example; None otherwise.
        text: the demand and the figure, for people.
    """

    checkpoint: str
    demand: str
    figure: str
    value: float | None
    bar: float | None
    standard_error: float | None = where_known()
    missed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """`glue.evaluate/1`.

    Attributes:
        baseline: the checkpoint that the others are compared with.
        gates: all demands.
        missed: one line for each demand that a checkpoint missed.
    """

    schema: str = field(default="glue.evaluate/1", init=False)
    results: list[EvaluatedCheckpoint]
    seed: int | None = None
    glue: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    threads: int | None = where_known()
    baseline: EvaluatedCheckpoint | None = where_known()
    gates: list[Gate] | None = where_known()
    missed: list[str] = field(default_factory=list)
