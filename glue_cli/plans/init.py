"""What `glue init` is asked to do, checked before the data are read."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_cli.blend.adapters.adapter import CONFIG, Adapter, is_adapter, read_adapter
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data import FORMATS
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.output_files import check_output
from glue_cli.foundation.printable import shown
from glue_cli.foundation.regular_files import read_text
from glue_cli.foundation.user_code import PREFIX
from glue_cli.models import architecture_forms
from glue_cli.models.tasks import OF_ADAPTERS
from glue_cli.spec.goal import GOALS
from glue_cli.spec.json_schema import json_schema

SCHEMA_FILE = "glue.schema.json"  # written beside the spec, for editors

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class InitPlan:
    """What `glue init` is asked to do.

    Attributes:
        paths: the experts, as the user gave them.
        models: their headers; for an adapter, the header of its base if that is on this disk.
        lacking_base: what to tell where the first expert is an adapter whose base is not; else None.
        data: the folder with the target's data.
        output: the file for the spec; schema_file: the file for its JSON schema, beside it.
        force: whether to replace a spec that was created in the meantime.
    """

    paths: tuple[Path, ...]
    models: tuple[Checkpoint, ...]
    lacking_base: str | None
    data: Path
    output: Path
    schema_file: Path
    force: bool


def plan_init(paths: Sequence[Path], data: Path, output: Path, *, force: bool) -> InitPlan:
    """Read the experts' headers, and check the folder of data and the outputs.

    Raises:
        UsageError: an expert or the folder does not exist, or an output exists without `force`.
        CheckpointError: an expert is damaged.
    """
    if not data.is_dir():
        problem = "is a file" if data.exists() else "does not exist"
        raise UsageError(f"--data {data}: {problem}", hint="name the folder with the target's data")
    models = tuple(_read_model(path) for path in paths)
    schema_file = output.with_name(SCHEMA_FILE)
    inputs = [*paths, *(file for model in models for file in model.files)]
    check_output(output, inputs, force=force)
    check_output(schema_file, inputs, force=force or _holds(schema_file, schema_text()))
    return InitPlan(tuple(paths), models, _lacking_base(paths[0]), data, output, schema_file, force)


def spec_schema() -> dict[str, Any]:
    """Return the JSON schema of the spec, with the architectures and formats that glue knows."""
    goals = [*GOALS, f"{PREFIX}MODULE:FUNCTION"]
    return json_schema({"arch": architecture_forms(), "format": list(FORMATS), "objective": goals})


def schema_text() -> str:
    return json.dumps(spec_schema(), indent=2) + "\n"


def _holds(path: Path, text: str) -> bool:
    try:
        return read_text(path) == text
    except (OSError, UnicodeDecodeError):
        return False


def _read_model(path: Path) -> Checkpoint:
    if not is_adapter(path):
        return read_checkpoint(path)
    adapter = read_adapter(path)
    base = _base_of(adapter)
    return read_checkpoint(base) if base else adapter.checkpoint


def _base_of(adapter: Adapter) -> Path | None:
    """Return the folder of an adapter's base: from the current folder, or in or beside the adapter's; None if none."""
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    folders = [folder / named for folder in (Path(), adapter.path, adapter.path.parent)]
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _lacking_base(path: Path) -> str | None:
    """Return what to tell of an adapter whose base is not found; None for anything else."""
    if not is_adapter(path) or _base_of(adapter := read_adapter(path)):
        return None
    named, task = adapter.config.get("base_model_name_or_path"), str(adapter.config.get("task_type"))
    if not isinstance(named, str) or not named:
        return f"model: {adapter.path / CONFIG} names no base: write into the spec which it is"
    arch = f"transformers:{OF_ADAPTERS.get(task, 'CLASS')}"
    hub = f", or with hf:{named} if it is on the Hub" if _HUB_NAME.fullmatch(named) else ""
    return (
        f"model: the adapters' base '{shown(named)}', which {adapter.path / CONFIG} names, is not found here: "
        f"write model: {{arch: '{arch}', args: {{path: FOLDER}}}} with its folder{hub}"
    )
