"""Runs that can be stopped: a later run continues from the state that is saved, or finds its output finished."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.run_state import (
    SavedState,
    differences,
    flat,
    forget_run,
    holding_state,
    is_saved,
    remove_rows,
    remove_state,
    rows_files,
    state_file,
    write_state,
)
from glue_cli.checkpoints.run_state_rows import read_furthest
from glue_cli.foundation.errors import GlueError, UsageError
from glue_cli.foundation.json_text import as_json
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.run import Run
from glue_cli.foundation.stopping import Stopped
from glue_cli.workflows.keeper import Keeper

# Of an output's metadata: what has to be as in this run, and what of that only the run itself has found.
_COMPARED, _FOUND = ("recipe.", "inputs."), ("recipe.refreshed", "recipe.base")


@contextmanager
def keeping(output: Path, run: Run) -> Iterator[Keeper]:
    """Hold the state of the run that makes `output`, and remove it when the output is written.

    Of several processes, the first one holds and removes it; the others read it, or their own if they share no disk.

    Raises:
        ResourceError: another running process holds the state.
        CheckpointError: the state is damaged.
        Stopped: by a signal; the exception says where the state is, if there is one.
    """
    is_first = run.ranks.is_first
    with holding_state(output) if is_first else nullcontext(state_file(output)) as file:
        saved = None
        if is_saved(file):
            if run.saving.resumes:
                saved = read_furthest(file)
                if saved is None:
                    names = ", ".join(f"'{path.name}'" for path in rows_files(file))
                    text = f"the state is not whole, and this run begins again: of it there are only {names}"
                    run.progress(Noted(text, warning=True))
            else:
                text = f"an earlier run has left the state '{file}'; with --resume this one would have gone on from it"
                run.progress(Noted(text, warning=True))
        saved = _furthest(saved, run.ranks)
        if is_first and saved and rows_files(file):  # what the next loss overwrites is safe before
            write_state(file, saved)
            remove_rows(file)
        run.stop.can_resume = True
        try:
            yield Keeper(file, run, saved)
        except Stopped as stopped:
            stopped.state = next((path for path in (file, *rows_files(file)) if path.exists()), None)
            raise
        finally:
            run.stop.can_resume = False
        if is_first:
            remove_state(file)
        elif run.ranks.place.local_rank == 0:
            forget_run(output)  # on a machine with a disk of its own; else the first process holds it


def _furthest(own: SavedState | None, ranks: Ranks) -> SavedState | None:
    """Return the state that all processes of a job go on from: of those of one run, the one that is furthest on.

    Where machines share no disk, processes may have found different states, or none: if the first one is lost, another
    one has saved the state.
    """
    said = [-1, -1]  # of which run, and how far on
    if own:
        said = [int.from_bytes(sha256(as_json(own.identity).encode()).digest()[:7]), own.n_made]
    found = [tuple(each.tolist()) for each in ranks.gather([torch.tensor(said)])]
    run = next((run for run, _ in found if run != -1), -1)
    best = max((one for one in found if one[0] == run), key=lambda one: one[1])
    if all(one == best for one in found):
        return own
    values = ranks.from_one(found.index(best), lambda: {f.name: getattr(own, f.name) for f in fields(SavedState)})
    return SavedState(**values)


def is_finished(output: Path, wanted: Mapping[str, Any], run: Run, *, force: bool) -> bool:
    """Tell (and report) whether a run to resume has nothing left to do, because its output exists already.

    Args:
        wanted: what the metadata of the run's own output contain, among other things.
        force: whether the output of another run may be replaced.
    Raises:
        UsageError: the output exists and is that of another run.
    """
    try:
        metadata = read_checkpoint(output).glue
    except GlueError:
        metadata = {}
    named, said = json.loads(json.dumps(flat(wanted))), flat(metadata)
    named = {name: value for name, value in named.items() if value != {}}  # as a recipe without rules
    compared = {
        name: value
        for name, value in said.items()
        if name in named or (name.startswith(_COMPARED) and not name.startswith(_FOUND) and value != {})
    }
    differing = differences(compared, named)
    if differing and not force:
        raise UsageError(
            f"the output '{output}' exists, and is that of another run",
            items=differing,
            hint="name another with --output, or give --force",
        )
    if not differing:
        run.progress(Noted(f"'{output}' is there already, and made with these settings: nothing is left to do"))
        forget_run(output)
    return not differing
