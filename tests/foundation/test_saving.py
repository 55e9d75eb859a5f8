import pytest

from glue_cli.foundation.saving import SaveEvery, parse_save_every


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("30s", SaveEvery(seconds=30)),
        ("0.5s", SaveEvery(seconds=0.5)),
        ("10m", SaveEvery(seconds=600)),
        ("1.5h", SaveEvery(seconds=5400)),
        ("500", SaveEvery(steps=500)),
        (" 1 ", SaveEvery(steps=1)),
    ],
)
def test_times_and_steps(text, wanted):
    assert parse_save_every(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "0s", "1.5", "-3", "fast", "30 d", "1e3", "s"])
def test_what_is_neither(text):
    with pytest.raises(ValueError, match="is no time and no number of steps"):
        parse_save_every(text)
