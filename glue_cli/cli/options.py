"""The options that commands share: each has one name, one meaning and one help text."""

import os
from pathlib import Path
from typing import Annotated

import typer

from glue_cli.cli import completion

_OFF = ("", "0", "false", "no", "off")
PRECISIONS = ("auto", "fp32", "bf16")
_SHARED = "Shared options"

SpecOption = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        envvar="GLUE_SPEC",
        metavar="PATH",
        help="The spec; ./glue.yaml by default.",
        rich_help_panel=_SHARED,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the spec.",
        autocompletion=completion.settings,
        rich_help_panel=_SHARED,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="GLUE_DEVICE",
        metavar="auto|cpu|cuda[:I]",
        help="Where to compute.",
        autocompletion=completion.one_of(["auto", "cpu", "cuda"]),
        rich_help_panel=_SHARED,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISIONS),
        help="Precision of the passes, in place of the spec's; auto times both.",
        autocompletion=completion.one_of(PRECISIONS),
        rich_help_panel=_SHARED,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME",
        help="Which set of weights is meant in a file that has several, such as model and ema.",
        rich_help_panel=_SHARED,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        envvar="GLUE_SEED",
        metavar="N",
        help="Random seed, in place of the spec's; 0 where nobody says one.",
        rich_help_panel=_SHARED,
    ),
]
HistoryOption = Annotated[
    Path | None,
    typer.Option(
        "--history", metavar="FILE.jsonl", help="Write a JSON line a step or epoch.", rich_help_panel=_SHARED
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", "-f", metavar="", help="Replace outputs that exist.", rich_help_panel=_SHARED)
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", metavar="", help="Check everything, say what would be done.", rich_help_panel=_SHARED
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="No progress and no hints.", rich_help_panel=_SHARED)
]
JsonOption = Annotated[
    bool, typer.Option("--json", metavar="", help="Print the result as one JSON object.", rich_help_panel=_SHARED)
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar="",
        help="Go on from the state that an earlier run has left beside the output, if there is one.",
        rich_help_panel=_SHARED,
    ),
]
SaveEveryOption = Annotated[
    str | None,
    typer.Option(
        "--save-every",
        metavar="TIME|STEPS",
        help="How often to save the state: 30s, 10m, or 500 steps; 30s by default, and 2 % of the time at most.",
        rich_help_panel=_SHARED,
    ),
]


def is_on(variable: str) -> bool:
    """Tell whether a variable that turns something on or off is set, and not to a word for off."""
    return os.environ.get(variable, "").strip().lower() not in _OFF
