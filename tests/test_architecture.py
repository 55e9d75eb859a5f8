"""The floors of the tree: who may import whom, who prints, and what the documents promise."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glue_cli

ROOT = Path(glue_cli.__file__).parent
PROJECT = Path(__file__).parents[1]
FLOORS = [
    {"foundation"},
    {"checkpoints", "running", "spec"},
    {"blend", "models", "data", "results"},
    {"search", "report"},
    {"methods"},
    {"plans"},
    {"workflows"},
    {"cli"},
]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
EXTRAS = ["numpy", "scipy", "matplotlib", "PIL", "torchvision", "timm", "transformers", "tokenizers", "datasets"]
EXTRAS += ["peft", "huggingface_hub", "torchmetrics", "cmaes", "numba"]
LARGEST_SHARE = 0.18  # of all lines, that a folder has
MODULES = sorted(ROOT.rglob("*.py"))


def imported(tree):
    """Yield the full name of everything that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else None


def test_every_part_has_a_floor():
    assert {part_of(path) for path in MODULES} - {None} == set(FLOOR_OF)


def name_of(path):
    return ".".join(("glue_cli", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported_modules(path):
    """Return the modules of glue that a module imports: with `from package import module`, that module."""
    known = {name_of(module) for module in MODULES}
    found = [name for name in imported(parse(path)) if name in known]
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)} - {name_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards_only(path):
    part = part_of(path)
    for name in imported(parse(path)):
        if part and name.startswith("glue_cli."):
            other = name.split(".")[1]
            if other != part and other in FLOOR_OF:
                assert FLOOR_OF[other] < FLOOR_OF[part], f"{path} imports {name}"


def test_no_module_is_in_a_circle():
    left = {name_of(path): imported_modules(path) for path in MODULES}
    while leaves := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in leaves}
    assert not left, "these import each other, or modules that do"


def test_no_folder_is_a_hall():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    for part in FLOOR_OF:
        assert sum(n for path, n in lines.items() if part_of(path) == part) < LARGEST_SHARE * sum(lines.values()), part


def test_plans_need_no_torch():
    plans = [name_of(path) for path in MODULES if part_of(path) == "plans"]
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {plans}]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_all_modules_but_a_method_are_imported_without_extras():
    names = [name_of(path) for path in MODULES if path.stem not in ("__main__", "cmaes")]
    code = (
        f"import sys, importlib; sys.modules.update(dict.fromkeys({EXTRAS})); [*map(importlib.import_module, {names})]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120, check=True)


def test_the_tests_mirror_the_tree():
    folders = {path.relative_to(ROOT).parent for path in MODULES}
    tests = PROJECT / "tests"
    for path in tests.rglob("test_*.py"):
        folder = path.relative_to(tests).parent
        others = {Path("examples"), Path("faults")}
        assert folder in folders | others, f"{path} tests nothing that lies in such a folder"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_knows_typer_and_rich(path):
    foreign = {name.split(".")[0] for name in imported(parse(path))} & {"typer", "rich", "click", "argparse"}
    assert not foreign or part_of(path) == "cli"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_prints_exits_and_reads_the_environment(path):
    if part_of(path) in ("cli", None):
        return
    for node in ast.walk(parse(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print", "exit", "quit")
        ):
            assert any(keyword.arg == "file" for keyword in node.keywords), f"{path}:{node.lineno} prints or exits"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            forbidden = ("os.environ", "os.getenv", "sys.exit", "sys.argv", "sys.stdout", "sys.stderr", "sys.stdin")
            assert name not in forbidden, f"{path}:{node.lineno} uses {name}"


def test_commands_do_not_import_each_other():
    commands = {"train_expert", "mix", "finetune", "evaluate", "report"}
    for path in MODULES:
        folder, name, *_ = (*path.relative_to(ROOT).with_suffix("").parts, "")
        if folder in ("cli", "workflows") and name in commands:
            others = {f"glue_cli.{folder}.{other}" for other in commands - {name}}
            assert not others & set(imported(parse(path))), path


def test_no_module_is_a_drawer_for_everything():
    for path in MODULES:
        assert path.stem not in ("utils", "common", "helpers", "misc")
        assert len(path.read_text(encoding="utf-8").splitlines()) < 600


def test_the_version_is_that_of_the_changelog():
    top = re.search(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert top and top[1] == glue_cli.__version__


def commands():
    import typer

    from glue_cli.cli.app import app

    return typer.main.get_command(app).commands


def test_every_command_and_option_has_help():
    for name, command in commands().items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_an_option_means_the_same_in_every_command():
    meanings = {}
    for command in commands().values():
        for option in command.params:
            if option.name not in ("output", "help"):
                for word in option.opts:
                    assert meanings.setdefault(word, option.help) == option.help


def test_the_readme_mentions_every_command():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    for name in commands():
        assert f"glue {name}" in text


def test_the_top_level_holds_what_the_design_says():
    wanted = {"pyproject.toml", "glue_cli", "tests", "examples", "README.md", "CHANGELOG.md", "LICENSE"}
    if not (PROJECT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    if listed.returncode != 0:
        pytest.skip("there is no git")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= wanted
