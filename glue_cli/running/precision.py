"""Choose the precision and the number of threads of forward passes and training by timing, and keep the choice."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.output_files import write_all, write_once, writing
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.running.timing import PRECISIONS, Precision, Way, time_ways


def choose_way(
    wanted: Literal["auto", "fp32", "bf16"],
    make_step: Callable[[], Callable[[Precision], object]],
    *,
    work: Mapping[str, object],
    device: torch.device,
    threads_given: bool,
    cache: Path | None,
    progress: Progress,
) -> Way:
    """Choose the precision and the number of threads; `auto` times a few steps on this machine in both precisions.

    On a CPU, the steps are timed with all of torch's threads and with one. In oneDNN's weight gradients the threads
    wait for each other in busy loops, so that beside other programs two threads can take many times as long as one.
    A precision that the user gives is not timed, and uses all threads.

    A choice from steady timings (`Timings.is_steady`) is kept in `cache`, so that a run that continues or repeats this
    one on the same machine makes the same choice. If several runs time at once, the first one to write its choice
    decides for all.

    Args:
        make_step: returns a function that does one step of the work in a given precision, on throwaway copies.
        work: what the timing depends on, such as the model and the batch size.
        threads_given: whether the user has set the number of threads; no other number is tried then.
        cache: a folder; None keeps nothing.
    """
    n_threads = torch.get_num_threads()
    if wanted != "auto":
        return Way(wanted, n_threads)
    counts = [n_threads] if threads_given or device.type == "cuda" else sorted({n_threads, 1}, reverse=True)
    ways = [Way(precision, count) for precision in PRECISIONS for count in counts]
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    key = json.dumps({**work, "machine": machine, "threads": counts, "torch": torch.__version__}, sort_keys=True)
    file = cache / f"precision-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json" if cache else None
    if file and (kept := _read(file, key, ways)):
        progress(Noted(f"precision {kept}, as timed before on this machine"))
        return kept
    timings = time_ways(make_step(), ways, device)
    chosen, remark = timings.best, ""
    if file and timings.is_steady:
        kept = _keep(file, key, chosen, ways)
        if kept is None:
            remark = f"; the choice is not kept, since '{file}' cannot be written"
        elif kept != chosen:
            chosen, remark = kept, "; this is the choice of another run that began at the same time"
    elif file:
        remark = (
            "; the choice is not kept, since other programs disturb the timings: "
            f"--precision {chosen.precision} fixes it"
        )
    progress(Noted(f"precision {chosen}: a step takes {timings}{remark}"))
    return chosen


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read(file: Path, key: str, ways: Sequence[Way]) -> Way | None:
    """Return the choice in a file; None if there is no file, or it holds something else."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        way = Way(kept["precision"], kept["threads"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    is_whole = kept == _with_checksum(key, way)
    return way if is_whole and way in ways and type(way.n_threads) is int else None


def _with_checksum(key: str, way: Way) -> dict[str, Any]:
    """Return what a file says of a choice: a bit that flips could turn one choice into another."""
    said = {"work": key, "precision": way.precision, "threads": way.n_threads}
    return {**said, "sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest()}


def _keep(file: Path, key: str, chosen: Way, ways: Sequence[Way]) -> Way | None:
    """Write a choice to a file, unless another run has done so; return the file's choice, None if it has none.

    It has none where nothing can be written.
    """
    text = json.dumps(_with_checksum(key, chosen), indent=1).encode()
    try:
        if write_once(file, text):
            return chosen
        if kept := _read(file, key, ways):
            return kept
        with writing(file) as descriptor:  # replaces a damaged file
            write_all(descriptor, text, 0)
        return chosen
    except ResourceError:
        return None
