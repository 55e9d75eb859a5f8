import pytest

from glue_cli.foundation.units import brief, counted, listed, size


@pytest.mark.parametrize(
    ("n", "noun", "text"), [(1, "step", "1 step"), (0, "step", "0 steps"), (2000, "minibatch", "2,000 minibatches")]
)
def test_things_are_counted(n, noun, text):
    assert counted(n, noun) == text


@pytest.mark.parametrize(
    ("n_words", "most", "text"),
    [(0, 2, ""), (2, 2, "0, 1"), (3, 2, "0, 1 and 1 more"), (2000, 3, "0, 1, 2 and 1,997 more")],
)
def test_long_lists_are_cut(n_words, most, text):
    assert listed(range(n_words), most) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (1.24e9, "1.2 GB"),
        (999.96e9, "1.0 TB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_size(n_bytes, text):
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (3.54e-7, "0.00035 ms"),
        (0.0130, "13 ms"),
        (0.164, "160 ms"),
        (0.9996, "1 s"),
        (1.24, "1.2 s"),
        (347, "350 s"),
    ],
)
def test_brief(seconds, text):
    assert brief(seconds) == text
