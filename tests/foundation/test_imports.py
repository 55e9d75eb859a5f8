"""A torchvision that cannot be imported does not take other libraries along."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from glue_cli.foundation.imports import import_beside_torchvision

USER = """
from importlib.util import find_spec

has_torchvision = find_spec("torchvision") is not None
if has_torchvision:
    import torchvision.ops
"""


def known():
    """Return the names of what Python has of torchvision and the library."""
    return [name for name in sys.modules if name.split(".")[0] in ("torchvision", "glues_neighbour")]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Put a library that uses torchvision, and such a torchvision, first on the path."""

    for name in known():
        monkeypatch.delitem(sys.modules, name)  # back again after the test

    def make(source=None):
        (tmp_path / "glues_neighbour.py").write_text(USER)
        if source is not None:
            (tmp_path / "torchvision" / "ops").mkdir(parents=True)
            (tmp_path / "torchvision" / "ops" / "__init__.py").write_text("")
            (tmp_path / "torchvision" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    for name in known():  # what the test has imported
        del sys.modules[name]


@pytest.mark.parametrize(
    "source",
    [
        "from . import ops\nraise RuntimeError('operator torchvision::nms does not exist')",
        "import torchvision.ops\nraise ImportError('undefined symbol')",
        "raise OSError('libtorch_cuda.so: cannot open shared object file')",
        "import glues_missing_dependency",
    ],
    ids=["operator", "symbol", "library", "dependency"],
)
def test_one_that_cannot_be_imported_is_hidden(make, source):
    make(source)
    assert find_spec("torchvision") is not None
    for _ in range(2):
        assert import_beside_torchvision("glues_neighbour").has_torchvision is False
    assert sys.modules["torchvision"] is None
    assert not [name for name in sys.modules if name.startswith("torchvision.")]
    with pytest.raises(ModuleNotFoundError):
        import torchvision  # noqa: F401


def test_a_good_one_is_left_alone(make):
    make("VERSION = 'good'")
    assert import_beside_torchvision("glues_neighbour").has_torchvision is True
    assert sys.modules["torchvision"].VERSION == "good"


def test_none_at_all_is_left_alone(make, monkeypatch, tmp_path):
    make()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert import_beside_torchvision("glues_neighbour").has_torchvision is False
    assert "torchvision" not in sys.modules


def test_faults_of_the_library_itself_come_through(make):
    make("VERSION = 'good'")
    with pytest.raises(ModuleNotFoundError, match="glues_missing_dependency"):
        import_beside_torchvision("glues_missing_dependency")


def test_importing_transformers_says_nothing():
    pytest.importorskip("transformers")
    code = (
        "from glue_cli.foundation.imports import import_beside_torchvision as take\n"
        "take('transformers').BertForSequenceClassification\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
