"""What people see: figures, tables, error blocks and progress."""

import io
import math
import re

import pytest
from rich.console import Console

from glue_cli.cli import output, progress
from glue_cli.cli.output import number, percent, print_error, print_hint, print_table, print_warning
from glue_cli.cli.progress import listening
from glue_cli.foundation.errors import GlueError
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started
from glue_cli.foundation.units import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (59.7, "1:00"),
        (185, "3:05"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
        (360_000, "100:00:00"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_number_and_percent():
    assert [number(x) for x in (None, 0.0, 1.23456, -2, 999_999)] == [
        "-",
        "0.0000",
        "1.2346",
        "-2.0000",
        "999999.0000",
    ]
    assert [number(x) for x in (1.2345678e12, math.nan, math.inf)] == ["1.235e+12", "nan", "inf"]
    assert [percent(x) for x in (None, 0.5, 1)] == ["-", "50.00 %", "100.00 %"]


def test_a_table_off_a_terminal_is_neither_wrapped_nor_padded(capsys):
    long = "x" * 3000
    print_table(["path", "alpha"], [[long, "0.5"], ["[red]a[/red] :smile:", "12.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("path ") and lines[0].endswith("  alpha")
    assert lines[2] == f"{long}     0.5"
    assert lines[3].startswith("[red]a[/red] :smile: ") and lines[3].endswith("   12.25")
    assert len({len(line) for line in lines}) == 1


@pytest.fixture
def print_on(monkeypatch, capsys):
    """Return a function that prints a table on a terminal of some columns, and returns its lines."""
    real = Console

    def narrow(width=None, **options):
        given = {} if width else {"force_terminal": True, "color_system": None}
        return real(width=width or narrow.width, **given)

    def print_it(width, columns, rows):
        narrow.width = width
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        print_table(columns, rows)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    monkeypatch.setattr(output, "Console", narrow)
    return print_it


LONG = "a/very/long/path/" * 5


def test_a_table_that_is_too_wide_is_stacked_with_whole_figures_and_names(print_on):
    lines = print_on(40, ["checkpoint", "examples", "accuracy"], [[LONG, "1,000", "98.76 %"], ["b", "2", "5 %"]])
    assert lines == [LONG, "  examples  1,000", "  accuracy  98.76 %", "b", "  examples  2", "  accuracy  5 %"]


def test_of_two_columns_that_are_too_wide_each_row_is_a_line(print_on):
    assert print_on(40, ["expert", "alpha"], [[LONG, "0.5"], ["b", "0.25"]]) == [
        "expert  alpha",
        f"{LONG}  0.5",
        "b  0.25",
    ]


@pytest.mark.parametrize("width", range(8, 140, 3))
def test_no_width_cuts_a_figure_or_a_name(print_on, width):
    """Sixteen experts by class, names of wide letters, and a hash: each cell whole, in one line."""
    names = [f"expert-{i:03}" for i in range(16)]
    rows = [[f"类别-{i}", *(f"{i + j / 100:.2f} %" for j in range(16))] for i in range(3)]
    lines = print_on(width, ["class", *names], rows)
    assert all(any(cell in line for line in lines) for cell in [*names, *(cell for row in rows for cell in row)])
    tensors = [["model.layers.0." + "x" * 40, "F32", "[3, 4]", "48 B"], ["b", "BF16", "[1]", "2 B"]]
    lines = print_on(width, ["tensor", "dtype", "shape", "size"], tensors)
    assert all(any(cell in line for line in lines) for row in tensors for cell in row)


def test_a_table_that_just_fits_stays_a_table(print_on):
    columns, rows = ["class", "a", "b"], [["ant", "100.00 %", "99.00 %"]]
    wide = print_on(120, columns, rows)
    assert len(wide) == 3 and wide[0].split() == columns
    width = max(map(len, wide))
    assert print_on(width, columns, rows) == wide
    assert print_on(width - 1, columns, rows) == ["ant", "  a  100.00 %", "  b  99.00 %"]


def test_an_error_is_one_block_with_five_items_at_most(capsys):
    print_error(GlueError("it is wrong [red] :smile:", items=[f"[b]item {i}[/b]" for i in range(8)], hint="mend it"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: it is wrong [red] :smile:",
        *(f"  [b]item {i}[/b]" for i in range(5)),
        "  and 3 more",
        "hint: mend it",
    ]
    print_error(GlueError("a", items=list("12345")))
    assert capsys.readouterr().err.splitlines() == ["error: a", "  1", "  2", "  3", "  4", "  5"]


def test_every_fault_of_a_spec_is_shown(tmp_path, glue):
    (tmp_path / "glue.yaml").write_text("".join(f"wrong_{i}: {i}\n" for i in range(11)))
    shown = glue("mix", "a.safetensors", "--method", "proxy", "--spec", tmp_path / "glue.yaml", code=3).err
    assert [f"glue.yaml:{line}: wrong_{line - 1}: unknown key" in shown for line in range(1, 12)] == [True] * 11
    assert "13 faults" in shown and "more" not in shown  # the two sections that are missing are among them


def test_long_messages_are_not_wrapped(capsys):
    long = "/a b/" + "c" * 500
    print_error(GlueError(f"nothing at '{long}'", items=[long], hint=long))
    print_warning(long)
    print_hint(long)
    wanted = [f"error: nothing at '{long}'", f"  {long}", f"hint: {long}", f"warning: {long}", f"hint: {long}"]
    assert capsys.readouterr().err.splitlines() == wanted


def test_quiet_keeps_the_warnings(capsys):
    with listening(quiet=True) as listener:
        for event in (Started("mix", 3, "steps"), Noted("a note"), Noted("mind this", warning=True), Finished()):
            listener(event)
    assert tuple(capsys.readouterr()) == ("", "warning: mind this\n")


# ---- progress off a terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: clock[0] = seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_for_every_tenth_and_one_at_the_end(capsys, clock):
    with listening(quiet=False) as tell:
        tell(Started("train", 1000, "examples"))
        for done in range(10, 1001, 10):
            clock[0] = done / 10
            tell(Advanced(done, {"epoch": 3.0, "loss": 0.5}))
        tell(Finished())
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.partition(" %")[0] for line in lines] == [f"train: {n}" for n in range(10, 100, 10)]
    assert lines[0] == "train: 10 %, 100 of 1,000 examples, 10/s, 1:30 left, epoch 3, loss 0.5000"
    assert last == "train: 1,000 of 1,000 examples, in 1:40, epoch 3, loss 0.5000"


def test_short_work_is_one_line(capsys, clock):
    with listening(quiet=False) as tell:
        tell(Started("train", 1000, "examples"))
        for done in range(10, 1001, 10):
            clock[0] = done / 1000
            tell(Advanced(done))
        tell(Finished())
    assert capsys.readouterr().err.splitlines() == ["train: 1,000 of 1,000 examples, in 1.0 s"]


def test_a_line_when_half_a_minute_has_passed(capsys, clock):
    with listening(quiet=False) as tell:
        tell(Started("read", None, "B"))
        for second in range(1, 70):
            clock[0] = second
            tell(Advanced(second * 10**6))
        tell(Finished())
    assert capsys.readouterr().err.splitlines() == [
        "read: 30.0 MB, 1.0 MB/s",
        "read: 60.0 MB, 1.0 MB/s",
        "read: 69.0 MB, in 1:09",
    ]


def test_notes_and_warnings(capsys):
    with listening(quiet=False) as tell:
        tell(Noted("precision fp32 [red] :smile:"))
        tell(Noted("few examples [red]", warning=True))
        tell(Advanced(3))  # of no task
        tell(Finished())
    assert capsys.readouterr().err.splitlines() == ["precision fp32 [red] :smile:", "warning: few examples [red]"]


def test_quiet_says_nothing(capsys):
    with listening(quiet=True) as tell:
        tell(Started("train", 10, "steps"))
        tell(Advanced(10, {"loss": 1.0}))
        tell(Noted("a note"))
    assert capsys.readouterr() == ("", "")


# ---- progress on a terminal


@pytest.fixture
def terminal(monkeypatch):
    """Give the live view a terminal of 90 columns; return what is on it, without the control codes."""
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=True, width=90, color_system=None, emoji=False, markup=False, soft_wrap=True
    )
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    return lambda: re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())


def test_the_live_view(terminal):
    with listening(quiet=False) as tell:
        assert "getting ready" in terminal()
        tell(Noted("a note"))
        tell(Noted("a warning", warning=True))
        tell(Started("mix by spsa", 4, "steps"))
        for step in range(1, 5):
            tell(Advanced(step, {"loss": 1 / step, "val loss": 2.0}, (0.25, 0.75)))
        tell(Finished())
        tell(Started("blend", 10, "B"))
        tell(Advanced(10))
        tell(Finished())
    shown = terminal()
    assert "a note\n" in shown and "warning: a warning\n" in shown
    assert "4 of 4 steps" in shown and "loss 0.2500, val loss 2.0000" in shown
    assert "alpha[0] 0.250 ━" in shown and "alpha[1] 0.750 ━" in shown
    assert re.search(r"mix by spsa: 4 of 4 steps, in \S+ s, loss 0.2500", shown)
    assert shown.rstrip().splitlines()[-1].startswith("blend: 10 B of 10 B, in ")


def test_the_live_view_ends_with_the_block_that_failed(terminal):
    with pytest.raises(ZeroDivisionError), listening(quiet=False) as tell:
        tell(Started("train", 10, "steps"))
        tell(Advanced(3, {"loss": 0.5}))
        raise ZeroDivisionError
    assert "3 of 10 steps" in terminal()


def test_the_variable_that_turns_the_live_view_off(terminal, monkeypatch):
    monkeypatch.setenv("GLUE_NO_PROGRESS", "1")
    with listening(quiet=False) as tell:
        tell(Started("train", 2, "steps"))
        tell(Advanced(2))
        tell(Finished())
    assert terminal().startswith("train: 2 of 2 steps, in ")


@pytest.mark.parametrize("word", ["", "0", "false", "No", "off"])
def test_the_variable_with_a_word_for_off(terminal, monkeypatch, word):
    monkeypatch.setenv("GLUE_NO_PROGRESS", word)
    with listening(quiet=False):
        assert "getting ready" in terminal()


def test_many_experts_and_steps_stay_readable(terminal):
    n = 40
    with listening(quiet=False) as tell:
        tell(Started("mix by spsa", 1000, "steps"))
        for step in range(1000):
            tell(Advanced(step, {"loss": math.sin(step)}, tuple((k + 1) / 820 for k in range(n))))
    shown = terminal()
    assert "and 24 smaller ones" in shown and "alpha[39]" in shown and "alpha[0]" not in shown
    assert max(len(line) for line in shown.replace("\r", "\n").splitlines()) <= 90
