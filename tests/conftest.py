"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: nets this small gain nothing from two, and lose much where other work holds the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's variables and cache out of the tests."""
    for name in [name for name in os.environ if name.startswith("GLUE_") and name != "GLUE_TEST_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def test_data() -> Path:
    """The folder of larger data sets named by GLUE_TEST_DATA; tests that need it are skipped without."""
    folder = os.environ.get("GLUE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GLUE_TEST_DATA names no folder with larger data sets")
    return Path(folder)
