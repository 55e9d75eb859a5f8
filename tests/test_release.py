"""The sdist and the wheel: what they hold, and that glue runs from them in an environment of its own.

torch and the other packages that glue needs are those of the running environment; the new one sees them by a path
file.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glue_cli

PROJECT = Path(__file__).parents[1]
FOLDERS = ("glue_cli", "tests", "examples")
FILES = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".gitignore", "PKG-INFO"}

pytest.importorskip("build", reason="makes the sdist and the wheel")
pytest.importorskip("hatchling", reason="makes the sdist and the wheel")


def run(*command, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, **options)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def modules():
    return {str(path.relative_to(PROJECT)) for path in (PROJECT / "glue_cli").rglob("*.py")}


def test_the_sdist_holds_what_is_needed_and_nothing_else(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert modules() <= names and FILES - {".gitignore"} <= names
    assert {name.partition("/")[0] for name in names} <= {*FOLDERS, *FILES}
    traces = ("__pycache__", ".pytest_cache", ".venv", ".state", "runs")
    assert not [name for name in names if any(part.endswith(traces) for part in name.split("/"))]


def test_the_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(metadata).decode())
    assert {name for name in names if ".dist-info/" not in name} == modules()
    assert (said["Name"], said["Version"]) == ("glue-cli", glue_cli.__version__)
    assert said["Requires-Python"] == ">=3.11" and said["License-Expression"] == "MIT"
    assert said.get_payload().startswith("# ")  # the README, which the package's page shows


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of programs of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[1])
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_packages_of_torch()))
    (packages / "running.pth").write_text("\n".join(paths) + "\n")
    return folder / "bin"


def _packages_of_torch():
    """Yield the folder that torch lies in: another environment's, where the running one sees that."""
    yield str(Path(torch.__file__).parents[1])


def test_the_installed_glue_runs(installed, tmp_path):
    code = "import glue_cli; print(glue_cli.__file__)"
    where = run(installed / "python", "-c", code, cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent)
    assert run(installed / "glue", "--version", cwd=tmp_path) == f"glue {glue_cli.__version__}\n"
    commands = run(installed / "glue", "--help", cwd=tmp_path)
    assert all(command in commands for command in ("train-expert", "check", "mix", "finetune", "evaluate"))
    for k, name in enumerate(("a", "b")):
        save_file({"w.weight": torch.arange(6.0).view(2, 3) + k}, tmp_path / f"{name}.safetensors")
    run(installed / "glue", "check", "a.safetensors", "b.safetensors", cwd=tmp_path)
    run(installed / "glue", "mix", "--alpha", "0.5,0.5", "a.safetensors", "b.safetensors", cwd=tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "prior.safetensors")["w.weight"][0, 0], torch.tensor(0.5))
    spec = PROJECT / "examples" / "digits" / "glue.yaml"
    small = ("--spec", spec, "--set", "train.epochs=1", "--set", "model.args.width=4")
    run(installed / "glue", "train-expert", "--expert", "0", *small, "-o", "c.safetensors", "-q", cwd=tmp_path)
    shown = run(installed / "glue", "evaluate", "c.safetensors", *small, "-q", cwd=tmp_path)
    assert "c.safetensors" in shown and "accuracy" in shown
