"""glue train-expert"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glue_cli.cli.next_command import mix_command_beside
from glue_cli.cli.output import number, print_lines, print_table
from glue_cli.cli.session import Session, with_session
from glue_cli.cli.signals import holding_signals
from glue_cli.foundation.units import duration

if TYPE_CHECKING:
    from glue_cli.results.train_expert import TrainExpertResult


@with_session()
def train_expert(
    session: Session,
    expert: Annotated[int, typer.Option("--expert", metavar="I", help="Number of the expert, from 0.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="The checkpoint; experts/expert-00I.safetensors by default."
        ),
    ] = None,
) -> None:
    """Train one expert on its own data: its own data set, or its non-IID share of one."""
    from glue_cli.plans.train_expert import plan_train_expert

    plan = plan_train_expert(session.read_spec(), expert, session.outputs(output))
    if session.dry_run:
        planned = {
            "expert": plan.expert,
            "name": plan.name,
            "arch": plan.spec.model.arch,
            "epochs": plan.spec.train.epochs,
            "output": str(plan.destination.result),
        }
        session.finish_dry_run("train-expert", planned)
        return
    with session.running(shared=True) as run:
        with holding_signals():
            from glue_cli.workflows.train_expert import described_in_full
            from glue_cli.workflows.train_expert import train_expert as work

        is_finished = session.is_finished(plan.destination.result, lambda: described_in_full(plan, run), run)
        result = None if is_finished else work(plan, run)
    if result is None:
        session.finish_again("glue.train-expert/1", plan.destination.result)
        return
    session.finish(result, _show, f"when all experts are there: {mix_command_beside(plan.destination.result)}")


def _show(result: "TrainExpertResult") -> None:
    cells = (str(result.name), f"{result.examples:,}", str(result.epochs), number(result.loss))
    print_table(("expert", "examples", "epochs", "training loss"), [cells])
    print_lines("", f"in {duration(result.wall_s or 0)}, written to {result.output}")
