"""What `glue evaluate` is asked to do, checked before torch is imported and any data is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data import check_data
from glue_cli.foundation.errors import UsageError
from glue_cli.plans.outputs import Outputs
from glue_cli.running.metrics import BARS, METRICS
from glue_cli.spec.schema import Spec


@dataclass(frozen=True)
class EvaluatePlan:
    """What `glue evaluate` is asked to do.

    Attributes:
        metrics: figures beyond the usual ones, names of `running.metrics.METRICS`.
        bars: a figure's least value, by its name.
        output: a file for the result as JSON, if any; force: whether it may replace one.
    """

    spec: Spec
    checkpoints: tuple[Checkpoint, ...]
    split: Literal["train", "val", "test"]
    metrics: tuple[str, ...]
    bars: dict[str, float]
    output: Path | None
    force: bool = False


def plan_evaluate(
    spec: Spec,
    checkpoints: Sequence[Path],
    split: Literal["train", "val", "test"],
    bars: dict[str, float],
    outputs: Outputs,
    *,
    metrics: Sequence[str] = (),
) -> EvaluatePlan:
    """Check the checkpoints' headers, the metrics, the bars and the output; a metric with a bar is one to evaluate.

    Raises:
        UsageError: a checkpoint is not there, or a metric or a bar is for no figure of this loss.
        CheckpointError: a checkpoint is damaged.
        SpecError, DataError: the data section does not fit the format, or there is no folder of data.
    """
    known, with_bars = METRICS[spec.loss], BARS[spec.loss]
    for name in metrics:
        if name not in known:
            raise UsageError(f"--metric {name}: not known", hint=f"with the loss {spec.loss}: {', '.join(known)}")
    for name in bars:
        if name not in with_bars:
            raise UsageError(
                f"--fail-under {name}: not a figure with a bar",
                hint=f"with the loss {spec.loss}, more is better of {', '.join(with_bars)}",
            )
    metrics = tuple(dict.fromkeys([*metrics, *(name for name in bars if name in known)]))
    found = tuple(read_checkpoint(path) for path in checkpoints)
    outputs.check(found, spec)
    check_data(spec.data, spec.path(spec.data.root))
    return EvaluatePlan(spec, found, split, metrics, bars, outputs.result, outputs.force)
