"""The limits that the generated inputs are held to do fail what is beyond them."""

import sys
import time

import bounded
import pytest

MIB = 1 << 20


def test_little_is_allowed():
    with bounded.bounded():
        assert len(b"1" * (100 * MIB)) == 100 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its largest memory of a moment")
@pytest.mark.parametrize("n_bytes", [0, 100 * MIB])
def test_memory_that_was_given_back_counts(n_bytes):
    with pytest.raises(AssertionError, match="it took 6.. MB|it took 7.. MB"), bounded.bounded(n_bytes):
        assert len(b"1" * (100 * MIB)) == 100 * MIB
        assert len(b"1" * (620 * MIB))
    with bounded.bounded(200 * MIB):
        assert len(b"1" * (620 * MIB))


def test_time_of_the_processor_counts(monkeypatch):
    monkeypatch.setattr(bounded, "LIMIT_S", 0)
    with pytest.raises(AssertionError, match=r"it took \d"), bounded.bounded():
        sum(range(100_000))


def test_what_waits_for_ever_is_ended(monkeypatch):
    monkeypatch.setattr(bounded, "_HANGS_S", 0.05)
    with pytest.raises(AssertionError, match="it hangs"), bounded.bounded():
        time.sleep(30)
