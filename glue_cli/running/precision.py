"""The precision and the number of threads of forward passes and training, chosen by timing and remembered."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

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
    """Return how to compute; `auto` times a few steps on this machine, in both precisions.

    On a CPU it times them on all of torch's threads and on one: oneDNN's gradients of weights wait for each other in
    loops of their own, so that beside other work two threads can take many times as long as one. A precision that is
    given is not timed, and has all threads.

    A choice whose timings are steady, as `Timings.is_steady` has it, is kept in `cache`, so that whatever continues
    or repeats the run on this machine makes the same one. Of several runs that time at once, the first to write it
    down decides for all.

    Args:
        make_step: returns what does a step of the work in a given precision, on throwaway copies.
        work: what the timing depends on, such as model and batch size.
        threads_given: whether the user has set the number of threads, so that no other is tried.
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
            remark = f"; it is not kept, since '{file}' cannot be written"
        elif kept != chosen:
            chosen, remark = kept, "; another run that began at the same time chose so"
    elif file:
        remark = f"; it is not kept, since the timings scatter beside other work: --precision {chosen.precision} is"
    progress(Noted(f"precision {chosen}: a step takes {timings}{remark}"))
    return chosen


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read(file: Path, key: str, ways: Sequence[Way]) -> Way | None:
    """Return the choice that is kept; None where there is none, or the file says something else."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        way = Way(kept["precision"], kept["threads"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return way if kept.get("work") == key and way in ways and type(way.n_threads) is int else None


def _keep(file: Path, key: str, chosen: Way, ways: Sequence[Way]) -> Way | None:
    """Keep a choice, unless another run has kept one; return what is kept, None where nothing can be written."""
    text = json.dumps({"work": key, "precision": chosen.precision, "threads": chosen.n_threads}, indent=1).encode()
    try:
        if write_once(file, text):
            return chosen
        if kept := _read(file, key, ways):
            return kept
        with writing(file) as descriptor:  # in place of a damaged one
            write_all(descriptor, text, 0)
        return chosen
    except ResourceError:
        return None
