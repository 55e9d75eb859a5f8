"""What the benchmarks share: whole processes timed by the operating system's own accounting, and a record of where."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Finished:
    """One run of a command: wall time in seconds, and the largest resident set of its process in MiB."""

    wall_s: float
    peak_mib: float


def run(command: Sequence[str], log: Path) -> Finished:
    """Run a command to its end; its output goes to `log`.

    Raises:
        SystemExit: the command failed.
    """
    with log.open("ab") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}; see {log}")
    return Finished(wall_s, usage.ru_maxrss / 1024)


def compare(
    commands: Mapping[str, Sequence[str]], n_runs: int, log: Path, *, before: Callable[[], None] = lambda: None
) -> dict[str, list[Finished]]:
    """Run the commands in turn, A B C A B C ..., after one warm-up of each, so that drift hits all alike.

    What one leaves to be written to the disk is written before the next begins, which would wait for it otherwise.

    Args:
        before: is called before each run that counts.
    """
    for command in commands.values():
        run(command, log)
    found: dict[str, list[Finished]] = {name: [] for name in commands}
    for _ in range(n_runs):
        for name, command in commands.items():
            os.sync()
            before()
            found[name].append(run(command, log))
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the least and the largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """Describe this machine and the versions that matter."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("glue-cli", "torch", "safetensors", "numba")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")
