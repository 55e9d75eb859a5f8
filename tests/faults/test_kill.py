"""kill -9 at any moment: what is there is whole, and the next run comes to the same end and cleans up."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faulty import PAUSE
from safetensors.torch import save_file
from small_runs import RUNS, found, leftovers, unchanging

from glue_cli.checkpoints.read import read_checkpoint


@pytest.fixture
def blend(tmp_path):
    """Start a sharded blend of two experts of 16 MB."""
    for number in range(2):
        draws = torch.Generator().manual_seed(number)
        tensors = {f"layer.{i}": torch.randn(500, 1000, generator=draws) for i in range(8)}
        save_file(tensors, tmp_path / f"{number}.safetensors", {"format": "pt"})
    command = [sys.executable, "-m", "glue_cli", "mix", "--alpha", "0.3,0.7", "0.safetensors", "1.safetensors"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start(*flags):
        command_line = [*command, "-o", "out/x.safetensors", "--max-shard-size", "5MB", "-q", *flags]
        return subprocess.Popen(command_line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    return start


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_blend_leaves_nothing_half_and_nothing_behind(tmp_path, blend, how_many):
    out: Path = tmp_path / "out"
    began = time.monotonic()
    assert blend().wait() == 0
    took_s = time.monotonic() - began
    wanted, draws, n_left = contents(out), random.Random(5), 0
    assert len(wanted) > 3
    for number in range(how_many(4, 300)):
        for path in out.iterdir():
            path.unlink()
        process = blend()
        if number % 2:
            time.sleep(draws.uniform(0, took_s))
        else:  # while files are open
            while not list(out.glob(".glue-*")) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draws.uniform(0, 0.02 * took_s))
        process.kill()
        process.wait()
        for name, content in contents(out).items():
            n_left += name.startswith(".glue-")
            assert name.startswith(".glue-") or content == wanted[name], name
    assert n_left, "no kill came while a file was open"
    assert blend("--force").wait() == 0
    assert contents(out) == wanted
    assert read_checkpoint(out / "x.safetensors.index.json").n_bytes == 16_000_000


@pytest.mark.parametrize("name", RUNS)
def test_each_command_killed_at_random_moments(faulty, name, how_many, record_property):
    """Half of the moments are just before a call of the operating system on a file of the run, half at any time."""
    run, draws = RUNS[name], random.Random(name)
    folder = faulty.folder()
    began = time.monotonic()
    whole = faulty.run(run.arguments, folder)
    took_s = time.monotonic() - began
    assert whole.code == 0, whole.err
    wanted, n_killed = unchanging(found(folder, run)), 0
    faulty.remove(folder)
    again = run.arguments + (" --resume" if run.saves else " --force" if wanted else "")
    for number in range(how_many(2, 50)):
        folder = faulty.folder()
        if number % 2:
            killed = faulty.run(run.arguments, folder, kill_after_s=draws.uniform(0.001, took_s))
        else:
            killed = faulty.run(run.arguments, folder, mode=PAUSE, number=draws.randrange(whole.calls), then="kill")
        n_killed += killed.code != 0
        for file, content in unchanging(found(folder, run)).items():
            is_begun = file.endswith(".jsonl") and content == wanted[file][: len(content)]
            assert is_begun or content == wanted[file], (file, killed)
        next_one = faulty.run(again, folder)
        assert next_one.code == 0 and "Traceback" not in next_one.err, (killed, next_one)
        assert unchanging(found(folder, run)) == wanted, killed
        assert not leftovers(folder), killed
        faulty.remove(folder)
    assert n_killed
    record_property("points", n_killed)
