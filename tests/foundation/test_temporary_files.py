import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from glue_cli.foundation.output_files import writing
from glue_cli.foundation.temporary_files import locked_file, remove_abandoned

WRITER = """
import os, sys, time
from pathlib import Path
from glue_cli.foundation.output_files import writing
with writing(Path(sys.argv[1])) as descriptor:
    os.pwrite(descriptor, b"half", 0)
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start_writer(tmp_path):
    """Start a process that is in the middle of writing `NAME`, and ends when its stdin does."""
    started = []

    def start(name):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", WRITER, str(tmp_path / name)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        assert started[-1].stdout.readline() == b"writing\n"
        return started[-1]

    yield start
    for process in started:
        process.communicate()


def temporary_files(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith(".glue-"))


def test_what_a_killed_run_left_goes_with_the_next_and_nothing_else(tmp_path, start_writer):
    living, killed = start_writer("living.bin"), start_writer("killed.bin")
    for name in (".glue-notes.tmp.txt", "glue-1.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".glue-link.tmp").symlink_to(tmp_path / "glue-1.tmp")
    (tmp_path / ".glue-folder.tmp").mkdir()
    before = temporary_files(tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    with writing(tmp_path / "mine.bin") as descriptor:
        os.pwrite(descriptor, b"mine", 0)
    left = temporary_files(tmp_path)
    assert set(left) < set(before) and len(left) == len(before) - 1
    living.communicate()
    assert (tmp_path / "living.bin").read_bytes() == b"half" and living.returncode == 0
    assert not (tmp_path / "killed.bin").exists() and (tmp_path / "glue-1.tmp").exists()


def test_a_file_is_locked_until_it_has_its_name(tmp_path):
    with locked_file(tmp_path) as (path, descriptor):
        remove_abandoned(tmp_path)
        assert path.exists()
        os.close(descriptor)
        remove_abandoned(tmp_path)
        assert path.exists()
        os.replace(path, tmp_path / "named")
    assert os.listdir(tmp_path) == ["named"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".glue-other.tmp").touch()
    with writing(tmp_path / "out.bin") as descriptor:
        os.pwrite(descriptor, b"whole", 0)
    assert (tmp_path / "out.bin").read_bytes() == b"whole" and temporary_files(tmp_path) == [".glue-other.tmp"]


def write_many(folder, number, n_files):
    for i in range(n_files):
        with writing(folder / f"{number}-{i}.bin") as descriptor:
            os.pwrite(descriptor, b"%d" % i, 0)


def test_many_writers_in_one_folder_lose_nothing(tmp_path, how_many):
    n_files = how_many(60, 5_000)
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=write_many, args=(tmp_path, number, n_files)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {f"{number}-{i}.bin": b"%d" % i for number in range(4) for i in range(n_files)}


def test_writers_that_are_killed_at_any_moment(tmp_path, start_writer, how_many):
    """Whatever the moment, the output is whole or not there, and the next run leaves no temporary file."""
    code = WRITER.replace("sys.stdin.read()", "pass").replace('print("writing", flush=True)', "pass")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(how_many(5, 300)):
        output = tmp_path / f"{number}.bin"
        process = subprocess.Popen([sys.executable, "-c", code, str(output)], env=environment)
        time.sleep(0.01 * number % 0.15)
        process.kill()
        process.wait()
        assert not output.exists() or output.read_bytes() == b"half"
    with writing(tmp_path / "last.bin"):
        pass
    assert temporary_files(tmp_path) == []
