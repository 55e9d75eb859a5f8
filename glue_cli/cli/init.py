"""glue init"""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from glue_cli.cli.next_command import mix_command
from glue_cli.cli.output import print_lines
from glue_cli.cli.session import Session, with_session
from glue_cli.foundation.errors import UsageError


@with_session(without=("spec", "set_", "device", "precision", "seed", "history", "dry_run", "resume", "save_every"))
def init(
    session: Session,
    experts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="EXPERT",
            help="Checkpoints: .safetensors or .pt files, indexes, Hugging Face folders, LoRA adapters.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="The data of the domain that you want to serve.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", metavar="", help="Print the JSON schema of the spec, for editors, and exit.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The spec.")] = Path("glue.yaml"),
) -> None:
    """Write a commented glue.yaml for experts and data: what can be found, and the choices for what cannot."""
    from glue_cli.plans.init import plan_init, schema_text

    if schema:
        print(schema_text(), end="")
        return
    if not experts or data is None:
        raise UsageError(
            "glue init wants experts, and the folder of the data", hint="glue init experts/*.safetensors --data FOLDER"
        )
    plan = plan_init(experts, data, output, force=session.force)
    with session.running() as run:
        from glue_cli.workflows.init.init import init as work

        result = work(plan, run)
    session.finish(result, _show, _next(result, experts, output))


def _next(result: dict[str, Any], experts: list[Path], output: Path) -> str:
    from glue_cli.models.tasks import lacks_loss

    if result["model"] and lacks_loss(result["model"]["arch"]):
        return mix_command(experts, method="uniform")
    command = mix_command(experts, *([] if output == Path("glue.yaml") else ["--spec", shlex.quote(str(output))]))
    return f"choose in {output} what is left open, then {command}" if result["open"] else command


def _show(result: dict[str, Any]) -> None:
    model, data = result["model"], result["data"]
    counts = ", ".join(f"{n:,} {split}" for split, n in data["examples"].items()) if data else ""
    of_data = data["format"] + (f" ({counts})" if counts else "") if data else "nothing tells the format"
    print_lines(
        f"model: {model['arch'] if model else 'nothing tells the architecture'}",
        f"data: {of_data}",
        *(f"choose: {key}" for key in result["open"]),
        *(f"check: {doubt}" for doubt in result["doubts"]),
        f"written to {result['output']}, its schema to {result['schema_file']}",
    )
