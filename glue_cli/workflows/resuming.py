"""Runs that can be stopped: their state is saved regularly, and a later run continues from it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glue_cli import __version__
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.run_state import (
    SavedState,
    differences,
    flat,
    forget_run,
    holding_state,
    read_state,
    state_file,
    write_state,
)
from glue_cli.foundation.errors import GlueError, UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.foundation.state import State, is_good
from glue_cli.foundation.stopping import Lost, Stopped
from glue_cli.results.history import Write, writing_history
from glue_cli.running.device import find_device
from glue_cli.spec.schema import Spec

_USUAL_S = 30.0
_SHARE = 0.02  # the largest share of the time that saving may take, if its interval is not given


class Keeper:
    """Keeps the state of one run in a file, and holds the state that the run continues from.

    Attributes:
        state: what to restore; None for a new run.
        precision: of the steps; has to be set before the first one.
        needs_all: whether all processes have to take a state together, of which each has a part.
    """

    def __init__(self, file: Path, run: Run, saved: SavedState | None) -> None:
        self.state: State | None = saved.state if saved else None
        self.precision: str | None = None
        self.needs_all = False
        self._file, self._run, self._saved = file, run, saved
        self._identity: dict[str, Any] = {}
        self._n_steps = 0  # since the last state was saved
        self._last: _Moment | None = None  # after the last whole step, in case that another process is lost
        self._last_s, self._saving_s = time.monotonic(), 0.0

    def history(self, *, force: bool, **always: Any) -> AbstractContextManager[Write]:
        """Open the run's history with `writing_history`, to add to the lines written before the state was saved."""
        replace = force or self._run.saving.resumes
        return writing_history(self._run.history, replace=replace, kept_bytes=self.history_bytes, **always)

    @property
    def history_bytes(self) -> int | None:
        """The length of the history when the state to continue from was saved; None for a new run."""
        return self._saved.history_bytes if self._saved else None

    def as_before(self, spec: Spec) -> Spec:
        """Return the spec with the precision of the run's first part, and set torch to its number of threads."""
        if self._saved is None or self._saved.precision is None:
            return spec
        torch.set_num_threads(self._saved.threads)
        return spec.model_copy(update={"precision": self._saved.precision})

    def begin(self, **identity: Any) -> None:
        """Register all that the run depends on; if the run continues, compare that with the saved state.

        Args:
            identity: settings and fingerprints by name, as JSON values; may be nested.
        Raises:
            UsageError: the state is that of another run.
        """
        device = find_device(self._run.device).type
        named = flat({"glue": __version__, "torch": torch.__version__, "device": device, **identity})
        self._identity = json.loads(json.dumps(named))  # as it is when read back
        if self._saved is None:
            return
        differing = differences(self._saved.identity, self._identity)
        if self._run.history and self._saved.history_bytes is None:
            differing.append("history: none there, one here")
        if differing:
            raise UsageError(
                f"the state '{self._file}' is that of another run",
                items=differing,
                hint="run what was run before, or leave out --resume to begin again",
            )
        self._run.progress(Noted(f"going on from the state '{self._file}'"))

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Hold back a signal until the current step ends; the block has to call `checkpoint` after each step.

        If another process is lost in a step, the first one saves the state before that step.
        """
        with self._run.stop.deferred():
            try:
                yield
            except Lost:
                if self._last is not None and self._run.ranks.is_first and not self.needs_all:
                    self._save_if_good(self._last)
                raise
        self._run.stop.give_up()  # if a signal came after the last step

    def checkpoint(self, make_state: Callable[[], State]) -> None:
        """Save the state between two steps if it is due, and stop if the run was asked to.

        A state whose figures are not finite is not saved: the last good one stays, and the steps since are made again.
        Of several processes, the first saves. They stop after the same step, since what has asked one of them to stop
        is known to all from the step's last exchange.

        Raises:
            Stopped: the run was asked to stop.
            ResourceError: the state cannot be written.
        """
        self._n_steps += 1
        ranks, stop = self._run.ranks, self._run.stop
        self._last = _Moment(make_state, self._history_length())
        asked_by = ranks.stopped_by if ranks.size > 1 else stop.asked_by
        is_due = asked_by is not None or self._is_due()
        if self.needs_all:
            is_due = ranks.from_first(lambda: is_due)
        if is_due and (ranks.is_first or self.needs_all):
            state = make_state()
            if ranks.is_first:
                self._save_if_good(self._last._replace(make_state=lambda: state))
        if asked_by is not None:
            ranks.from_first(lambda: {"stopped_by": asked_by})  # nobody ends before the state is saved
            raise Stopped(asked_by)

    def checkpoint_of_copy(self, make_state: Callable[[], State]) -> None:
        """As `checkpoint`, for a small state that the next step may change before it has ended."""
        state = {name: _copied(value) for name, value in make_state().items()}
        self.checkpoint(lambda: state)

    def _is_due(self) -> bool:
        every = self._run.saving.every
        if every and every.steps:
            return self._n_steps >= every.steps
        wait = every.seconds if every and every.seconds else max(_USUAL_S, self._saving_s / _SHARE)
        return time.monotonic() - self._last_s >= wait

    def _history_length(self) -> int | None:
        history = self._run.history
        return history.stat().st_size if history else None

    def _save_if_good(self, moment: "_Moment") -> None:
        began = time.monotonic()
        state, threads = moment.make_state(), torch.get_num_threads()
        if not is_good(state):
            return
        write_state(self._file, SavedState(state, self._identity, self.precision, threads, moment.history_bytes))
        self._last_s, self._n_steps = time.monotonic(), 0
        self._saving_s = self._last_s - began


class _Moment(NamedTuple):
    """What is to be saved of the moment between two steps."""

    make_state: Callable[[], State]
    history_bytes: int | None


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


@contextmanager
def keeping(output: Path, run: Run) -> Iterator[Keeper]:
    """Hold the state of the run that makes `output`, and remove it when the output is written.

    Of several processes, the first one holds and removes it; the others only read it.

    Raises:
        UsageError: another running process holds the state.
        CheckpointError: the state is damaged.
        Stopped: by a signal; the exception says where the state is, if there is one.
    """
    is_first = run.ranks.is_first
    with holding_state(output) if is_first else nullcontext(state_file(output)) as file:
        saved = None
        if file.exists():
            if run.saving.resumes:
                saved = read_state(file)
            else:
                text = f"an earlier run has left the state '{file}'; with --resume this one would have gone on from it"
                run.progress(Noted(text, warning=True))
        run.stop.can_resume = True
        try:
            yield Keeper(file, run, saved)
        except Stopped as stopped:
            stopped.state = file if file.exists() else None
            raise
        finally:
            run.stop.can_resume = False
        if is_first:
            with suppress(OSError):
                file.unlink()


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
    differing = differences({name: said[name] for name in named if name in said}, named)
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
