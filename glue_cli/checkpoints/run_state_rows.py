"""A run's state in several files, one from each machine of a job, where no machine has all of it.

Each has the rows that the processes of one machine hold of the tensors that are dealt out, and everything else whole.
They lie beside the state, and whoever sees all of one moment can put it together.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from glue_cli.checkpoints.run_state import SavedState, moment_of, processes_of, read_state, rows_files
from glue_cli.foundation.errors import GlueError
from glue_cli.foundation.json_text import as_json
from glue_cli.foundation.state import State, part_of, prefixed

_ROWS = "rows"  # what precedes the names of tensors of which a file has only rows

Parts = Mapping[range, Path]  # the files of one moment, by the processes that wrote them


def with_rows(others: State, rows: State) -> State:
    """Return the state of which a machine has only rows of some tensors."""
    return others | prefixed(_ROWS, rows)


def read_furthest(file: Path) -> SavedState | None:
    """Return the state in `file`, or one by rows that is further on; None if there is neither.

    Raises:
        CheckpointError: the file is damaged.
    """
    n_whole = moment_of(file)[0] if file.exists() else -1
    n_made, parts = max(_moments(file), key=lambda found: found[0], default=(-1, {}))
    if n_made > n_whole:
        return _put_together(parts)
    return read_state(file) if n_whole >= 0 else None


def _moments(file: Path) -> list[tuple[int, Parts]]:
    """Return the moments all of whose rows lie beside `file`, and how far on each is."""
    found: dict[tuple[int, int, str], dict[range, Path]] = {}
    for path in rows_files(file):
        try:
            n_made, identity = moment_of(path)
        except GlueError:  # it is damaged: that moment is lost
            continue
        processes, size = processes_of(path)
        found.setdefault((n_made, size, as_json(identity)), {})[processes] = path
    return [(n_made, parts) for (n_made, size, _), parts in found.items() if _has_all(parts, size)]


def _has_all(parts: Parts, size: int) -> bool:
    return sorted(number for processes in parts for number in processes) == [*range(size)]


def _put_together(parts: Parts) -> SavedState:
    saved = [read_state(parts[processes]) for processes in sorted(parts, key=lambda processes: processes.start)]
    pieces = [part_of(each.state, _ROWS) for each in saved]
    others = {name: value for name, value in saved[0].state.items() if not name.startswith(f"{_ROWS}.")}
    first, names = replace(saved[0], state={}), [*pieces[0]]
    del saved  # so that each tensor is there twice only while it is put together
    return replace(first, state=others | {name: torch.cat([piece.pop(name) for piece in pieces]) for name in names})
