"""What every command is given in addition to its plan. Needs no torch."""

from dataclasses import dataclass, field
from pathlib import Path

from glue_cli.foundation.progress import Progress, silent
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.saving import Saving
from glue_cli.foundation.stopping import Stop


@dataclass(frozen=True)
class Run:
    """The settings that all commands share.

    Attributes:
        device: auto, cpu, cuda or cuda:I.
        cache: a folder that keeps what is slow to compute again; None keeps nothing.
        history: a file that gets one JSON line per step or epoch.
        threads_given: whether the user has set torch's number of threads; timing then tries no other number.
        saving: how often a command saves its state, and whether it continues from a saved one.
        stop: whether a signal has asked the command to stop.
        ranks: the processes that share the work; this one alone by default.
    """

    device: str = "auto"
    cache: Path | None = None
    history: Path | None = None
    progress: Progress = silent
    threads_given: bool = False
    saving: Saving = Saving()
    stop: Stop = field(default_factory=Stop)
    ranks: Ranks = field(default_factory=Ranks)
