"""What every command does before and after its work: read the spec, listen to progress, print the result."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.cli.output import print_hint, print_table
from glue_cli.cli.progress import listening
from glue_cli.foundation.errors import UsageError

if TYPE_CHECKING:  # the spec's schema alone takes as long to import as all the rest
    from glue_cli.foundation.run import Run
    from glue_cli.plans.outputs import Outputs
    from glue_cli.spec.schema import Spec


@dataclass(frozen=True)
class Session:
    """The shared options of one call."""

    spec_path: Path | None
    overrides: Sequence[str]
    device: str
    precision: str | None
    seed: int | None
    history: Path | None
    force: bool
    quiet: bool
    json: bool

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device {self.device}: not known", hint="known: auto, cpu, cuda, cuda:I")
        if self.precision is not None:
            check_name("--precision", self.precision, ["auto", "fp32", "bf16"])
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: out of range", hint="give a whole number from 0 to 2^63 - 1")

    def outputs(self, result: Path | None) -> "Outputs":
        """Return where this call writes."""
        from glue_cli.plans.outputs import Outputs

        return Outputs(result, self.history, self._spec_file, self.force)

    @property
    def _spec_file(self) -> Path:
        return self.spec_path or Path("glue.yaml")

    def read_spec(self) -> "Spec":
        """Read the spec and lay the flags over it."""
        from glue_cli.data import FORMATS
        from glue_cli.models import ARCHITECTURES, LIBRARIES
        from glue_cli.spec.yaml_file import read_spec

        architectures = [*ARCHITECTURES, *(f"{library}:{form}" for library, (form, _) in LIBRARIES.items())]
        overrides = [*self.overrides]
        if self.seed is not None:
            is_variable = str(self.seed) == os.environ.get("GLUE_SEED")  # which --set goes before, as any flag
            overrides.insert(0 if is_variable else len(overrides), f"seed={self.seed}")
        if self.precision is not None:
            overrides.append(f"precision={self.precision}")
        return read_spec(self._spec_file, overrides, known_names={"arch": architectures, "format": FORMATS})

    @contextmanager
    def running(self) -> Iterator["Run"]:
        """Give the work its surroundings, and show its progress while it lasts."""
        from glue_cli.foundation.run import Run

        with redirect_stdout(sys.stderr), listening(quiet=self.quiet) as progress:  # stdout is for the result alone
            threads_given = bool(os.environ.get("OMP_NUM_THREADS"))
            yield Run(self.device, _cache_folder(), self.history, progress, threads_given)

    def finish(self, result: dict[str, Any], show: Callable[[dict[str, Any]], None], hint: str | None = None) -> None:
        """Print the result on stdout, as JSON or for people, and the next command to try on stderr."""
        if self.json:
            from glue_cli.foundation.json_text import as_json

            print(as_json(result))
            return
        show(result)
        if hint and not self.quiet:
            print_hint(hint)

    def finish_dry_run(self, command: str, planned: dict[str, Any]) -> None:
        """Print what would be done."""
        plan = {"schema": "glue.plan/1", "command": command, **planned}
        rows = [
            (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
            for key, value in planned.items()
        ]
        self.finish(plan, lambda _: print_table((f"glue {command}", "plan"), rows))


def check_name(option: str, name: str, known: Sequence[str]) -> None:
    """Check an option's value against the names that it may have.

    Raises:
        UsageError: it is none of them.
    """
    if name not in known:
        from glue_cli.spec.yaml_file import nearest

        raise UsageError(f"{option} {name}: not known", hint=nearest(name, known).removeprefix("; "))


def _cache_folder() -> Path | None:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "glue" if os.path.isabs(folder) else None  # a user without a home keeps nothing
