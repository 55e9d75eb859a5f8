"""Draw a row's figures as SVG and PNG, if matplotlib is installed."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

from glue_cli.report import plots
from glue_cli.report.document import Picture
from glue_cli.report.sort import Repetition
from glue_cli.report.summary import RowSummary

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "text.parse_math": False,  # a dollar sign in a file's name does not begin a formula
    "svg.hashsalt": "glue",  # equal figures get equal bytes
}
_DPI = 200


def has_matplotlib() -> bool:
    """Tell whether figures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _style() -> Iterator[None]:
    """Draw with matplotlib's defaults and glue's style; the user's configuration is restored after the block."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def draw(row: RowSummary, repetitions: Sequence[Repetition], file_name: str) -> list[Picture]:
    """Draw the figures that have something to show, and call them FILE_NAME-PLOT; needs matplotlib."""
    drawn = []
    with _style():
        plotted_as = {
            "accuracy": plots.accuracy(row),
            "variants": plots.variants(row),
            "alpha": plots.alpha(row, repetitions),
            "loss": plots.loss(row),
            "cost": plots.cost(row),
        }
        for name, plotted in plotted_as.items():
            if plotted is not None:
                figure, alt, caption = plotted
                svg, png = io.StringIO(), io.BytesIO()
                figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
                figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
                drawn.append(Picture(f"{file_name}-{name}", alt, caption, svg.getvalue(), png.getvalue()))
    return drawn


def file_names(rows: Sequence[str]) -> list[str]:
    """Return each row's name in a form that can be part of a file's name, and that no other row has."""
    names: list[str] = []
    for row in rows:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in row).strip(".") or "row"
        numbered = chain([name], (f"{name}-{number}" for number in count(2)))
        names.append(next(free for free in numbered if free not in names))
    return names
