"""The fuzz test that is led by coverage, where atheris is installed (it is no part of the extra `dev`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_whatever_is_reached_is_read_or_refused(request, tmp_path):
    if not request.config.getoption("--long"):
        pytest.skip("takes minutes: --long runs it")
    pytest.importorskip("atheris", reason="pip install atheris")
    script = Path(__file__).with_name("coverage_fuzz.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "100000"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 100000 runs" in done.stderr
