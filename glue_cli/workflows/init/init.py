"""Write a spec for the experts and the data that were recognised."""

from pathlib import Path
from typing import Any

from glue_cli.checkpoints.classes import class_names_of
from glue_cli.data.recognise.recognise import recognise_data
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.output_files import write_all, writing
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.models.recognise.recognise import recognise
from glue_cli.models.tasks import writes_text
from glue_cli.plans.init import InitPlan, schema_text
from glue_cli.workflows.init.agreement import find_doubts
from glue_cli.workflows.init.text import spec_text


def init(plan: InitPlan, run: Run) -> dict[str, Any]:
    """Look at the experts and the data, and write `glue.yaml` and its JSON schema; return what `--json` prints.

    Raises:
        DataError: the data are damaged.
        ResourceError: the files cannot be written.
    """
    folder = plan.output.parent
    model = recognise(plan.models, folder)
    try:
        data = recognise_data(
            plan.data,
            run.cache,
            for_writing=model is not None and writes_text(model.arch),
            n_numbers=model.n_numbers if model else None,
        )
    except SpecError as error:  # from a library that reads them and is not installed
        data = None
        run.progress(Noted(f"the data were not looked at: {error.message}; {error.hint}", warning=True))
    doubts = find_doubts(model, data, class_names_of(plan.models[0]))
    if model is None and plan.lacking_base:
        doubts = (plan.lacking_base, *doubts)
    root = plan.data / (data.within if data else "")
    spec = spec_text(plan, model, data, doubts)
    _write(plan.output, spec.text, replace=plan.force)
    _write(plan.schema_file, schema_text(), replace=True)  # its text is always the same
    return {
        "schema": "glue.init/1",
        "output": str(plan.output),
        "schema_file": str(plan.schema_file),
        "model": {"arch": model.arch, "args": dict(model.args)} if model else None,
        "data": {"format": data.format, "root": str(root), "examples": dict(data.counts)} if data else None,
        "open": list(spec.open),
        "doubts": list(doubts),
    }


def _write(path: Path, text: str, *, replace: bool) -> None:
    with writing(path, replace=replace) as descriptor:
        write_all(descriptor, text.encode(errors="backslashreplace"), 0)
