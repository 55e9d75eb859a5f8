"""glue report"""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from glue_cli.cli.output import number, print_lines, print_table
from glue_cli.cli.session import Session, with_session


@with_session(without=("spec", "set_", "device", "precision", "seed", "history", "dry_run", "resume", "save_every"))
def report(
    session: Session,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Histories, JSON results, earlier reports; other files are passed over."),
    ],
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Title of the page; the runs' names by default.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the report goes.")] = Path(
        "report"
    ),
) -> None:
    """Make tables and figures of what the other commands wrote: a page in HTML, Markdown and JSON, SVG and PNG.

    A file belongs to the row and the seed that its folder names: ROW/seed-0.
    """
    from glue_cli.report.write_report import plan_report
    from glue_cli.report.write_report import report as work

    plan = plan_report(files, output, force=session.force, title=title)
    with session.running() as run:
        result = work(plan, run.progress)
    session.finish(result, _show, f"open {shlex.quote(str(output / 'report.html'))}")


def _show(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        merit = row["merit"]
        digits = merit["digits"] if merit else 0
        measures = ("prior", "last", "tail", "epochs")
        rows = []
        for method in row["methods"]:
            stats = [method["merit"][name] for name in measures]
            cells = [number(stat["mean"] if stat else None, digits) for stat in stats]
            rows.append([method["name"], str(len(method["seeds"])), *cells])
        what = f"{row['row']}, {merit['name']} {merit['unit']}".strip() if merit else row["row"]
        print_table([what, "seeds", "prior", "last epoch", "last five", "all epochs"], rows)
        print()
    print_lines(f"written to {result['output']}: {', '.join(result['files'])}")
