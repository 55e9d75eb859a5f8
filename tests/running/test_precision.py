import json
import os

import pytest
import torch

from glue_cli.running import precision as precision_module
from glue_cli.running.precision import choose_precision

CPU = torch.device("cpu")
WORK = {"work": "train", "batch_size": 64}


class Stopwatch:
    """Stands in for the timing: a step's seconds are what the test says; counts how often it was asked."""

    def __init__(self, monkeypatch, **seconds):
        self.seconds, self.asked, self.events = seconds, [], []
        monkeypatch.setattr(precision_module, "_time", lambda step, device: step())

    def choose(self, wanted="auto", *, cache=None, work=WORK):
        def make_step(precision):
            self.asked.append(precision)
            return lambda: self.seconds[precision]

        return choose_precision(wanted, make_step, work=work, device=CPU, cache=cache, progress=self.events.append)


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_fixed_precision_is_never_timed(monkeypatch, tmp_path, wanted):
    watch = Stopwatch(monkeypatch)
    assert watch.choose(wanted, cache=tmp_path) == wanted
    assert watch.asked == [] and watch.events == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fp32", "bf16", "wanted"), [(1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (1.0, 3.0, "fp32")])
def test_the_faster_one_is_chosen_recorded_and_reused(monkeypatch, tmp_path, fp32, bf16, wanted):
    watch = Stopwatch(monkeypatch, fp32=fp32, bf16=bf16)
    assert watch.choose(cache=tmp_path / "new") == wanted
    assert sorted(watch.asked) == ["bf16", "fp32"]
    opposite = Stopwatch(monkeypatch, fp32=bf16, bf16=fp32)
    assert opposite.choose(cache=tmp_path / "new") == wanted and opposite.asked == []
    assert [event.text.split(":")[0].split(",")[0] for event in (*watch.events, *opposite.events)] == [
        f"precision {wanted}"
    ] * 2


def test_other_work_is_timed_anew_and_both_are_kept(monkeypatch, tmp_path):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    watch.choose(cache=tmp_path)
    watch.choose(cache=tmp_path, work=WORK | {"batch_size": 1})
    assert len(watch.asked) == 4
    watch.choose(cache=tmp_path)
    assert len(watch.asked) == 4 and len(json.loads((tmp_path / "precision.json").read_text())) == 2


def test_without_a_cache_it_is_timed_every_time(monkeypatch):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    assert watch.choose() == watch.choose() == "bf16" and len(watch.asked) == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff", b"[" * 100_000, b'{"x": "fp16"}'])
def test_a_damaged_cache_is_harmless(monkeypatch, tmp_path, content):
    (tmp_path / "precision.json").write_bytes(content)
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    assert watch.choose(cache=tmp_path) == "bf16"
    assert watch.choose(cache=tmp_path) == "bf16" and len(watch.asked) == 2


def test_a_cached_word_that_is_no_precision_is_not_believed(monkeypatch, tmp_path):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    watch.choose(cache=tmp_path)
    known = json.loads((tmp_path / "precision.json").read_text())
    for wrong in ("fp16", None, ["bf16"], 5):
        (tmp_path / "precision.json").write_text(json.dumps(dict.fromkeys(known, wrong)))
        assert watch.choose(cache=tmp_path) == "bf16"


def test_a_cache_that_cannot_be_written_is_harmless(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    assert watch.choose(cache=tmp_path / "file") == "bf16"
    (tmp_path / "taken" / "precision.json").mkdir(parents=True)
    assert watch.choose(cache=tmp_path / "taken") == "bf16"
    assert os.listdir(tmp_path / "taken") == ["precision.json"]


def test_real_steps_are_made():
    made = []
    choose_precision(
        "auto", lambda precision: lambda: made.append(precision), work=WORK, device=CPU, cache=None, progress=print
    )
    assert made.count("fp32") == made.count("bf16") > 1
