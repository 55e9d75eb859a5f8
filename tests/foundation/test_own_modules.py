from pathlib import Path

import pytest

from glue_cli.foundation.own_modules import files_of_modules

FILES = {
    "net.py": "import torch, helper as h\nfrom pkg.parts import Part\ndef build():\n    from late import x\n",
    "helper.py": "import net",  # in a circle
    "late.py": "from . import nothing",
    "unused.py": "",
    "pkg/__init__.py": "from .deep import inner",
    "pkg/parts.py": "from ..outside import y\nfrom .sibling import z\nfrom pkg import other",
    "pkg/sibling.py": "import json",
    "pkg/other.py": "",
    "pkg/unused.py": "",
    "pkg/deep/__init__.py": "",
    "pkg/deep/inner.py": "from ..late import z",
    "pkg/late.py": "",
    "broken.py": "def f(:",
    "loose/part.py": "import helper",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


IN_PKG = "pkg/__init__.py pkg/deep/__init__.py pkg/deep/inner.py pkg/late.py"
OF_NET = f"helper.py late.py net.py {IN_PKG} pkg/other.py pkg/parts.py pkg/sibling.py"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["late"], "late.py"),
        (["pkg.sibling"], f"{IN_PKG} pkg/sibling.py"),
        (["net"], OF_NET),
        (["loose.part", "broken"], f"broken.py loose/part.py {OF_NET}"),
        (["torch", "gone.away"], ""),
        ([], ""),
    ],
)
def test_a_module_and_all_that_it_imports_from_beside_it(folder, names, found):
    files = [path.relative_to(folder).as_posix() for path in files_of_modules(tuple(names), folder)]
    assert sorted(files) == sorted(found.split())


def test_a_relative_import_beyond_the_folder_leads_nowhere(tmp_path, monkeypatch):
    """As in `try: from .blocks import Block; except ImportError: from blocks import Block`."""
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "project.py").touch()  # what the folder would be as a package
    lines = ("from .blocks import Block", "from ..project import x", "from . import other", "from blocks import Block")
    (project / "net.py").write_text("\n".join(lines))
    for name in ("blocks", "other", "__init__"):
        (project / f"{name}.py").touch()
    monkeypatch.chdir(project)
    found = {path.name for path in files_of_modules(("net",), Path("."))}
    assert found == {"net.py", "blocks.py"}


def test_a_library_beside_the_spec_is_not_read_to_its_end(tmp_path):
    for k in range(500):
        (tmp_path / f"m{k}.py").write_text(f"import m{k + 1}")
    assert len(files_of_modules(("m0",), tmp_path)) == 200
