"""The files of the user's own modules: those that the spec names, and all that these import from beside them."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def files_of_modules(names: Iterable[str], folder: Path) -> list[Path]:
    """Return the files in `folder` of modules and of what they import, also inside of functions; sorted.

    What is not there, such as libraries, is left out, as is what a file imports by a name that it makes up.

    Args:
        names: of modules, dotted.
    """
    found: set[Path] = set()
    left = list(names)
    while left:
        for path, package in _files_of(left.pop(), folder):
            if path not in found:
                found.add(path)
                left += _imported_by(path, package)
    return sorted(found)


def _files_of(name: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files that importing a module executes, each with the name of its package."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:n])
        for path, package in (
            (place / "__init__.py", ".".join(parts[:n])),
            (place.with_name(f"{place.name}.py"), ".".join(parts[: n - 1])),
        ):
            if path.is_file():
                yield path, package


def _imported_by(path: Path, package: str) -> Iterator[str]:
    """Yield the names of modules that a file may import; some of them may be functions."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # importing it says what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            own = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*own, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
