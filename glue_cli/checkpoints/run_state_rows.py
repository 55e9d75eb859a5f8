"""A run's state in several files, one from each machine of a job, where no machine has all of it.

Each has the rows that the processes of one machine hold of the tensors that are dealt out, and everything else whole.
They lie beside the state, and whoever sees all of one moment can put it together.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from glue_cli.checkpoints.run_state import SavedState, processes_of, read_state, rows_files
from glue_cli.foundation.errors import GlueError
from glue_cli.foundation.json_text import as_json
from glue_cli.foundation.state import State, part_of, prefixed

_ROWS = "rows"  # what precedes the names of tensors of which a file has only rows

Moment = tuple[int, int, str]  # how many processes there were, how far on they were, and in which run


def with_rows(others: State, rows: State) -> State:
    """Return the state of which a machine has only rows of some tensors."""
    return others | prefixed(_ROWS, rows)


def read_furthest(file: Path) -> SavedState | None:
    """Return the state in `file`, or one by rows that is further on; None if there is neither.

    Raises:
        CheckpointError: the file is damaged.
    """
    states = [read_state(file) if file.exists() else None, _put_together(file)]
    return max((saved for saved in states if saved), key=lambda saved: saved.n_made, default=None)


def _put_together(file: Path) -> SavedState | None:
    """Return the state that is furthest on, of those all of whose rows lie beside `file`; None if there is none."""
    moments: dict[Moment, dict[range, SavedState]] = {}
    for path in rows_files(file):
        try:
            saved = read_state(path)
        except GlueError:  # it is damaged: that moment is lost
            continue
        processes, size = processes_of(path)
        moments.setdefault((size, saved.n_made, as_json(saved.identity)), {})[processes] = saved
    whole = [_whole(found) for (size, *_), found in moments.items() if _has_all(found, size)]
    return max(whole, key=lambda saved: saved.n_made, default=None)


def _has_all(found: Mapping[range, SavedState], size: int) -> bool:
    return sorted(number for processes in found for number in processes) == [*range(size)]


def _whole(found: Mapping[range, SavedState]) -> SavedState:
    in_order = [found[processes] for processes in sorted(found, key=lambda processes: processes.start)]
    pieces = [part_of(saved.state, _ROWS) for saved in in_order]
    rows = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    others = {name: value for name, value in in_order[0].state.items() if not name.startswith(f"{_ROWS}.")}
    return replace(in_order[0], state=others | rows)
