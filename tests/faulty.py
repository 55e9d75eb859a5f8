"""Runs of glue in which one call of the operating system fails, is cut short, or waits until a file was changed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "faults"

# As in fail_calls.c.
COUNT, FAIL, FAIL_FROM, SHORT, PAUSE = range(5)
READS, WRITES, OTHERS, LOOKS = 1, 2, 4, 8
ALL = READS | WRITES | OTHERS


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, "killed" or "hangs", or minus the signal that it died of; and what it printed.

    Attributes:
        calls: how many calls were counted, of the kinds that were asked for.
        paused: whether the chosen call was reached, if it was to pause.
    """

    code: int | str
    calls: int
    paused: bool
    out: str
    err: str


class Faulty:
    """Runs glue in copies of a folder, in a process of its own for each."""

    def __init__(self, template: Path, scratch: Path, library: Path) -> None:
        self._template, self._scratch, self._n = template, scratch, 0
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "PYTHONPATH": os.pathsep.join([p for p in sys.path if p]),
            "OMP_NUM_THREADS": "1",
            "GLUE_NO_PROGRESS": "1",
        }
        self._server = subprocess.Popen(
            [sys.executable, HERE / "fork_server.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout and self._server.stdout.readline() == "ready\n"

    def folder(self) -> Path:
        """Return a new copy of the template."""
        self._n += 1
        folder = self._scratch / str(self._n) / "world"
        shutil.copytree(self._template, folder)
        return folder

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder.parent)

    def run(
        self,
        arguments: str,
        folder: Path,
        *,
        mode: int = COUNT,
        number: int = 0,
        error: int = 0,
        kinds: int = ALL,
        then: str = "",
        kill_after_s: float | None = None,
    ) -> Outcome:
        """Run glue in a folder.

        Args:
            mode, number, error, kinds: which of the calls on files in the folder fails, counted from 0, and how.
            then: what to do while the chosen call waits: Python that may use `folder` and `os`, or "kill".
            kill_after_s: when to kill the run if it has not ended by then.
        """
        armed = {"mode": mode, "number": number, "error": error, "kinds": kinds}
        request = {
            "arguments": arguments.split(),
            "folder": str(folder),
            "armed": armed,
            "then": then,
            "kill_after_s": kill_after_s,
        }
        assert self._server.stdin and self._server.stdout
        print(json.dumps(request), file=self._server.stdin, flush=True)
        told = json.loads(self._server.stdout.readline())
        out, err = (_text_of(Path(f"{folder}.{name}")) for name in ("stdout", "stderr"))
        return Outcome(**told, out=out, err=err)

    def close(self) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def evenly(points: list, most: int) -> list:
    """Return every n-th of some points, such as the calls of a run, so that at most `most` are left."""
    return points[:: -(-len(points) // most)]


def _text_of(file: Path) -> str:
    """Return a file's text, empty if the run was killed before it made the file."""
    return file.read_text() if file.exists() else ""


def compiled(folder: Path) -> Path:
    """Compile fail_calls.c; skip the test where there is no compiler, or nothing can be preloaded."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler here, or a system that does not know LD_PRELOAD")
    library = folder / "fail_calls.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "fail_calls.c", "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"fail_calls.c does not compile here: {built.stderr[:200]}")
    return library
