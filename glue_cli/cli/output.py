"""Output for people: tables on stdout; errors, hints and warnings on stderr.

Names of files, tensors and classes may contain control characters, so everything is made printable first.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from textwrap import wrap
from typing import IO, Any, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from glue_cli.foundation.errors import GlueError
from glue_cli.foundation.printable import printable

_UNLIMITED = 10_000  # columns
_NARROWEST = 30  # columns of a text beside its word


class _Stderr:
    """stderr without its errors, so that a closed terminal or a full disk does not stop the work."""

    def __init__(self) -> None:
        self._stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # the original, if a live view wraps it

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
    """Return the console for everything that is not the result; it does not break long paths."""
    return Console(file=cast(IO[str], _Stderr()), markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_error(error: GlueError) -> None:
    """Print an error as one block: the message, the items, the hint."""
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


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print pairs of a word and a text on stdout, the texts in a column of their own; a terminal breaks them there."""
    width = max((cell_len(word) for word, _ in facts), default=0) + 2
    room = max(_NARROWEST, Console().width - width) if sys.stdout.isatty() else _UNLIMITED
    for word, text in facts:
        lines = wrap(printable(text), room, break_long_words=False, break_on_hyphens=False) or [""]
        print(f"{word}{' ' * (width - cell_len(word))}{lines[0]}")
        for line in lines[1:]:
            print(f"{' ' * width}{line}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, the first column aligned to the left, the others to the right.

    On a terminal that is too narrow, each row is printed as several lines, so that no figure or name is cut.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    unlimited = Console(highlight=False, width=_UNLIMITED)
    console = Console(highlight=False) if sys.stdout.isatty() else unlimited
    if Measurement.get(unlimited, unlimited.options, table).maximum <= console.width:
        console.print(table)
    else:
        for line in _stacked(columns, cells):
            console.print(line, soft_wrap=True)


def _stacked(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Text]:
    """Yield the lines of a narrow table: for each row, its first cell, and then a line for each other cell.

    Rows of two cells take one line.
    """
    if len(columns) == 2:
        yield Text("  ".join(columns), style="bold")
        yield from (Text("  ".join(row)) for row in rows)
        return
    width = max(map(cell_len, columns[1:]))
    for row in rows:
        yield Text(row[0], style="bold")
        for column, cell in zip(columns[1:], row[1:], strict=True):
            yield Text(f"  {column}{' ' * (width - cell_len(column))}  {cell}")


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure with `digits` decimals, or with `digits` significant digits from 1e6 on; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
