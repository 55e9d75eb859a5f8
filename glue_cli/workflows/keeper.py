"""Keeps the state of a run that can be stopped: saved regularly or when another process is lost."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glue_cli import __version__
from glue_cli.checkpoints.run_state import (
    SavedState,
    differences,
    flat,
    moment_of,
    remove_rows,
    rows_file,
    taking_over,
    write_state,
)
from glue_cli.foundation.errors import GlueError, UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.foundation.state import State, is_good
from glue_cli.foundation.stopping import Lost, Stopped
from glue_cli.results.history import Write, writing_history
from glue_cli.running.device import find_device
from glue_cli.running.sharding import whole
from glue_cli.search.leading import tell
from glue_cli.spec.schema import Spec
from glue_cli.workflows.part_copies import PartCopies, copied

# If its interval is not given, a state is saved every so many seconds, unless that takes more than this share of the
# time. More often where nobody has all of it: with any process that is lost, all steps since are lost.
_USUALLY, _WHERE_ALL_ARE_NEEDED = (30.0, 0.02), (10.0, 0.1)
_TAKING_OVER_S = 2.0  # that a process waits for another one to end, or to have saved the state


class Keeper:
    """Keeps the state of one run in a file, and holds the state that the run continues from.

    Attributes:
        state: what to restore; None for a new run.
        precision: of the steps; has to be set before the first one.
        needs_all: whether each process has a part of the state, and all have to put it together.
    """

    def __init__(self, file: Path, run: Run, saved: SavedState | None) -> None:
        self.state: State | None = saved.state if saved else None
        self.precision: str | None = None
        self.needs_all = False
        self._copies = PartCopies(run.ranks)
        self._file, self._run, self._saved = file, run, saved
        self._identity: dict[str, Any] = {}
        self._n_made = saved.n_made if saved else 0
        self._n_steps = 0  # since the last state was saved
        self._last: Moment | None = None  # after the last whole step, in case that another process is lost
        self._is_told = False  # whether the other processes have it from this one
        self._history_bytes: int | None = None  # as the first process has told
        self._last_s, self._saving_s = time.monotonic(), 0.0

    @contextmanager
    def history(self, *, force: bool, **always: Any) -> Iterator[Write]:
        """Open the run's history with `writing_history`, to add to the lines written before the state was saved.

        Of several processes the first one writes it, and all of them have to write the same lines: none goes on before
        a line is there. So their state has to be what it was after the last step until then, for if the first process
        is lost before the others know of the line, one of them saves that.
        """
        run, resumes, kept_bytes = self._run, self._run.saving.resumes, self.history_bytes
        with writing_history(run.history, replace=force, resumes=resumes, kept_bytes=kept_bytes, **always) as write:
            self._history_bytes = run.ranks.from_first(self._history_length)

            def write_and_tell(line: dict[str, Any]) -> None:
                def write_first() -> int | None:
                    write(line)
                    return self._history_length()

                self._history_bytes = run.ranks.from_first(write_first)

            yield write_and_tell

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
            UsageError: the state is that of another run, or the processes of the job were given different things.
        """
        self._run.ranks.check_alike(identity)
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

        If another process is lost in a step, one of those that are left saves the state before that step.
        """
        with self._run.stop.deferred():
            try:
                yield
            except Lost:
                self._rescue()
                raise
            finally:
                self._run.stop.rescue = None
            if self._is_told and self._last:
                self._save_if_good(self._last)  # the other processes go, and nobody is left to save it
            self._last = None  # it refers to all that the steps needed
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
        ranks, self._n_made = self._run.ranks, self._n_made + 1
        if self.needs_all:
            self._checkpoint_parts(make_state())
            return
        length = self._history_length() if ranks.is_first else self._history_bytes
        self._last = Moment(make_state, length, self._n_made)
        self._save_or_stop(self._last)

    def checkpoint_and_tell(self, make_state: Callable[[], State]) -> None:
        """As `checkpoint`, for a small state that this process alone has: it tells the others, which `keep` it."""
        state, self._n_made = copied(make_state()), self._n_made + 1
        self._last = Moment(lambda: state, self._history_length(), self._n_made)
        self._is_told, self._run.stop.rescue = True, self._rescue  # as where a machine is gone without a word
        tell(self._run.ranks, "keep", state, self._last.history_bytes, self._n_made)
        self._save_or_stop(self._last)

    def keep(self, state: State, history_bytes: int | None, n_made: int) -> None:
        """Hold a state that another process tells, to save it if that process is lost."""
        self._run.stop.rescue = self._rescue
        self._last = Moment(lambda: state, history_bytes, n_made)

    def _checkpoint_parts(self, state: State) -> None:
        """As `checkpoint`, for this process's part of a state. Every process also has copies of the others' parts."""
        ranks, self._n_steps = self._run.ranks, self._n_steps + 1
        takes, length = ranks.from_first(lambda: [self._copies.is_due, self._history_length()])
        put_together = self._copies.take(state) if takes else None
        is_due = self._is_due(has_copies=self._copies.has_room and self._copies.are_of_all)
        said = ranks.gather([torch.tensor([is_due, is_good(state)])])  # by then the copies of all are whole
        are_good = all(good for _, good in said)
        if takes:
            self._last = None
            if put_together and are_good:
                self._last = Moment(put_together, length, self._n_made, self._rows_file())
        if ranks.stopped_by is not None or said[0][0]:
            together = whole(state)
            if ranks.is_first and are_good:
                self._save_if_good(Moment(lambda: together, length, self._n_made))
        self._stop_if_asked(ranks.stopped_by)

    def _save_or_stop(self, moment: "Moment") -> None:
        self._n_steps += 1
        ranks, stop = self._run.ranks, self._run.stop
        asked_by = ranks.stopped_by if ranks.size > 1 else stop.asked_by
        if ranks.is_first and (asked_by is not None or self._is_due()):
            self._save_if_good(moment)
        self._stop_if_asked(asked_by)

    def _stop_if_asked(self, asked_by: int | None) -> None:
        if asked_by is not None:
            self._run.ranks.from_first(lambda: {"stopped_by": asked_by})  # nobody ends before the state is saved
            raise Stopped(asked_by)

    def _rescue(self) -> None:
        """Save the state before the step in which another process was lost, if no other process has it saved.

        The first process does so; if it is the one that was lost, another one that gets hold of the file. Where each
        has a part, and copies of the others' on its machine, one of each machine saves what that has. Without copies
        nobody can.
        """
        if self._last is None:
            return
        if self._run.ranks.is_first and self._last.rows_file is None:
            self._save_if_good(self._last)
            return
        file = self._last.rows_file or self._file
        with taking_over(file, _TAKING_OVER_S) as is_ours:
            if is_ours and not self._is_saved(file, self._last):
                self._save_if_good(self._last)

    def _is_saved(self, file: Path, moment: "Moment") -> bool:
        """Tell whether the file has this state, or one that is further on."""
        try:
            n_made, identity = moment_of(file)
        except GlueError:  # there is none, or what is there is of no use
            return False
        return identity == self._identity and n_made >= moment.n_made

    def _rows_file(self) -> Path | None:
        """Return the file for what this machine has of the state; None if that is all of it."""
        copies = self._copies
        return None if copies.are_of_all else rows_file(self._file, copies.processes, self._run.ranks.size)

    def _is_due(self, *, has_copies: bool = True) -> bool:
        every = self._run.saving.every
        if every and every.steps:
            return self._n_steps >= every.steps
        usual_s, share = _USUALLY if has_copies else _WHERE_ALL_ARE_NEEDED
        wait = every.seconds if every and every.seconds else max(usual_s, self._saving_s / share)
        return time.monotonic() - self._last_s >= wait

    def _history_length(self) -> int | None:
        history = self._run.history
        return history.stat().st_size if history else None

    def _save_if_good(self, moment: "Moment") -> None:
        began = time.monotonic()
        state, threads = moment.make_state(), torch.get_num_threads()
        if not is_good(state):
            return
        history_bytes, n_made = moment.history_bytes, moment.n_made
        saved = SavedState(state, self._identity, self.precision, threads, history_bytes, n_made)
        write_state(moment.rows_file or self._file, saved)
        if moment.rows_file is None:
            remove_rows(self._file)  # of a moment before
        self._last_s, self._n_steps = time.monotonic(), 0
        self._saving_s = self._last_s - began


class Moment(NamedTuple):
    """What is to be saved of the moment between two steps; see `SavedState`.

    `rows_file` is for the state of one machine among several, which holds only rows of it.
    """

    make_state: Callable[[], State]
    history_bytes: int | None
    n_made: int
    rows_file: Path | None = None
