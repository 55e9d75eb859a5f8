"""Find the fastest way to compute, timed so that other programs on the machine do not decide it."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from glue_cli.foundation.errors import PrecisionError
from glue_cli.foundation.threads import restored_threads

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

# A later way in the list is chosen only if it takes at most this share of the time: bfloat16 has to save enough time
# to make up for its lost digits.
_WORTHWHILE = 0.9
# Rounds are repeated until they have taken so many seconds, but at least and at most so many times.
_SECONDS, _FEWEST, _MOST = 2.0, 3, 9
# Timings are steady if at least this share of the single rounds leads to the same choice as all rounds together, ...
_AGREEING = 0.75
# ... and if this thread had a core for at least this share of the time. For ResNet-20 on two cores it was 0.98 to 1.00
# with no other program running, on one thread or two, and 0.10 to 0.38 with a dozen programs running.
_RUNNING = 0.8


class Way(NamedTuple):
    """A way to compute: the precision, and the number of torch's threads."""

    precision: Precision
    n_threads: int

    def __str__(self) -> str:
        return f"{self.precision} on {self.n_threads} thread{'s' if self.n_threads > 1 else ''}"


@dataclass(frozen=True)
class Timings:
    """How long steps took.

    Attributes:
        rounds: for each round, the seconds of one step in each way; all rounds have the same ways.
        running: for each way, the share of the time in which this thread had a core, or waited for a GPU.
        refused: the precisions that the step does not run in.
    """

    rounds: Sequence[Mapping[Way, float]]
    running: Mapping[Way, float]
    refused: Sequence[Precision] = ()

    @property
    def best(self) -> Way:
        """The fastest way; a later one in the list only if it saves a tenth of the time."""
        return _best(self.rounds)

    @property
    def is_steady(self) -> bool:
        """Whether a run at another time would choose the same: the rounds agree, and no other program interfered."""
        agreeing = sum(_best([times]) == self.best for times in self.rounds)
        return agreeing >= _AGREEING * len(self.rounds) and min(self.running.values()) >= _RUNNING

    def __str__(self) -> str:
        medians = {way: statistics.median(times[way] for times in self.rounds) for way in self.rounds[0]}
        taken = [f"{way} {1000 * seconds:.1f} ms" for way, seconds in medians.items()]
        return ", ".join([*taken, *(f"{precision} does not run here" for precision in self.refused)])


def time_ways(step: Callable[[Precision], object], ways: Sequence[Way], device: torch.device) -> Timings:
    """Time one step in every way, and repeat this for several rounds.

    If other programs start or stop meanwhile, that affects all ways alike; timing each way's steps together would let
    it affect a single one. torch's number of threads is restored at the end.

    Args:
        step: does the work once, in a given precision; all but the first way's may fail with a PrecisionError.
        ways: the preferred one first.
    """
    rounds: list[dict[Way, float]] = []
    with restored_threads():
        # a first step, not counted, which sets up kernels, buffers and threads
        fit = [way for way in ways if _runs(step, way, device, may_fail=way.precision != ways[0].precision)]
        running: dict[Way, list[float]] = {way: [] for way in fit}
        began = time.perf_counter()
        while len(rounds) < _FEWEST or (len(rounds) < _MOST and time.perf_counter() - began < _SECONDS):
            times = {}
            for way in fit:
                times[way], share = _time_step(step, way, device)
                running[way].append(share)
            rounds.append(times)
    refused = {way.precision for way in ways} - {way.precision for way in fit}
    return Timings(rounds, {way: statistics.median(shares) for way, shares in running.items()}, sorted(refused))


def _runs(step: Callable[[Precision], object], way: Way, device: torch.device, *, may_fail: bool) -> bool:
    try:
        _time_step(step, way, device)
    except PrecisionError:
        if not may_fail:
            raise
        return False
    return True


def _time_step(step: Callable[[Precision], object], way: Way, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a step, and the share of them in which this thread was running."""
    torch.set_num_threads(way.n_threads)
    began, ran = time.perf_counter(), time.thread_time()
    step(way.precision)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter() - began, 1.0
    seconds = time.perf_counter() - began
    return seconds, (time.thread_time() - ran) / seconds


def _best(rounds: Sequence[Mapping[Way, float]]) -> Way:
    best, *others = rounds[0]
    relative = {way: statistics.median(times[way] / times[best] for times in rounds) for way in rounds[0]}
    for way in others:
        if relative[way] < _WORTHWHILE * relative[best]:
            best = way
    return best
