"""The files of the user's own modules: those that the spec names, and all that these import from beside them."""

import ast
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

_MOST = 200  # files that are looked into: a library that lies beside the spec has thousands


@cache
def files_of_modules(names: tuple[str, ...], folder: Path) -> Sequence[Path]:
    """Return the files in `folder` of modules and of what they import, also inside of functions; sorted.

    What is not there, such as libraries, is left out, as is what a file imports by a name that it makes up, and what
    is farther than the first 200 files. A process looks once.

    Args:
        names: of modules, dotted.
    """
    found: dict[Path, None] = {}
    left = list(names)
    while left and len(found) < _MOST:
        for path, package in _files_of(left.pop(0), folder):
            if path not in found:
                found[path] = None
                left += _imported_by(path, package)
    return tuple(sorted(found))


def _files_of(name: str, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the files that importing a module executes, each with the parts of its package's name."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1 if all(parts) else 0):
        place = folder.joinpath(*parts[:n])
        for path, package in (
            (place / "__init__.py", parts[:n]),
            (place.parent / f"{parts[n - 1]}.py", parts[: n - 1]),
        ):
            if path.is_file():
                yield path, package


def _imported_by(path: Path, package: list[str]) -> Iterator[str]:
    """Yield the names of modules that a file may import; some of them may be functions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing it warns
            tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError):  # importing it says what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package) + (node.level == 0):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
