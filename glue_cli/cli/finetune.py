"""glue finetune"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glue_cli.cli import completion
from glue_cli.cli.options import WeightsOption
from glue_cli.cli.output import number, percent, print_lines, print_table
from glue_cli.cli.session import Session, with_session
from glue_cli.cli.signals import holding_signals
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.units import duration

if TYPE_CHECKING:
    from glue_cli.results.finetune import FinetuneResult


@with_session()
def finetune(
    session: Session,
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CHECKPOINT", help="Where to start from.")] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", metavar="", help="Start from the spec's initialisation, without a checkpoint."),
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(
            "--track",
            metavar="test",
            help="Also record test figures by epoch; they select nothing.",
            autocompletion=completion.one_of(["test"]),
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The finetuned model.")] = Path(
        "finetuned.safetensors"
    ),
    weights: WeightsOption = None,
) -> None:
    """Train all parameters on the target data, starting from a prior."""
    from glue_cli.plans.finetune import plan_finetune

    if (checkpoint is None) != from_scratch:
        raise UsageError("wanted either a checkpoint or --from-scratch", hint="glue finetune prior.safetensors")
    if track not in (None, "test"):
        raise UsageError(f"--track {track}: not known", hint="--track test; val is always recorded")
    if weights is not None and from_scratch:
        raise UsageError("--weights is for a checkpoint to start from", hint="leave it out, or name a checkpoint")
    plan = plan_finetune(
        session.read_spec(), checkpoint, session.outputs(output), track_test=track == "test", weights=weights
    )
    if session.dry_run:
        planned = {
            "start": str(checkpoint) if checkpoint else "scratch",
            "arch": plan.spec.model.arch,
            "epochs": plan.spec.finetune.epochs,
            "output": str(plan.destination.result),
        }
        session.finish_dry_run("finetune", planned)
        return
    with session.running(shared=True) as run:
        with holding_signals():
            from glue_cli.workflows.finetune import described_in_full
            from glue_cli.workflows.finetune import finetune as work

        is_finished = session.is_finished(plan.destination.result, lambda: described_in_full(plan, run), run)
        result = None if is_finished else work(plan, run)
    if result is None:
        session.finish_again("glue.finetune/1", plan.destination.result)
        return
    session.finish(result, _show, f"glue evaluate {shlex.quote(str(output))}")


def _show(result: "FinetuneResult") -> None:
    names = list(result.history[-1].figures)
    rows = []
    for epoch in result.history:
        values = [epoch.figures[name] for name in names]  # those of before a stop are in another order
        cells = [
            percent(value) if name.endswith("accuracy") else number(value)
            for name, value in zip(names, values, strict=True)
        ]
        rows.append([str(epoch.epoch), number(epoch.train_loss), *cells])
    print_table(["epoch", "training loss", *(name.replace("_", " ") for name in names)], rows)
    assert result.lr is not None
    kept = f"epoch {result.kept} is kept" if result.kept else "the start is kept"
    print_lines("", f"lr {result.lr:g}; {kept}")
    print_lines(f"from {result.start} in {duration(result.wall_s or 0)}, written to {result.output}")
