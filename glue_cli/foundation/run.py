"""What every command is given beside its plan. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from glue_cli.foundation.progress import Progress, silent


@dataclass(frozen=True)
class Run:
    """What every command shares.

    Attributes:
        device: auto, cpu, cuda or cuda:I.
        cache: a folder for what is slow to find out again; None keeps nothing.
        history: a file that gets a JSON line a step or epoch.
        threads_given: whether the user has set torch's number of threads, which timing then leaves as it is.
    """

    device: str = "auto"
    cache: Path | None = None
    history: Path | None = None
    progress: Progress = silent
    threads_given: bool = False
