"""glue evaluate"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from glue_cli.cli import completion
from glue_cli.cli.options import WeightsOption
from glue_cli.cli.output import number, percent, print_lines, print_table
from glue_cli.cli.session import Session, check_name, with_session
from glue_cli.cli.signals import holding_signals
from glue_cli.foundation.errors import GateMissedError, GlueError, UsageError

if TYPE_CHECKING:
    from glue_cli.results.evaluate import EvaluateResult

_EXAMPLES = {"--fail-under": "accuracy=0.9", "--fail-over": "loss=0.5"}
# The lowest and the highest value that a figure can have, and how to say so; of others, any number.
_RANGES = {
    **dict.fromkeys(("accuracy", "f1", "precision", "recall", "auroc"), (0.0, 1.0, "between 0 and 1")),
    "r2": (-math.inf, 1.0, "at most 1"),
    **dict.fromkeys(("loss", "mse", "mae"), (0.0, math.inf, "at least 0")),
    "perplexity": (1.0, math.inf, "at least 1"),
}
SPLITS = ("train", "val", "test")


@with_session(without=("history", "resume", "save_every"))
def evaluate(
    session: Session,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT", help="The models to evaluate, or LoRA adapters of the spec's model."),
    ],
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="|".join(SPLITS),
            help="Which of the target's examples.",
            autocompletion=completion.one_of(SPLITS),
        ),
    ] = "test",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            autocompletion=completion.metrics,
            help="Another figure: f1, precision, recall or auroc, each the mean over the classes (repeatable).",
        ),
    ] = None,
    by_class: Annotated[
        bool, typer.Option("--by-class", metavar="", help="Print the accuracy of each class too.")
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="FIGURE=BAR",
            help="Exit with 6 when a checkpoint is under the bar.",
            autocompletion=completion.bars,
        ),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-over",
            metavar="FIGURE=BAR",
            help="Exit with 6 when a checkpoint is over the bar.",
            autocompletion=completion.ceilings,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="BASELINE",
            help="Exit with 6 when a checkpoint is worse than this one by more than two standard errors, "
            "paired by example.",
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Also write how that came out, as JUnit's XML for CI."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Also write the result there, as JSON.")
    ] = None,
    weights: WeightsOption = None,
) -> None:
    """Print loss and accuracy (or squared error, or perplexity) of checkpoints on the target's data."""
    from glue_cli.plans.evaluate import plan_evaluate

    check_name("--split", split, SPLITS)
    bars, ceilings = _bars("--fail-under", fail_under or ()), _bars("--fail-over", fail_over or ())
    known_split = cast(Literal["train", "val", "test"], split)
    with _reporting_errors(junit, checkpoints, session):
        plan = plan_evaluate(
            session.read_spec(),
            checkpoints,
            known_split,
            bars,
            session.outputs(output),
            metrics=metric or (),
            ceilings=ceilings,
            baseline=compare,
            junit=junit,
            weights=weights,
        )
        if by_class and plan.spec.loss == "mse":
            raise UsageError("--by-class is for labels, and loss: mse is for numbers", hint="leave it out")
    if session.dry_run:
        planned = {
            "checkpoints": len(plan.checkpoints),
            "split": plan.split,
            "arch": plan.spec.model.arch,
        }
        session.finish_dry_run("evaluate", planned)
        return
    with _reporting_errors(junit, checkpoints, session), session.running(shared=True) as run:
        with holding_signals():
            from glue_cli.workflows.evaluate import evaluate as work

        result = work(plan, run)
    session.finish(result, _show_with_classes if by_class else _show)
    if result.missed:
        said = {"compare": "a checkpoint is worse than the baseline"}
        what = dict.fromkeys(said.get(gate.demand, "the bar was missed") for gate in result.gates or () if gate.missed)
        hint = "train or mix the model anew, or move the limit if the figures may fall"
        raise GateMissedError(" and ".join(what), items=result.missed, hint=hint)


@contextmanager
def _reporting_errors(junit: Path | None, checkpoints: Sequence[Path], session: Session) -> Iterator[None]:
    """Say in the report for CI why there is no outcome, unless a file is in the way.

    With --force, the report of an earlier call is replaced: it would pass for this call's.
    """
    try:
        yield
    except Exception as error:
        if junit and session.is_first and not session.dry_run:
            from glue_cli.foundation.output_files import write_all, writing
            from glue_cli.results.junit import is_junit, junit_text_of_error

            is_old = session.force and is_junit(junit)
            if is_old or not junit.exists():
                with suppress(GlueError, OSError), writing(junit, replace=is_old) as descriptor:
                    write_all(descriptor, junit_text_of_error(list(map(str, checkpoints)), error), 0)
        raise


def _bars(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Return the bar of each figure."""
    bars = [_bar(option, text) for text in texts]
    names = [name for name, _ in bars]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{option}: '{twice[0]}' has {names.count(twice[0])} bars", hint="give it one")
    return dict(bars)


def _bar(option: str, text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        bar = float(value)
    except ValueError:
        bar = math.nan
    if not math.isfinite(bar):
        raise UsageError(
            f"{option} {text}: wanted FIGURE=BAR, where the bar is a number", hint=f"for example {_EXAMPLES[option]}"
        )
    lowest, highest, said = _RANGES.get(name, (-math.inf, math.inf, ""))
    if not lowest <= bar <= highest:
        is_percent = highest == 1 and 2 <= bar <= 100
        wanted = f"did you mean {name}={bar / 100:g}?" if is_percent else f"for example {_EXAMPLES[option]}"
        raise UsageError(f"{option} {text}: {name} is {said}", hint=wanted)
    return name, bar


def _show(result: "EvaluateResult") -> None:
    names = list(result.results[0].figures)
    rows = []
    for evaluation in (*result.results, *([result.baseline] if result.baseline else [])):
        cells = [percent(value) if name == "accuracy" else number(value) for name, value in evaluation.figures.items()]
        rows.append([evaluation.checkpoint, evaluation.split, f"{evaluation.examples:,}", *cells])
    print_table(["checkpoint", "split", "examples", *names], rows)
    if gates := [gate for gate in result.gates or () if gate.demand == "compare"]:
        print_lines("", *(f"{gate.checkpoint}: {gate.text}" for gate in gates))


def _show_with_classes(result: "EvaluateResult") -> None:
    _show(result)
    by_checkpoint = [evaluation.class_accuracy for evaluation in result.results if evaluation.class_accuracy]
    names = dict.fromkeys(name for accuracies in by_checkpoint for name in accuracies)
    if not names:
        return
    paths = [Path(evaluation.checkpoint) for evaluation in result.results]
    stems = [path.stem for path in paths]
    columns = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    print()
    rows = [[name, *(percent(accuracies.get(name)) for accuracies in by_checkpoint)] for name in names]
    print_table(["class", *columns], rows)
