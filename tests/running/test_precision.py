import json
import os
import threading

import pytest
import torch

from glue_cli.running import precision as precision_module
from glue_cli.running.precision import choose_way
from glue_cli.running.timing import Timings

CPU = torch.device("cpu")
WORK = {"work": "train", "batch_size": 64}


class Stopwatch:
    """Stands in for the timing: a step's seconds are what the test says; counts how often it was asked."""

    def __init__(self, monkeypatch, *, running=1.0, one_thread=1.0, meanwhile=lambda: None, **seconds):
        self.seconds, self.running, self.one_thread, self.meanwhile = seconds, running, one_thread, meanwhile
        self.asked, self.events = [], []
        self.monkeypatch = monkeypatch

    def time(self, step, ways, device):
        self.asked.append(ways)
        self.meanwhile()
        times = {way: self.seconds[way.precision] * (self.one_thread if way.n_threads == 1 else 1) for way in ways}
        return Timings([times] * 3, dict.fromkeys(ways, self.running))

    def choose(self, wanted="auto", *, cache=None, work=WORK, threads_given=False):
        self.monkeypatch.setattr(precision_module, "time_ways", self.time)
        return choose_way(
            wanted,
            lambda: lambda precision: None,
            work=work,
            device=CPU,
            threads_given=threads_given,
            cache=cache,
            progress=self.events.append,
        )

    @property
    def said(self):
        return [event.text for event in self.events]


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)  # the fixture of all tests gives them back


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_fixed_precision_is_never_timed(monkeypatch, tmp_path, two_threads, wanted):
    watch = Stopwatch(monkeypatch)
    assert watch.choose(wanted, cache=tmp_path) == (wanted, 2)
    assert watch.asked == [] and watch.events == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fp32", "bf16", "wanted"), [(1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (1.0, 3.0, "fp32")])
def test_the_faster_one_is_chosen_kept_and_reused(monkeypatch, tmp_path, fp32, bf16, wanted):
    watch = Stopwatch(monkeypatch, fp32=fp32, bf16=bf16)
    assert watch.choose(cache=tmp_path / "new") == (wanted, 1)
    assert watch.asked == [[("fp32", 1), ("bf16", 1)]]
    opposite = Stopwatch(monkeypatch, fp32=bf16, bf16=fp32)
    assert opposite.choose(cache=tmp_path / "new") == (wanted, 1) and opposite.asked == []
    milliseconds = f"fp32 on 1 thread {1000 * fp32:.1f} ms, bf16 on 1 thread {1000 * bf16:.1f} ms"
    assert watch.said == [f"precision {wanted} on 1 thread: a step takes {milliseconds}"]
    assert opposite.said == [f"precision {wanted} on 1 thread, as timed before on this machine"]


@pytest.mark.parametrize(("one_thread", "wanted"), [(2.0, 2), (0.95, 2), (0.2, 1)])
def test_the_number_of_threads_is_chosen_too(monkeypatch, tmp_path, two_threads, one_thread, wanted):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5, one_thread=one_thread)
    assert watch.choose(cache=tmp_path) == watch.choose(cache=tmp_path) == ("bf16", wanted)
    assert watch.asked == [[("fp32", 2), ("fp32", 1), ("bf16", 2), ("bf16", 1)]]
    assert torch.get_num_threads() == 2


def test_threads_that_the_user_has_set_stay(monkeypatch, two_threads):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5, one_thread=0.1)
    assert watch.choose(threads_given=True) == ("bf16", 2) and watch.asked == [[("fp32", 2), ("bf16", 2)]]


def test_other_work_is_timed_anew_and_both_are_kept(monkeypatch, tmp_path):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    for work in (WORK, WORK | {"batch_size": 1}, WORK):
        watch.choose(cache=tmp_path, work=work)
    assert len(watch.asked) == 2 and len(list(tmp_path.iterdir())) == 2


def test_without_a_cache_it_is_timed_every_time(monkeypatch):
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    assert watch.choose() == watch.choose() == ("bf16", 1) and len(watch.asked) == 2


def test_what_is_timed_beside_other_work_holds_for_one_run(monkeypatch, tmp_path):
    busy = Stopwatch(monkeypatch, fp32=0.557, bf16=3.078, running=0.5)
    assert busy.choose(cache=tmp_path).precision == "fp32" and not list(tmp_path.iterdir())
    assert "not kept" in busy.said[0] and "--precision fp32" in busy.said[0]
    alone = Stopwatch(monkeypatch, fp32=0.1, bf16=0.05)
    assert alone.choose(cache=tmp_path).precision == "bf16" and "not kept" not in alone.said[0]


def test_of_runs_that_begin_together_the_first_decides(monkeypatch, tmp_path):
    first = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    late = Stopwatch(monkeypatch, fp32=0.5, bf16=1.0, meanwhile=lambda: first.choose(cache=tmp_path))
    assert late.choose(cache=tmp_path) == ("bf16", 1)
    assert late.said[0].endswith("this is the choice of another run that began at the same time")
    assert len(list(tmp_path.iterdir())) == 1


def test_many_runs_at_once_agree(monkeypatch, tmp_path):
    barrier, found = threading.Barrier(8), []

    def time(step, ways, device):
        barrier.wait(timeout=60)
        bf16 = step("bf16")
        return Timings([dict(zip(ways, (1.0, bf16), strict=True))] * 3, dict.fromkeys(ways, 1.0))

    def run(bf16):
        options = {
            "work": WORK,
            "device": CPU,
            "threads_given": True,
            "cache": tmp_path,
            "progress": lambda event: None,
        }
        found.append(choose_way("auto", lambda: lambda precision: bf16, **options))

    monkeypatch.setattr(precision_module, "time_ways", time)
    threads = [threading.Thread(target=run, args=(bf16,)) for bf16 in (0.5, 2.0) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8 and len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 1  # and nothing temporary is left


def damage(folder, text):
    (file,) = folder.glob("precision-*.json")
    file.write_bytes(
        text if isinstance(text, bytes) else json.dumps({**json.loads(file.read_bytes()), **text}).encode()
    )


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[1, 2]", b"null", b"\xff", b"[" * 100_000, b'{"x": "fp16"}', b'"fp32"'),
        *({"precision": word} for word in ("fp16", None, ["bf16"], 5, {})),
        *({"threads": number} for number in (0, 7, "1", None, [1], True, 1.0)),
        {"work": "other work, whose digest begins alike"},
        {"precision": "bf16"},  # a choice, but not the one that was kept
    ],
)
def test_a_damaged_cache_is_not_believed_and_mended(monkeypatch, tmp_path, text):
    Stopwatch(monkeypatch, fp32=0.5, bf16=1.0).choose(cache=tmp_path)
    damage(tmp_path, text)
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    assert watch.choose(cache=tmp_path) == watch.choose(cache=tmp_path) == ("bf16", 1)
    assert len(watch.asked) == 1


def test_a_cache_that_cannot_be_written_is_harmless_and_said(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    watch = Stopwatch(monkeypatch, fp32=1.0, bf16=0.5)
    assert watch.choose(cache=tmp_path / "file") == ("bf16", 1)
    assert "the choice is not kept" in watch.said[0] and "cannot be written" in watch.said[0]
    Stopwatch(monkeypatch, fp32=1.0, bf16=0.5).choose(cache=tmp_path / "taken")
    (file,) = (tmp_path / "taken").iterdir()
    file.unlink()
    file.mkdir()
    assert watch.choose(cache=tmp_path / "taken") == ("bf16", 1) and "cannot be written" in watch.said[1]
    assert os.listdir(tmp_path / "taken") == [file.name]


def test_real_steps_are_made(two_threads):
    made = []
    way = choose_way(
        "auto",
        lambda: lambda precision: made.append((precision, torch.get_num_threads())),
        work=WORK,
        device=CPU,
        threads_given=False,
        cache=None,
        progress=print,
    )
    assert {made.count(step) for step in set(made)} == {len(made) / 4} and len(made) >= 16
    assert way in set(made) and torch.get_num_threads() == 2
