"""A run's history: one JSON line per step or epoch, written to disk at once."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, Literal

from glue_cli.foundation.errors import ResourceError, UsageError
from glue_cli.foundation.json_text import as_json
from glue_cli.foundation.output_files import write_all
from glue_cli.foundation.regular_files import regular
from glue_cli.spec.budget import in_forwards

_SCHEMA = "glue.history/1"
_LONGEST = 1 << 24  # bytes that are read of a line; one with an alpha for each of many experts is far shorter

Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A line of a search's history.

    Attributes:
        loss: the minimised figure on the step's minibatch.
        val_loss: the same figure on the validation data, at the steps that validate.
        forwards, backwards: the number of passes so far.
    """

    step: int
    alpha: list[float]
    loss: float | None = None
    val_loss: float | None = None
    forwards: int = 0
    backwards: int = 0

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step {self.step}")
        if not self.alpha:
            raise ValueError("alpha has no coefficients")

    @property
    def in_forwards(self) -> int:
        """All passes so far, counted in forwards."""
        return in_forwards(self.forwards, self.backwards)


@contextmanager
def writing_history(
    path: Path | None, *, replace: bool, resumes: bool = False, kept_bytes: int | None = None, **always: Any
) -> Iterator[Write]:
    """Yield a function that writes one line; `always` is part of every line. Without a path, nothing is written.

    Args:
        replace: whether to replace a file that exists, whatever it is.
        resumes: whether to replace a history that the same command has written.
        kept_bytes: how many bytes of the existing file are kept, to append to them; None begins a new file.
    Raises:
        UsageError: the file exists and may not be replaced, or the one to append to has fewer bytes.
        ResourceError: the file cannot be opened, or a line cannot be written.
    """
    if path is None:
        yield lambda line: None
        return
    if resumes and not replace:
        _check_is_own(path, always.get("command"))
        replace = True
    file = _open(path, "ab" if kept_bytes is not None else "wb" if replace else "xb")

    if kept_bytes is not None:
        _cut(path, file, kept_bytes)

    def write(line: dict[str, Any]) -> None:
        text = as_json({"schema": _SCHEMA, **always, **line})
        try:
            _append(file.fileno(), f"{text}\n".encode())
        except OSError as error:
            raise _cannot_write(path, error) from None

    try:
        yield write
    finally:
        with suppress(OSError):  # the lines are written already
            file.close()


def _append(descriptor: int, line: bytes) -> None:
    """Write a whole line at the end of a file; if there is room for a part of it only, nothing."""
    end = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, line, end)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def _open(path: Path, mode: Literal["ab", "wb", "xb"]) -> RawIOBase:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        return open(path, mode, buffering=0)
    except FileExistsError:
        message = f"another run has written the history '{path}' in the meantime"
        raise UsageError(message, hint="name another --history, or give --force") from None
    except OSError as error:
        raise _cannot_write(path, error) from None


def _check_is_own(path: Path, command: object) -> None:
    """Refuse a file that is neither empty nor the history of such a command."""
    try:
        with open(path, "rb", opener=regular) as file:
            first = file.readline(_LONGEST)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        line = json.loads(first or b"null")
    except ValueError:
        line = {}
    said = {"schema": _SCHEMA, "command": command}
    if line is not None and not (isinstance(line, dict) and said.items() <= line.items()):
        raise UsageError(
            f"'{path}' exists, and is no history of glue {command}",
            hint="name another --history, or give --force to replace it",
        )


def _cut(path: Path, file: RawIOBase, n_bytes: int) -> None:
    """Remove the lines that were written after the state was saved."""
    try:
        length = os.fstat(file.fileno()).st_size
        if length >= n_bytes:
            os.ftruncate(file.fileno(), n_bytes)
            return
    except OSError as error:
        raise _cannot_write(path, error) from None
    raise UsageError(
        f"the history '{path}' has {length:,} bytes, but had {n_bytes:,} when the state was saved",
        hint="name the history of the run that is to continue, or leave out --history",
    )


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"'{path}' cannot be written: {error.strerror}", hint="name another --history")
