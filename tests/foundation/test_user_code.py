import sys

import pytest
import torch

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.user_code import call_function, load_function


@pytest.fixture(autouse=True)
def no_trace():
    """Forget the modules that a test imports, and hold it to leaving sys.path alone."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def load(location, folder):
    return load_function(location, folder, key="model.arch")


def test_a_function_beside_the_spec(tmp_path):
    write(tmp_path, my_code="def build(width=3):\n    return 'built', width\n")
    assert load("my_code:build", tmp_path)(width=5) == ("built", 5)


def test_a_file_is_executed_once_for_all_its_functions(tmp_path):
    write(
        tmp_path,
        my_code="from pathlib import Path\nlog = Path(__file__).with_name('log')\n"
        "log.write_text(log.read_text() + 'x')\nclass Net: pass\ndef net(): return Net()\n",
    )
    (tmp_path / "log").touch()
    net_class, net = load("my_code:Net", tmp_path), load("my_code:net", tmp_path)
    assert type(net()) is net_class
    assert (tmp_path / "log").read_text() == "x"


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path):
    for place in ("a", "b"):
        write(tmp_path / place, model=f"def build(): return '{place}'")
    assert [load("model:build", tmp_path / place)() for place in ("a", "b", "a")] == ["a", "b", "a"]


def test_a_file_may_be_called_as_a_library_is(tmp_path):
    write(tmp_path, json="def build(): return 'mine'")
    assert load("json:build", tmp_path)() == "mine"
    import json

    assert json.loads("[1]") == [1]


def test_modules_beside_the_users_are_found(tmp_path):
    write(tmp_path, parts="def part(): return 7", my_code="from parts import part\ndef build(): return part()")
    assert load("my_code:build", tmp_path)() == 7


def test_modules_beside_the_users_are_found_by_a_function_that_is_called(tmp_path):
    write(tmp_path, late="def part(): return 7", my_code="def build():\n    from late import part\n    return part()")
    assert call_function(load("my_code:build", tmp_path), folder=tmp_path, name="it", hint="") == 7


def test_packages_with_relative_imports_and_folders_without_init(tmp_path):
    write(tmp_path / "pkg", __init__="", parts="def part(): return 8")
    write(tmp_path / "pkg", nets="from .parts import part\ndef build(): return part()")
    assert load("pkg.nets:build", tmp_path)() == 8
    write(tmp_path / "loose", nets="def build(): return 9")
    assert load("loose.nets:build", tmp_path)() == 9


def test_an_installed_module(tmp_path):
    assert load("collections:OrderedDict", tmp_path)() == {}


@pytest.mark.parametrize("location", ["my_code", "my_code:", ":build", "my/code.py:build", "a..b:f", "a:b:c", "a:b.c"])
def test_what_is_no_module_and_function(tmp_path, location):
    with pytest.raises(SpecError, match="wanted python:MODULE:FUNCTION") as caught:
        load(location, tmp_path)
    assert f"model.arch: found 'python:{location}'" in caught.value.message


@pytest.mark.parametrize("name", ["my_cod", "my_code.nets", "nowhere.nets"])
def test_no_such_module(tmp_path, name):
    write(tmp_path, my_code="def build(): pass")
    with pytest.raises(SpecError, match=f"model.arch: there is no module '{name}' in '{tmp_path}'"):
        load(f"{name}:build", tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\ny = 1 / 0\n", "my_code.py:2: ZeroDivisionError: division by zero"),
        ("import no_such_library\n", "my_code.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("def build(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "my_code.py:2: SystemExit: 3"),
        ("import broken\n", "broken.py:1: NameError"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where_and_why(tmp_path, text, reason):
    write(tmp_path, my_code=text, broken="nonsense")
    for _ in range(2):  # the second time too: half a module is not kept
        with pytest.raises(SpecError, match="model.arch: importing 'my_code' fails: ") as caught:
            load("my_code:build", tmp_path)
        assert reason in caught.value.message


def test_no_such_function(tmp_path):
    write(tmp_path, my_code="def build_net(): pass\nlr = 0.1\n")
    with pytest.raises(SpecError, match="my_code.py' has no function 'build_nets'") as caught:
        load("my_code:build_nets", tmp_path)
    assert caught.value.hint == "did you mean 'build_net'?"
    with pytest.raises(SpecError, match="'lr' in '.*my_code.py' is a float, wanted a function"):
        load("my_code:lr", tmp_path)


FAULTS = """\
import json, sys, torch
def deep(): return json.loads("{")
def leaves(): sys.exit(3)
def long(): raise ValueError("first\\nsecond")
def silent(): assert False
def outer(): return silent()
def hungry(): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
def bug(): raise RuntimeError("the buffer is not allocated yet, though it is out of memory's way")
"""


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("deep", "my_code.py:2: JSONDecodeError: Expecting property name .*"),
        ("leaves", "my_code.py:3: SystemExit: 3"),
        ("long", "my_code.py:4: ValueError: first"),
        ("outer", "my_code.py:5: AssertionError"),
        ("bug", "my_code.py:8: RuntimeError: the buffer is not allocated yet, .*"),
    ],
)
def test_a_function_that_fails_says_where_in_the_users_file(tmp_path, function, reason):
    write(tmp_path, my_code=FAULTS)
    with pytest.raises(SpecError, match=f"^it fails at .*{reason}$") as caught:
        call_function(load(f"my_code:{function}", tmp_path), folder=tmp_path, name="it", hint="mend it")
    assert caught.value.hint == "mend it"


def test_a_library_s_function_that_fails_has_no_place_in_a_file(tmp_path):
    with pytest.raises(SpecError, match="^it fails: TypeError: "):
        call_function(len, 5, folder=tmp_path, name="it", hint="mend it")


def test_want_of_memory_is_not_the_functions_fault(tmp_path):
    write(tmp_path, my_code=FAULTS)
    with pytest.raises(RuntimeError, match="out of memory"):
        call_function(load("my_code:hungry", tmp_path), folder=tmp_path, name="it", hint="")
    with pytest.raises(RuntimeError, match="allocate memory"):
        call_function(torch.empty, 1 << 60, folder=tmp_path, name="it", hint="")


LAYERS = "class Block: pass"
NET = """
from ..layers import Block
from {name}.layers import Block as Same
def build(): return isinstance(Block(), Same)
"""


def test_a_package_that_names_itself_is_imported_once(tmp_path):
    write(tmp_path / "my_pkg", __init__="", layers=LAYERS)
    write(tmp_path / "my_pkg" / "models", __init__="", net=NET.format(name="my_pkg"))
    assert load("my_pkg.models.net:build", tmp_path)()


def test_a_package_that_is_installed_too_is_the_one_beside_the_spec(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    write(tmp_path / "site" / "my_pkg", __init__="", layers="")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = tmp_path / "spec"
    folder.mkdir()
    write(folder / "my_pkg", __init__="", layers=LAYERS)
    write(folder / "my_pkg" / "models", __init__="", net=NET.format(name="my_pkg"))
    for _ in range(2):
        assert load("my_pkg.models.net:build", folder)()
    monkeypatch.undo()


def test_a_package_that_cannot_have_its_name_must_not_use_it(tmp_path):
    write(tmp_path / "json", __init__="", layers=LAYERS)  # as one of Python's own
    write(tmp_path / "json" / "models", __init__="", net=NET.format(name="json"))
    with pytest.raises(SpecError, match="importing 'json.models.net' fails: .*No module named 'json.layers'"):
        load("json.models.net:build", tmp_path)
