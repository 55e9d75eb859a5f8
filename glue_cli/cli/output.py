"""What people see: tables on stdout; errors, hints and warnings on stderr.

Names of files, tensors and classes are strangers' texts: all that is printed here is made printable first.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glue_cli.foundation.errors import GlueError
from glue_cli.foundation.printable import printable


class _Stderr:
    """stderr, whether anybody listens or not: a closed terminal or a full disk behind it stops no work."""

    def __init__(self) -> None:
        self._stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # without what a live view puts before it

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stderr_console() -> Console:
    """Return the console for everything that is not the result; paths in it stay whole."""
    return Console(file=cast(IO[str], _Stderr()), markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_error(error: GlueError) -> None:
    """Print an error as one block: what and where, the items, the hint."""
    console = stderr_console()
    console.print(Text("error: ", style="bold red"), Text(printable(error.message)), sep="")
    shown = error.items[: error.n_shown]
    for item in shown:
        console.print(f"  {printable(item)}")
    if len(shown) < len(error.items):
        console.print(f"  and {len(error.items) - len(shown)} more")
    if error.hint:
        print_hint(error.hint)


def print_hint(hint: str) -> None:
    stderr_console().print(Text("hint: ", style="bold cyan"), Text(printable(hint)), sep="")


def print_warning(text: str, console: Console | None = None) -> None:
    (console or stderr_console()).print(Text("warning: ", style="bold yellow"), Text(printable(text)), sep="")


def print_lines(*lines: str) -> None:
    """Print lines of the result on stdout."""
    print(*map(printable, lines), sep="\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: the first column to the left, the others to the right.

    On a narrow terminal the first column, with the paths, is folded; off a terminal no line wraps.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=position > 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console = Console(highlight=False, width=10_000)
    console.print(table)


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure with fixed digits, or few of a huge one; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def duration(seconds: float) -> str:
    """Return a time such as 0.8 s, 42 s, 3:05 or 1:02:03."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
