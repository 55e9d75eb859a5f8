"""The precision of forward passes and training, chosen by timing."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.outputs import write_all, writing
from glue_cli.foundation.progress import Noted, Progress

Precision = Literal["fp32", "bf16"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

_TIMED_STEPS = 5

# bfloat16 has to earn its digits: it is taken when it saves a tenth of the time or more
_WORTHWHILE = 0.9


def choose_precision(
    wanted: Literal["auto", "fp32", "bf16"],
    make_step: Callable[[Precision], Callable[[], object]],
    *,
    work: Mapping[str, object],
    device: torch.device,
    cache: Path | None,
    progress: Progress,
) -> Precision:
    """Return the precision to compute in; `auto` times a few steps of each on this machine.

    A choice by timing is kept in `cache`, so that whatever continues or repeats the run on this machine makes the
    same one.

    Args:
        make_step: returns a step of the work in a given precision, on throwaway copies.
        work: what the timing depends on, such as model and batch size.
    """
    if wanted != "auto":
        return wanted
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    key = json.dumps({**work, "machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__})
    known = _read_cache(cache)
    if known.get(key) in PRECISIONS:
        choice: Precision = known[key]
        progress(Noted(f"precision {choice}, as timed before on this machine"))
        return choice
    seconds = {precision: _time(make_step(precision), device) for precision in PRECISIONS}
    choice = "bf16" if seconds["bf16"] < _WORTHWHILE * seconds["fp32"] else "fp32"
    timings = ", ".join(f"{precision} {1000 * s:.1f} ms" for precision, s in seconds.items())
    progress(Noted(f"precision {choice}: a step takes {timings}"))
    if cache is not None:
        _write_cache(cache, {**_read_cache(cache), key: choice})
    return choice


def _time(step: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(2 + _TIMED_STEPS):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read_cache(cache: Path | None) -> dict[str, Any]:
    try:
        known = json.loads((cache / "precision.json").read_text()) if cache else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: Mapping[str, str]) -> None:
    try:
        with writing(cache / "precision.json") as descriptor:
            write_all(descriptor, json.dumps(known, indent=1, sort_keys=True).encode(), 0)
    except ResourceError:  # a cache that cannot be written costs a few seconds next time
        return
