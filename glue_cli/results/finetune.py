"""`glue.finetune/1`: the result that `glue finetune` writes, the terminal shows and a report reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glue_cli.results.record import WithFigures, spread, where_known


@dataclass(frozen=True, kw_only=True)
class Epoch(WithFigures):
    """An epoch with its figures by name, such as `test_accuracy`; epoch 0 is the model before finetuning."""

    epoch: int
    train_loss: float | None = None
    figures: Mapping[str, float | None] = spread(dict)

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise ValueError(f"epoch {self.epoch}")


def epoch_of(line: Mapping[str, Any]) -> Epoch:
    """Return the record for a line of a training's history, in which figures are keys beside `epoch`."""
    figures = {name: value for name, value in line.items() if name not in ("epoch", "train_loss")}
    return Epoch(epoch=line["epoch"], train_loss=line["train_loss"], figures=figures)


@dataclass(frozen=True, kw_only=True)
class TriedLr:
    """An lr in a trial, and its validation loss: after the last epoch, or the best one if the best epoch is kept."""

    lr: float
    val_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneSteps:
    """The number of steps of all trainings in the trial together, and of the finetuning itself."""

    trial: int = 0
    training: int = 0


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """`glue.finetune/1`.

    Attributes:
        start: the checkpoint that finetuning started from, or "scratch".
        method: the method that blended the start, if its metadata say so.
        lr: the given lr, or the best one of the trial.
        trial: the result of each lr in the trial.
        folds: the number of folds, if folds were used instead of a validation split; the validation figures are then
            those of the folds.
        kept: the epoch whose tensors were written.
    """

    schema: str = field(default="glue.finetune/1", init=False)
    output: str | None = None
    start: str
    examples: int | None = None
    history: list[Epoch]
    lr: float | None = where_known()
    trial: list[TriedLr] = field(default_factory=list)
    folds: int | None = None
    kept: int | None = where_known()
    steps: FinetuneSteps | None = where_known()
    method: str | None = None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    glue: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    threads: int | None = where_known()
    wall_s: float | None = None

    def __post_init__(self) -> None:
        if not self.history:
            raise ValueError("history has no epochs")
