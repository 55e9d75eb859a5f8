"""The user's own functions, which the spec names as `python:MODULE:FUNCTION`; only this module runs foreign code."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from glue_cli.foundation.errors import GlueError, SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.nearest import did_you_mean

PREFIX = "python:"


def load_function(location: str, folder: Path, *, key: str) -> Callable[..., Any]:
    """Import a function that the user has written.

    Args:
        location: `MODULE:FUNCTION`, the text after `python:`. A module in `folder` has precedence over an installed
            one; its file is executed only once.
        folder: the folder of the spec; while a module is imported, it can import other modules from there. The caller
            lets the function do so as well, by `importable` or `call_function`.
        key: the key of the spec that names the function, for the messages.
    Raises:
        SpecError: there is no such module or function, or the module cannot be imported.
    """
    name, _, function = location.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in name.split(".")):
        raise SpecError(
            f"{key}: found '{PREFIX}{location}', wanted {PREFIX}MODULE:FUNCTION",
            hint=f"the function 'build' of 'my_code.py' is {PREFIX}my_code:build",
        )
    module = _import(name, folder.resolve(), key)
    value = getattr(module, function, None)
    if callable(value):
        return value  # type: ignore[no-any-return]
    where = f"'{getattr(module, '__file__', None) or name}'"
    if value is not None:
        raise SpecError(
            f"{key}: '{function}' in {where} is a {type(value).__name__}, wanted a function",
            hint=f"name a function in {key}",
        )
    known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
    raise SpecError(
        f"{key}: {where} has no function '{function}'",
        hint=did_you_mean(function, known) or f"write it there, or name another in {key}",
    )


def call_function(function: Callable[..., Any], *args: Any, folder: Path, name: str, hint: str) -> Any:
    """Call a function that the user has written, and return its result.

    Args:
        folder: as of `load_function`.
        name: what the function is, for the message.
    Raises:
        SpecError: it fails; the message names the line in the user's file, even if the error comes from a library.
    """
    try:
        with importable(folder):
            return function(*args)
    except GlueError:
        raise
    except (Exception, SystemExit) as error:  # it may raise anything
        if is_out_of_memory(error):
            raise
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if frame.filename == frames[0].filename]
        where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise SpecError(f"{name} fails{where}: {reason}", hint=hint) from error


def _import(name: str, folder: Path, key: str) -> ModuleType:
    top, dot, rest = name.partition(".")
    path = next((path for path in (folder / top / "__init__.py", folder / f"{top}.py") if path.is_file()), None)
    # Two folders may both have a `model.py`, and a file may have a library's name: one of them gets a unique name.
    is_itself = path is None or _is_free(top, path)
    alias = top if is_itself else f"_glue_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{top}"
    with importable(folder):
        try:
            if path and alias not in sys.modules:
                _execute(path, alias)
            module = importlib.import_module(f"{alias}{dot}{rest}")
            if path and getattr(sys.modules.get(top), "__file__", None) == str(path):
                return importlib.import_module(name)  # a package that imports itself by its own name is this one
            return module
        except (Exception, SystemExit) as error:  # executing a module may raise any error
            if isinstance(error, ModuleNotFoundError) and f"{alias}{dot}{rest}.".startswith(f"{error.name}."):
                if top != name and rest.split(".")[0] == "py":
                    raise SpecError(
                        f"{key}: '{name}' ends in '.py'", hint=f"name the module without it: {top}"
                    ) from None
                raise SpecError(
                    f"{key}: there is no module '{name}' in '{folder}', and none is installed",
                    hint=f"put '{name.replace('.', '/')}.py' beside the spec, or correct {key}",
                ) from None
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
            own = [f"{frame.filename}:{frame.lineno}: " for frame in frames if frame.filename != __file__]
            reason = f"{own[-1] if own else ''}{type(error).__name__}: {error}"
            raise SpecError(f"{key}: importing '{name}' fails: {reason}", hint="correct the module") from error


def _is_free(name: str, path: Path) -> bool:
    """Tell whether a module may have its own name: no other one is imported or installed under it."""
    if loaded := sys.modules.get(name):
        return getattr(loaded, "__file__", None) == str(path)
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # something odd has the name
        return False
    return found is None or found.origin == str(path)


def _execute(path: Path, alias: str) -> None:
    """Import a module or package from its file, under another name."""
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the user's code, while the block runs, import modules that lie beside the spec."""
    importlib.invalidate_caches()
    beside = str(folder.resolve())
    sys.path.insert(0, beside)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have changed sys.path itself
            sys.path.remove(beside)
