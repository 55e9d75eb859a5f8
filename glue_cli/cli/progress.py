"""Progress on stderr: a live view on a terminal, an occasional plain line anywhere else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from glue_cli.cli.options import is_on
from glue_cli.cli.output import number, print_warning, stderr_console
from glue_cli.foundation.printable import printable
from glue_cli.foundation.progress import Advanced, Event, Finished, Noted, Progress, Started
from glue_cli.foundation.units import duration, size

_SPARKS = "▁▂▃▄▅▆▇█"
_N_SPARKS = 40
_MAX_EXPERTS = 16
_LINE_EVERY_S = 30.0
_LINE_AFTER_S = 2.0


@contextmanager
def listening(*, quiet: bool) -> Iterator[Progress]:
    """Yield a listener that shows progress on stderr, in the way that suits it, until the block ends."""
    console = stderr_console()
    if quiet:
        yield _each_note_once(_warn)
    elif console.is_terminal and not is_on("GLUE_NO_PROGRESS"):
        view = _LiveView(console)
        try:
            yield _each_note_once(view)
        finally:
            view.close()
    else:
        yield _each_note_once(_PlainLines(console))


def _each_note_once(listener: Progress) -> Progress:
    """Return a listener that passes equal notes on only once: a note on a data set comes again for every split."""
    passed_on = set()

    def listen(event: Event) -> None:
        if isinstance(event, Noted):
            if event in passed_on:
                return
            passed_on.add(event)
        listener(event)

    return listen


def _warn(event: Event) -> None:
    """Show warnings only."""
    if isinstance(event, Noted) and event.warning:
        print_warning(event.text)


class _Task:
    """A running task and its latest figures."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.latest = Advanced(0)
        self.losses: list[float] = []
        self._began = time.monotonic()

    def advance(self, event: Advanced) -> None:
        self.latest = event
        if "loss" in event.figures:
            self.losses.append(event.figures["loss"])

    @property
    def share(self) -> float | None:
        return self.latest.done / self.started.total if self.started.total else None

    def counts(self) -> str:
        total, done = self.started.total, self.latest.done
        if self.started.unit == "B":
            return size(done) + (f" of {size(total)}" if total else "")
        return f"{done:,}" + (f" of {total:,}" if total else "") + f" {self.started.unit}"

    def pace(self) -> str:
        """Return the rate and the time left."""
        elapsed, done, total = time.monotonic() - self._began, self.latest.done, self.started.total
        if not done or elapsed <= 0:
            return ""
        rate = done / elapsed
        text = f"{size(rate)}/s" if self.started.unit == "B" else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
        if total and done < total:
            text += f", {duration((total - done) / rate)} left"
        return text

    def figures(self) -> str:
        shown = ((name, f"{x:.0f}" if name == "epoch" else number(x)) for name, x in self.latest.figures.items())
        return ", ".join(f"{name} {value}" for name, value in shown)

    def summary(self) -> str:
        """Return the line that is shown when the task has ended."""
        parts = [self.counts(), f"in {duration(time.monotonic() - self._began)}", self.figures()]
        return f"{self.started.task}: " + ", ".join(part for part in parts if part)


class _PlainLines:
    """Prints a line for every tenth of the work but at most every 2 s, at least every 30 s, and at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task: _Task | None = None
        self._shown_tenths, self._shown_at = 0, 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._task = _Task(event)
                self._shown_tenths, self._shown_at = 0, time.monotonic()
            case Advanced() if self._task:
                self._task.advance(event)
                self._maybe_show(self._task)
            case Finished() if self._task:
                self._console.print(printable(self._task.summary()))
                self._task = None
            case Noted(text=text, warning=True):
                print_warning(text)
            case Noted(text=text):
                self._console.print(printable(text))

    def _maybe_show(self, task: _Task) -> None:
        share, now = task.share, time.monotonic()
        tenths = int(10 * (share or 0))
        wanted_after_s = _LINE_EVERY_S if tenths <= self._shown_tenths else _LINE_AFTER_S
        if now - self._shown_at < wanted_after_s or task.latest.done == task.started.total:
            return
        self._shown_tenths, self._shown_at = tenths, now
        parts = [f"{100 * share:.0f} %" if share is not None else "", task.counts(), task.pace(), task.figures()]
        self._console.print(printable(f"{task.started.task}: " + ", ".join(part for part in parts if part)))


class _LiveView:
    """Shows the running task's bar, rate and time left; while mixing, also the loss and the experts' coefficients.

    Until the first task begins it shows a spinner, because importing torch alone takes seconds.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task: _Task | None = None
        self._spinner = Spinner("dots", "getting ready")
        self._live: Live | None = None
        self._start()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self.close()
                self._task = _Task(event)
                self._start()
            case Advanced() if self._task:
                self._task.advance(event)
            case Finished() if self._task:
                summary = self._task.summary()
                self.close(finished=True)
                self._console.print(printable(summary))
            case Noted(text=text, warning=True):
                print_warning(text, self._console)
            case Noted(text=text):
                self._console.print(printable(text))

    def _start(self) -> None:
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=8)
        self._live.start(refresh=True)

    def close(self, *, finished: bool = False) -> None:
        if self._live:
            self._live.transient = finished or self._task is None  # the bar of a failed task stays on the screen
            self._live.stop()
        self._live, self._task = None, None

    def _render(self) -> RenderableType:
        task = self._task
        if task is None:
            return self._spinner
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=task.started.total, completed=task.latest.done, width=28, pulse=task.share is None)
        line.add_row(
            Text(printable(task.started.task), style="bold"), bar, task.counts(), Text(task.pace(), style="cyan")
        )
        rows: list[RenderableType] = [line]
        if task.latest.figures:
            rows.append(Text(f"  {task.figures()}  ") + Text(_sparkline(task.losses), style="magenta"))
        if task.latest.alpha:
            rows.append(_alpha_bars(task.latest.alpha))
        return Group(*rows)


def _alpha_bars(alpha: tuple[float, ...]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    largest = sorted(range(len(alpha)), key=lambda k: -alpha[k])[:_MAX_EXPERTS]
    for k in sorted(largest):
        table.add_row(f"  alpha[{k}]", f"{alpha[k]:.3f}", ProgressBar(total=1.0, completed=alpha[k], width=28))
    if len(alpha) > _MAX_EXPERTS:
        table.add_row(f"  and {len(alpha) - _MAX_EXPERTS} smaller ones")
    return table


def _sparkline(values: list[float]) -> str:
    """Return the values as a line of small bars; each bar is the mean of a few consecutive values."""
    if len(values) < 2:
        return ""
    n = min(_N_SPARKS, len(values))
    edges = [round(i * len(values) / n) for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((mean - low) * scale)] for mean in means)
