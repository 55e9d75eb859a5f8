import time

import pytest
import torch

from glue_cli.foundation.errors import PrecisionError
from glue_cli.running.timing import Timings, Way, time_ways

CPU = torch.device("cpu")
WAYS = [Way("fp32", 2), Way("fp32", 1), Way("bf16", 2), Way("bf16", 1)]


def timings(*rounds, running=1.0, ways=WAYS):
    return Timings([dict(zip(ways, times, strict=True)) for times in rounds], dict.fromkeys(ways, running))


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ((1.0, 2.0, 0.5, 1.0), Way("bf16", 2)),
        ((1.0, 0.5, 2.0, 0.25), Way("bf16", 1)),
        ((1.0, 0.95, 0.95, 0.91), Way("fp32", 2)),  # no tenth is saved
        ((1.0, 0.5, 0.48, 0.46), Way("fp32", 1)),
        ((1.0, 1.0, 1.0, 1.0), Way("fp32", 2)),
    ],
)
def test_a_way_has_to_save_a_tenth(times, wanted):
    assert timings(times, times, times).best == wanted


def test_a_burst_of_other_work_decides_nothing():
    quiet = (1.0, 2.0, 0.5, 1.0)
    burst = (1.0, 2.0, 30.0, 40.0)  # it hit bfloat16
    assert timings(quiet, burst, quiet, quiet, burst).best == Way("bf16", 2)
    slower_and_slower = [tuple(2**n * seconds for seconds in quiet) for n in range(5)]  # each time, all ways alike
    assert timings(*slower_and_slower).best == Way("bf16", 2) and timings(*slower_and_slower).is_steady


def test_timings_that_scatter_are_not_steady():
    one, other = (1.0, 2.0, 0.5, 1.0), (1.0, 2.0, 1.5, 3.0)
    assert timings(one, one, one, other).is_steady
    assert not timings(one, one, other).is_steady
    assert not timings(one, one, one, running=0.7).is_steady


def test_ways_are_timed_in_turn_and_the_threads_given_back(monkeypatch):
    monkeypatch.setattr("glue_cli.running.timing._SECONDS", float("inf"))
    before, made = torch.get_num_threads(), []

    def step(precision):
        made.append(Way(precision, torch.get_num_threads()))

    found = time_ways(step, WAYS, CPU)
    assert made == WAYS * (1 + len(found.rounds)) and len(found.rounds) == 9
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        time_ways(lambda precision: 1 / 0, WAYS, CPU)
    assert torch.get_num_threads() == before


def test_a_precision_that_a_step_does_not_run_in_is_left_out():
    def step(precision):
        if precision == "bf16":
            raise PrecisionError("no bfloat16")

    before = torch.get_num_threads()
    found = time_ways(step, WAYS, CPU)
    assert found.best.precision == "fp32" and {way.precision for way in found.running} == {"fp32"}
    assert str(found).endswith(" ms, bf16 does not run here")
    with pytest.raises(PrecisionError):
        time_ways(step, [WAYS[2]], CPU)
    assert torch.get_num_threads() == before


def test_slow_steps_are_timed_in_few_rounds(monkeypatch):
    monkeypatch.setattr("glue_cli.running.timing._SECONDS", 0.0)
    assert len(time_ways(lambda precision: None, WAYS[:1], CPU).rounds) == 3


def test_seconds_and_the_share_of_them_that_this_thread_was_running():
    found = time_ways(lambda precision: time.sleep(0.05 if precision == "fp32" else 0.02), [WAYS[1], WAYS[3]], CPU)
    assert all(times[WAYS[1]] >= 0.05 and times[WAYS[3]] >= 0.02 for times in found.rounds)
    assert max(found.running.values()) < 0.5 and not found.is_steady  # asleep, as behind another program
    assert str(found).startswith("fp32 on 1 thread ") and ", bf16 on 1 thread " in str(found)
