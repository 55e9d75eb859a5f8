"""Find the histories and results among the given files; their `schema` tells which they are."""

import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.regular_files import read_text
from glue_cli.foundation.units import counted

RESULTS = ("glue.train-expert/1", "glue.mix/1", "glue.finetune/1", "glue.evaluate/1")
HISTORY = "glue.history/1"
REPORT = "glue.report/1"

# How many steps of a longer search are kept, in addition to those with a validation loss: more than a figure can show.
_MAX_STEPS = 200
_SEED_FOLDER = re.compile(r"(?:(?P<row>.+)[-_.])?seed[-_.]?(?P<seed>\d+)")


class Source(BaseModel):
    """A result (one object) or a history (one object per line).

    Attributes:
        path: the file that it was read from, for errors.
        row, seed: the experiment and the seed that it belongs to, as its folder tells.
        name: the file's name.
    """

    model_config = ConfigDict(frozen=True)

    path: str = Field(exclude=True)
    row: str
    seed: int | None
    name: str
    objects: list[dict[str, Any]] = Field(min_length=1)

    @property
    def schema_name(self) -> str:
        return str(self.objects[0].get("schema"))


def read_sources(paths: Sequence[Path], progress: Progress) -> list[Source]:
    """Read every history, result and earlier report among the files; ignore the others, and report their number.

    Raises:
        DataError: files are damaged, or there is no history or result among them.
    """
    sources: list[Source] = []
    damaged, empty = [], []
    n_others = 0
    for path in paths:
        if path.is_dir() or path.suffix not in (".json", ".jsonl"):
            n_others += 1
            continue
        try:
            text = read_text(path)
            if not text.strip():  # the history of a method without steps is empty too
                empty += [str(path)] * (path.suffix == ".json")
                continue
            read = _read_history(path, text) if path.suffix == ".jsonl" else _read_result(path, text)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            damaged.append(f"{path}: {reason_of(error)}")
            continue
        sources += read
        n_others += not read
    if damaged:
        raise DataError("these files are damaged", items=damaged, hint="write them again, or leave them out")
    if empty:
        which = ", ".join(empty)
        progress(Noted(f"these files are empty; their commands are running or have failed: {which}", warning=True))
    if not sources and (folders := [path for path in paths if path.is_dir()]):
        named = ", ".join(f"'{folder}'" for folder in folders)
        are = "is a folder" if len(folders) == 1 else "are folders"
        raise DataError(
            f"none of the files is a history or a result of glue, and {named} {are}",
            hint=f"give the files within: glue report {shlex.quote(str(folders[0]))}/*",
        )
    if not sources:
        raise DataError(
            "none of the files is a history or a result of glue",
            hint="write some with --history FILE.jsonl and --json >FILE.json, then glue report FILE...",
        )
    if n_others:
        progress(Noted(f"ignored {counted(n_others, 'file')} without a history or result"))
    return _with_seeds(sources)


def reason_of(error: Exception) -> str:
    """Return in a few words what is wrong with a file."""
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"no text at byte {error.start}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        if first["type"] == "value_error":  # raised by a record itself
            return str(first["ctx"]["error"])
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)


def _read_result(path: Path, text: str) -> list[Source]:
    value = json.loads(text)
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema == REPORT:
        return [Source(path=f"{path}, {source['name']}", **source) for source in value["sources"]]
    if schema not in RESULTS or value.get("passed_over"):  # the latter says only that its output was there
        return []
    row, seed = _row_and_seed(path)
    return [Source(path=str(path), row=row, seed=seed, name=path.name, objects=[value])]


def _read_history(path: Path, text: str) -> list[Source]:
    lines = text.splitlines()
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            objects.append(json.loads(line))
        except ValueError:
            if number == len(lines) and not text.endswith("\n"):
                break  # the command is writing this line, or was stopped while it did
            raise ValueError(f"no JSON at line {number}") from None
        if not isinstance(objects[-1], dict):
            raise ValueError(f"no object at line {number}")
    if not objects or objects[0].get("schema") != HISTORY:
        return []
    row, seed = _row_and_seed(path)
    return [Source(path=str(path), row=row, seed=seed, name=path.name, objects=_thinned(objects))]


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that a figure needs: at most about `_MAX_STEPS`, the validations, and the last one."""
    stride = math.ceil(lines[-1].get("step", 0) / _MAX_STEPS)
    if stride <= 1:
        return lines
    return [
        line
        for line in lines
        if line is lines[-1] or line.get("val_loss") is not None or line.get("step", 0) % stride == 0
    ]


def _row_and_seed(path: Path) -> tuple[str, int | None]:
    """Return the row and the seed that a file's folder names: `ROW/seed-0`, `ROW-seed-0`, or just `ROW`."""
    folder = Path(os.path.abspath(path)).parent
    match = _SEED_FOLDER.fullmatch(folder.name)
    return (match["row"] or folder.parent.name, int(match["seed"])) if match else (folder.name, None)


def _with_seeds(sources: list[Source]) -> list[Source]:
    """Give each source whose folder names no seed the only seed of its row, or else the seed that it records.

    The row's seed has precedence because a blend without a search records a seed that had no effect, and that may be
    the default. For the same reason such blends do not count when the seeds of a row are collected.
    """
    seeds_of: dict[str, set[int]] = {}
    for source in sources:
        seed = source.seed if source.seed is not None else _recorded_seed(source)
        if seed is not None and (source.schema_name != "glue.mix/1" or "steps" in source.objects[0]):
            seeds_of.setdefault(source.row, set()).add(seed)

    def find(source: Source) -> int | None:
        seeds = seeds_of.get(source.row, set())
        return next(iter(seeds)) if len(seeds) == 1 else _recorded_seed(source)

    return [s if s.seed is not None else s.model_copy(update={"seed": find(s)}) for s in sources]


def _recorded_seed(source: Source) -> int | None:
    seed = source.objects[0].get("seed")
    return seed if type(seed) is int else None
