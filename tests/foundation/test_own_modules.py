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
    files = [path.relative_to(folder).as_posix() for path in files_of_modules(names, folder)]
    assert sorted(files) == sorted(found.split())
