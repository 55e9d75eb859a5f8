"""What every command does before and after its work: read the spec, show progress, print the result."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import typer

from glue_cli.cli import options
from glue_cli.cli.output import print_hint, print_lines, print_table
from glue_cli.cli.progress import listening
from glue_cli.cli.signals import dying_of_signals, stopping
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.progress import Progress, silent
from glue_cli.foundation.ranks import Place, Ranks, place_of
from glue_cli.foundation.saving import Saving, parse_save_every

if TYPE_CHECKING:  # importing the spec's schema takes as long as importing everything else
    from glue_cli.foundation.run import Run
    from glue_cli.plans.outputs import Outputs
    from glue_cli.spec.schema import Spec

Command = Callable[..., None]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Session:
    """The shared options of one call, as `options` declares them.

    Attributes:
        typed: the names of the options on the command line; all others come from variables, or are defaults.
    """

    spec: options.SpecOption = None
    set_: options.SetOption = None
    device: options.DeviceOption = "auto"
    precision: options.PrecisionOption = None
    seed: options.SeedOption = None
    history: options.HistoryOption = None
    force: options.ForceOption = False
    dry_run: options.DryRunOption = False
    quiet: options.QuietOption = False
    json: options.JsonOption = False
    resume: options.ResumeOption = False
    save_every: options.SaveEveryOption = None
    typed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            hint = "known: auto, cpu, cuda, cuda:I"
            raise UsageError(f"{self._source('device')} {self.device}: not known", hint=hint)
        if self.precision is not None:
            check_name("--precision", self.precision, options.PRECISIONS)
        if self.seed is not None and not 0 <= self.seed < 2**63:
            hint = "give a whole number from 0 to 2^63 - 1"
            raise UsageError(f"{self._source('seed')} {self.seed}: out of range", hint=hint)
        _ = self._saving  # which is checked

    def _source(self, name: str) -> str:
        """Return the option that gave a value, or the variable."""
        return f"--{name}" if name in self.typed else f"GLUE_{name.upper()}"

    def outputs(self, result: Path | None) -> "Outputs":
        """Return the output files of this call."""
        from glue_cli.plans.outputs import Outputs

        return Outputs(result, self.history, self._spec_file, self.force, self.resume)

    @property
    def _spec_file(self) -> Path:
        return self.spec or Path("glue.yaml")

    @property
    def has_spec(self) -> bool:
        """Whether the user named a spec, or there is one in the current folder."""
        return self.spec is not None or self._spec_file.exists()

    def read_spec(self, overrides: Mapping[str, str] | None = None) -> "Spec":
        """Read the spec and override its values by the flags.

        Args:
            overrides: the command's own flags, by the `KEY=VALUE` that they stand for.
        """
        from glue_cli.data import FORMATS
        from glue_cli.models import architecture_forms
        from glue_cli.spec.yaml_file import read_spec

        typed = {f"seed={self.seed}": self._source("seed"), f"precision={self.precision}": "--precision"}
        typed |= overrides or {}
        flags = [*(self.set_ or ()), *(overrides or ())]
        if self.seed is not None:
            flags.insert(len(flags) if "seed" in self.typed else 0, f"seed={self.seed}")  # --set overrides a variable
        if self.precision is not None:
            flags.append(f"precision={self.precision}")
        known_names = {"arch": architecture_forms(), "format": FORMATS}
        return read_spec(self._spec_file, flags, typed=typed, known_names=known_names)

    @staticmethod
    def remembered_digests() -> dict[str, str]:
        """Return the experts' digests that earlier calls have kept."""
        from glue_cli.checkpoints.digests import Digests

        return Digests(_cache_folder()).read()

    @property
    def is_first(self) -> bool:
        """Whether this process is the only one of its job, or the first: the one that writes, prints and asks."""
        return place_of(os.environ).is_first

    @contextmanager
    def running(self, *, shared: bool = False) -> Iterator["Run"]:
        """Yield the settings for the work, and show its progress until the block ends.

        Args:
            shared: whether all processes of a job do the work; if not, this one does, and nobody waits for the others.
        """
        from glue_cli.foundation.run import Run

        place = place_of(os.environ) if shared else Place()
        history = self.history if place.is_first else None
        # only the result goes to stdout
        with redirect_stdout(sys.stderr), self._listening(place) as progress, stopping(speaks=place.is_first) as stop:
            threads_given = bool(os.environ.get("OMP_NUM_THREADS"))
            ranks = Ranks(place, stop)
            if ranks.size > 1:
                with dying_of_signals():
                    ranks.start(self.device)
            yield Run(self.device, _cache_folder(), history, progress, threads_given, self._saving, stop, ranks)

    def _listening(self, place: Place) -> AbstractContextManager[Progress]:
        return listening(quiet=self.quiet) if place.is_first else nullcontext(silent)

    @property
    def _saving(self) -> Saving:
        try:
            return Saving(self.resume, parse_save_every(self.save_every) if self.save_every is not None else None)
        except ValueError as error:
            raise UsageError(f"--save-every {error}", hint="for example --save-every 30s") from None

    def is_finished(self, output: Path, describe: Callable[[], Mapping[str, Any]], run: "Run") -> bool:
        """Tell whether an earlier run has made the output, so that one with --resume has nothing to do.

        Args:
            describe: returns what the output's metadata say if it is this run's.
        """
        return run.ranks.from_first(lambda: self._is_finished(output, describe, run))

    def _is_finished(self, output: Path, describe: Callable[[], Mapping[str, Any]], run: "Run") -> bool:
        if not (self.resume and output.exists()):
            return False
        from glue_cli.workflows.resuming import is_finished

        return is_finished(output, describe(), run, force=self.force)

    def finish_again(self, schema: str, output: Path) -> None:
        """Print of an output that was there already what it says of itself, which is less than its run has printed."""
        from glue_cli.checkpoints.read import read_checkpoint

        result = {"schema": schema, "output": str(output), "passed_over": True, **read_checkpoint(output).glue}
        self.finish(result, lambda _: print_lines(f"{output} is there already"))

    def finish(self, result: Result, show: Callable[[Result], None], hint: str | None = None) -> None:
        """Print the result on stdout, as JSON or for people, and the next command to try on stderr.

        Of several processes, the first one prints, and the others end here without a word.

        Args:
            result: a record of `results`, or a JSON object.
        """
        if not self.is_first:
            raise typer.Exit
        if self.json:
            from glue_cli.foundation.json_text import as_json
            from glue_cli.results.record import as_object

            print(as_json(as_object(result) if is_dataclass(result) else result))
            return
        show(result)
        if hint and not self.quiet:
            print_hint(hint)

    def finish_dry_run(self, command: str, planned: dict[str, Any]) -> None:
        """Print what the command would do."""
        plan = {"schema": "glue.plan/1", "command": command, **planned}
        rows = [
            (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
            for key, value in planned.items()
        ]
        self.finish(plan, lambda _: print_table((f"glue {command}", "plan"), rows))


def with_session(*, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Add the shared options to a command: typer shows them after its own, and passes them as a `Session`.

    Args:
        without: the names of the shared options that the command does not have.
    """

    def decorate(command: Command) -> Command:
        types = get_type_hints(Session, include_extras=True)
        shared = {f.name: f.default for f in fields(Session) if f.name not in {"typed", *without}}
        _, *own = inspect.signature(command).parameters.values()  # the first is the session
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
                for name, default in shared.items()
            ),
        ]

        @wraps(command)
        def call(context: typer.Context, **values: Any) -> None:
            given = {name: values.pop(name) for name in shared}
            typed = {name for name in shared if (s := context.get_parameter_source(name)) and s.name == "COMMANDLINE"}
            command(Session(**given, typed=frozenset(typed)), **values)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def check_name(option: str, name: str, known: Sequence[str]) -> None:
    """Check that an option's value is one of the allowed names.

    Raises:
        UsageError: it is none of them.
    """
    if name not in known:
        from glue_cli.foundation.nearest import nearest

        raise UsageError(f"{option} {name}: not known", hint=nearest(name, known))


def _cache_folder() -> Path | None:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "glue" if os.path.isabs(folder) else None  # without a home folder, nothing is kept
