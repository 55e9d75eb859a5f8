"""Read the commands' results and histories, summarise them, draw the figures, and write the report."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glue_cli import __version__
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.json_text import as_json
from glue_cli.foundation.output_files import check_output, check_output_folder, writing
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.regular_files import is_there
from glue_cli.report import figures, tables
from glue_cli.report.document import Document, Picture, Section, Table
from glue_cli.report.render import as_html, as_markdown
from glue_cli.report.sort import Repetition, sort_sources
from glue_cli.report.sources import REPORT, read_sources
from glue_cli.report.summary import RowSummary, summarise

_INSTALL = "pip install 'glue-cli[plot]'"
_PAGES = ("report.html", "report.md", "report.json")
_TERMS = (
    "The prior is the blend before any finetuning. Figures of merit are averaged over the seeds. A difference is "
    "taken seed by seed; it is negative if the first method is worse than the second."
)


@dataclass(frozen=True)
class ReportPlan:
    """What `glue report` is asked to do.

    Attributes:
        output: the folder that the report is written to.
        title: the report's title; None for the names of the rows.
    """

    files: tuple[Path, ...]
    output: Path
    force: bool
    title: str | None


def plan_report(files: Sequence[Path], output: Path, *, force: bool, title: str | None) -> ReportPlan:
    """Check that the files exist and that the report can be written.

    Raises:
        UsageError: a file does not exist; an output exists without `force`, or is an input.
        ResourceError: the output folder cannot be written.
    """
    missing = [str(path) for path in files if not is_there(path)]
    if missing:
        raise UsageError("these files do not exist", items=missing, hint="check the paths")
    check_output_folder(output, [], force=True)  # other files in the folder do not matter
    plan = ReportPlan(tuple(files), output, force, title)
    _check_outputs(plan, _PAGES)
    return plan


def report(plan: ReportPlan, progress: Progress) -> dict[str, Any]:
    """Write the report; return what `--json` prints: the summary without its sources.

    Raises:
        UsageError: a figure's file exists, or is an input.
        DataError: files are damaged or contradict each other, or none holds a history or result.
        ResourceError: the report cannot be written.
    """
    sources = read_sources(plan.files, progress)
    repetitions_of = sort_sources(sources)
    rows = [summarise(row, repetitions) for row, repetitions in repetitions_of.items()]
    can_draw = figures.has_matplotlib()
    named = zip(rows, figures.file_names(list(repetitions_of)), strict=True)
    pictures = [figures.draw(row, repetitions_of[row.row], name) if can_draw else [] for row, name in named]
    paragraphs = [_TERMS]
    if not can_draw:
        progress(Noted(f"matplotlib is not installed, so there are no figures: {_INSTALL}", warning=True))
        paragraphs.append(f"There are no figures, since matplotlib was not installed: {_INSTALL}.")
    title = plan.title or f"glue report: {', '.join(repetitions_of)}"
    sections = [_section(row, repetitions_of[row.row], drawn) for row, drawn in zip(rows, pictures, strict=True)]
    document = Document(title, paragraphs, sections)
    all_drawn = [picture for drawn in pictures for picture in drawn]
    names = [*_PAGES, *(f"{picture.name}.{kind}" for picture in all_drawn for kind in ("svg", "png"))]
    result = {
        "schema": REPORT,
        "glue": __version__,
        "title": title,
        "files": names,
        "rows": [_row_as_json(row) for row in rows],
    }
    whole = {**result, "sources": [source.model_dump() for source in sources]}
    contents = [as_html(document), as_markdown(document), f"{as_json(whole)}\n"]
    texts = [text.encode(errors="replace") for text in contents]
    images = [data for picture in all_drawn for data in (picture.svg.encode(), picture.png)]
    _check_outputs(plan, names)
    _write(plan.output, dict(zip(names, [*texts, *images], strict=True)), replace=plan.force)
    return {**result, "output": str(plan.output)}


def _check_outputs(plan: ReportPlan, names: Sequence[str]) -> None:
    inputs = [path for path in plan.files if path.is_file()]
    for name in names:
        check_output(plan.output / name, inputs, force=plan.force)


def _write(folder: Path, contents: Mapping[str, bytes], *, replace: bool) -> None:
    """Write all files under temporary names, then rename them, the page last, so that it never lacks its figures."""
    with ExitStack() as stack:
        for name, data in contents.items():
            descriptor = stack.enter_context(writing(folder / name, replace=replace))
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)


def _section(row: RowSummary, repetitions: Sequence[Repetition], pictures: Sequence[Picture]) -> Section:
    names = {method.label: method.style.name for method in row.methods}
    merit = row.merit
    drawn = {picture.name.rpartition("-")[2]: picture for picture in pictures}
    parts: dict[str, list[Table | Picture | None]] = {
        "Before and after finetuning": [
            drawn.get("accuracy"),
            drawn.get("variants"),
            *(tables.of_merit(row, merit) if merit else []),
        ],
        "The choice of alpha": [drawn.get("alpha"), tables.alphas(repetitions, names), drawn.get("loss")],
        "Cost": [drawn.get("cost"), tables.costs(row)],
        "Settings and experts": [tables.settings(repetitions), tables.hashes(repetitions)],
    }
    sections = [
        Section(title, blocks=present)
        for title, blocks in parts.items()
        if (present := [block for block in blocks if block is not None])
    ]
    return Section(row.row, row.notes, sections=sections)


def _row_as_json(row: RowSummary) -> dict[str, Any]:
    summary = asdict(row)
    for method in summary["methods"]:
        method["name"] = method.pop("style")["name"]
    return summary
