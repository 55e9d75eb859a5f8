"""Which way of computing is the faster one, timed so that other work on the machine does not decide it."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from glue_cli.foundation.threads import restored_threads

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

# A way that comes later in the list has to save a tenth of the time or more: bfloat16 has to earn its digits.
_WORTHWHILE = 0.9
# Rounds go on until they have taken so many seconds, in these bounds.
_SECONDS, _FEWEST, _MOST = 2.0, 3, 9
# Timings are steady where so many of the rounds, each by itself, choose what all together choose, ...
_AGREEING = 0.75
# ... and where this thread was running for so much of its time: ResNet-20's on two cores ran for 0.98 to 1.00 of it
# with nothing beside it, on one thread or two, and for 0.10 to 0.38 beside a dozen programs.
_RUNNING = 0.8


class Way(NamedTuple):
    """How to compute: in which precision, and on how many of torch's threads."""

    precision: Precision
    n_threads: int

    def __str__(self) -> str:
        return f"{self.precision} on {self.n_threads} thread{'s' if self.n_threads > 1 else ''}"


@dataclass(frozen=True)
class Timings:
    """What steps took.

    Attributes:
        rounds: for each round, the seconds of one step in each way; the same ways in each round.
        running: for each way, the share of its seconds for which this thread had a core, or waited for a GPU.
    """

    rounds: Sequence[Mapping[Way, float]]
    running: Mapping[Way, float]

    @property
    def best(self) -> Way:
        """The fastest way; one that comes later in a round only where it is faster by a tenth."""
        return _best(self.rounds)

    @property
    def is_steady(self) -> bool:
        """Whether another run, at another time, would choose the same: the rounds agree, and nothing else ran."""
        agreeing = sum(_best([times]) == self.best for times in self.rounds)
        return agreeing >= _AGREEING * len(self.rounds) and min(self.running.values()) >= _RUNNING

    def __str__(self) -> str:
        medians = {way: statistics.median(times[way] for times in self.rounds) for way in self.rounds[0]}
        return ", ".join(f"{way} {1000 * seconds:.1f} ms" for way, seconds in medians.items())


def time_ways(step: Callable[[Precision], object], ways: Sequence[Way], device: torch.device) -> Timings:
    """Time a step in several ways, one after another and round after round.

    A change in what else runs then meets all ways alike, where a way after another would meet one of them alone.

    Args:
        step: does the work once, in a given precision.
        ways: the one to prefer first. torch's number of threads is as before in the end.
    """
    rounds: list[dict[Way, float]] = []
    running: dict[Way, list[float]] = {way: [] for way in ways}
    with restored_threads():
        for way in ways:  # what is made once: kernels, buffers, threads
            _time_step(step, way, device)
        began = time.perf_counter()
        while len(rounds) < _FEWEST or (len(rounds) < _MOST and time.perf_counter() - began < _SECONDS):
            times = {}
            for way in ways:
                times[way], share = _time_step(step, way, device)
                running[way].append(share)
            rounds.append(times)
    return Timings(rounds, {way: statistics.median(shares) for way, shares in running.items()})


def _time_step(step: Callable[[Precision], object], way: Way, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a step, and for which share of them this thread was running."""
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
