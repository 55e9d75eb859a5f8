"""Run `glue` commands in this process, which saves the start-up, and keep what each printed."""

import io
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from glue_cli.cli.app import main
from glue_cli.foundation.errors import GateMissedError
from glue_cli.foundation.stopping import INTERRUPTED, STOPPED

Result = dict[str, Any]


class CommandFailed(Exception):
    """A command has ended with an error; the message has its line and what it said."""


class Glue:
    """Runs commands whose results are kept in a folder; one whose result is there is not run again.

    Args:
        folder: the results go there, NAME.json each; `commands.sh` lists the lines, as one would type them.
        settings: options for all commands, such as `--spec`.
    """

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        self._folder, self._settings = folder, list(settings)
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        """Return where a command may write a checkpoint."""
        return self._folder / f"{name}.safetensors"

    def __call__(self, name: str, *arguments: str | Path) -> Result:
        """Run a command, or return the kept result of an earlier run.

        Args:
            name: what the result is kept as.
        Raises:
            CommandFailed: the command has failed.
        """
        kept = self._folder / f"{name}.json"
        if kept.exists():
            result: Result = json.loads(kept.read_text())
            if Path(result.get("output", kept)).exists():
                return result
        command, *rest = map(str, arguments)
        force = [] if command == "evaluate" else ["--force"]  # it may have been cut between its file and its result
        line = [command, *self._settings, *rest, "--json", "--quiet", *force]
        with (self._folder / "commands.sh").open("a") as log:
            log.write(f"{shlex.join(['glue', *line])}\n")
        printed = _run(line)
        part = kept.with_suffix(".part")
        part.write_text(printed)
        os.replace(part, kept)
        return json.loads(printed)


def _run(line: Sequence[str]) -> str:
    """Run one command and return what it printed; a missed gate is a result too, and a signal ends the program."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(line)
    if code in (STOPPED, INTERRUPTED):
        raise SystemExit(code)
    if code not in (0, GateMissedError.exit_code):
        raise CommandFailed(f"{shlex.join(['glue', *line])} ended with {code}\n{err.getvalue()}")
    return out.getvalue()
