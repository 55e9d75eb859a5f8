"""What the tests share that try to break glue from outside."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from faulty import Faulty, compiled
from small_runs import make_small_world

_MEASURED = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{code}
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.fixture
def peak_of() -> Callable[[str], int]:
    """Run Python code in a process of its own, which must end well; return by how many bytes it grew at most."""

    def measure(code: str, imports: str = "", timeout_s: float = 60) -> int:
        source = imports + _MEASURED.format(code=code)
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1])

    return measure


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    """Runs of glue in copies of a small world, which can be disturbed."""
    root = tmp_path_factory.mktemp("faulty")
    library = compiled(root)
    make_small_world(root / "template")
    (root / "scratch").mkdir()
    faulty = Faulty(root / "template", root / "scratch", library)
    yield faulty
    faulty.close()
