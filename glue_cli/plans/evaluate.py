"""What `glue evaluate` is asked to do, checked before torch is imported and any data is read."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from glue_cli.blend.adapters.adapter import is_adapter
from glue_cli.blend.misfit import refuse
from glue_cli.blend.quantised import library_of, quantised_model_misfits
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.hub import fetch
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.weight_sets import check_any_has
from glue_cli.data import check_data
from glue_cli.data.model_normalisation import as_models_say
from glue_cli.foundation.errors import UsageError
from glue_cli.models.tasks import check_task
from glue_cli.plans.hub import fetched
from glue_cli.plans.mix_adapters import plan_adapter_alone
from glue_cli.plans.mix_records import Adapters
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.spec_folder import check_folders
from glue_cli.running.metrics import BARS, CEILINGS, METRICS
from glue_cli.spec.schema import Spec


@dataclass(frozen=True)
class EvaluatePlan:
    """What `glue evaluate` is asked to do.

    Attributes:
        checkpoints: whole ones, and adapters of the spec's model.
        adapters: those of the checkpoints, and the baseline, that are adapters, by their paths.
        metrics: figures besides the usual ones; names in `running.metrics.METRICS`.
        bars: the lowest value that a figure may have, by its name.
        output: a file for the result as JSON, if any; force: whether an existing file may be replaced.
    """

    spec: Spec
    checkpoints: tuple[Checkpoint, ...]
    split: Literal["train", "val", "test"]
    metrics: tuple[str, ...]
    bars: dict[str, float]
    ceilings: dict[str, float]
    baseline: Checkpoint | None
    output: Path | None
    junit: Path | None
    force: bool = False
    adapters: Mapping[Path, Adapters] = field(default_factory=dict)


def plan_evaluate(
    spec: Spec,
    checkpoints: Sequence[Path],
    split: Literal["train", "val", "test"],
    bars: dict[str, float],
    outputs: Outputs,
    *,
    metrics: Sequence[str] = (),
    ceilings: Mapping[str, float] | None = None,
    baseline: Path | None = None,
    junit: Path | None = None,
    weights: str | None = None,
) -> EvaluatePlan:
    """Check the checkpoints' headers, the metrics, the bars and the outputs; metrics with a bar are evaluated.

    Args:
        bars: the lowest values that figures may have; ceilings: the highest.
        baseline: a checkpoint that the others must not be worse than.
        junit: a file for the outcome of these checks, as JUnit XML.
        weights: which set of weights to read from a file that has several; None chooses by convention.
    Raises:
        UsageError: a checkpoint does not exist, or a metric or a bar names no figure of this loss.
        CheckpointError: a checkpoint is damaged, or quantised and nothing says by what, or an adapter does not fit the
            spec's model.
        SpecError, DataError: the data section does not fit the format, or no loss the model; or there is no folder of
            data.
    """
    known, ceilings = METRICS[spec.loss], ceilings or {}
    for name in metrics:
        if name not in known:
            raise UsageError(f"--metric {name}: not known", hint=f"with the loss {spec.loss}: {', '.join(known)}")
    _check_demanded("--fail-under", bars, spec.loss, BARS, "more")
    _check_demanded("--fail-over", ceilings, spec.loss, CEILINGS, "less")
    metrics = tuple(dict.fromkeys([*metrics, *(name for name in (*bars, *ceilings) if name in known)]))
    check_task(spec.model.arch)
    spec = fetched(spec)
    adapters: dict[Path, Adapters] = {}

    def read_one(path: Path) -> Checkpoint:
        path = fetch(path)
        if not is_adapter(path):
            checkpoint = read_checkpoint(path, weights)
            if not (library_of(checkpoint) and spec.model.arch.startswith("transformers:")):
                refuse(quantised_model_misfits(checkpoint))
            return checkpoint
        checkpoint, adapters[checkpoint.path] = plan_adapter_alone(path, spec)
        return checkpoint

    evaluated = tuple(read_one(path) for path in checkpoints)
    compared = read_one(baseline) if baseline else None
    read = (*evaluated, *([compared] if compared else []))
    check_any_has(read, weights)
    outputs.check(read, spec)
    if junit:
        replace(outputs, result=junit).check(read, spec, option="--junit")
        if outputs.result and os.path.realpath(junit) == os.path.realpath(outputs.result):
            raise UsageError(f"'{junit}' is both the output and the report", hint="name another --junit")
    check_folders(spec, [checkpoint for checkpoint in read if checkpoint.path not in adapters])
    check_data(spec.data, spec.path(spec.data.root))
    spec = as_models_say(spec, read)
    return EvaluatePlan(
        spec, evaluated, split, metrics, bars, dict(ceilings), compared, outputs.result, junit, outputs.force, adapters
    )


def _check_demanded(
    option: str, demanded: Collection[str], loss: str, known: Mapping[str, Sequence[str]], better: str
) -> None:
    """Check that the demanded figures exist for this loss, and that higher (or lower) values of them are better."""
    for name in demanded:
        if name not in known[loss]:
            raise UsageError(
                f"{option} {name}: no such figure to set a bar for",
                hint=f"with the loss {loss}, {better} is better of {', '.join(known[loss])}",
            )
