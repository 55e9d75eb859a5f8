"""glue train-expert"""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from glue_cli.cli import options
from glue_cli.cli.output import duration, number, print_table
from glue_cli.cli.session import Session
from glue_cli.cli.signals import holding_signals


def train_expert(
    expert: Annotated[int, typer.Option("--expert", metavar="I", help="Number of the expert, from 0.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="The checkpoint; experts/expert-00I.safetensors by default."
        ),
    ] = None,
    spec: options.SpecOption = None,
    set_: options.SetOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = None,
    seed: options.SeedOption = None,
    history: options.HistoryOption = None,
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    quiet: options.QuietOption = False,
    json: options.JsonOption = False,
) -> None:
    """Train one expert on its own data: its own data set, or its non-IID share of one."""
    session = Session(spec, set_ or (), device, precision, seed, history, force, quiet, json)
    from glue_cli.plans.train_expert import plan_train_expert

    plan = plan_train_expert(session.read_spec(), expert, session.outputs(output))
    if dry_run:
        planned = {
            "expert": plan.expert,
            "name": plan.name,
            "arch": plan.spec.model.arch,
            "epochs": plan.spec.train.epochs,
            "output": str(plan.destination.result),
        }
        session.finish_dry_run("train-expert", planned)
        return
    with session.running() as run:
        with holding_signals():
            from glue_cli.workflows.train_expert import train_expert as work

        result = work(plan, run)
    folder = shlex.quote(str(plan.destination.result.parent))
    session.finish(result, _show, f"when all experts are there: glue mix --method spsa {folder}/*.safetensors")


def _show(result: dict[str, Any]) -> None:
    cells = (result["name"], f"{result['examples']:,}", str(result["epochs"]), number(result["loss"]))
    print_table(("expert", "examples", "epochs", "training loss"), [cells])
    print(f"\nin {duration(result['wall_s'])}, written to {result['output']}")
