"""What the tests share that try to break glue from outside."""

import subprocess
import sys
from collections.abc import Callable

import pytest

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
