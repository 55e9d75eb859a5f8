"""`glue.train-expert/1`: the result that `glue train-expert` writes, the terminal shows and a report reads."""

from dataclasses import dataclass, field
from typing import Any

from glue_cli.results.record import where_known


@dataclass(frozen=True, kw_only=True)
class TrainExpertResult:
    """`glue.train-expert/1`.

    Attributes:
        loss: the mean training loss over the last epoch.
        class_counts: the number of examples of each class; None if the data has no classes.
    """

    schema: str = field(default="glue.train-expert/1", init=False)
    output: str
    expert: int | None = None
    name: str | None = None
    examples: int | None = None
    epochs: int | None = None
    loss: float | None = None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    glue: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    threads: int | None = where_known()
    wall_s: float | None = None
    class_counts: list[int] | None = where_known()
