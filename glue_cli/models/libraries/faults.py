"""Import other libraries and call them, and turn their faults into errors that say what to do next."""

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

from glue_cli.foundation.errors import GlueError, SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.nearest import did_you_mean

EXTRAS = {"torchvision": "vision", "timm": "timm", "transformers": "hf"}  # library -> the extra that installs it


def import_library(library: str, arch: str) -> ModuleType:
    """Import one of the libraries of `EXTRAS`.

    Raises:
        SpecError: the library, or one that it needs, is missing or incompatible; the hint says what to install.
    """
    try:
        return importlib.import_module(library)
    except Exception as error:  # importing a library beside an incompatible one may raise any error
        raise import_error(library, arch, error) from error


def import_error(library: str, arch: str, error: Exception) -> SpecError:
    """Return the error for a failed import, with a hint what to install.

    Some libraries import others only when they are used, so that this is needed after their import too.
    """
    causes = list(_causes(error))
    if any("operator torchvision::" in str(cause) for cause in causes):
        return _incompatible_torchvision(arch)
    missing = [cause.name for cause in causes if isinstance(cause, ModuleNotFoundError) and cause.name]
    extra = f"'glue-cli[{EXTRAS[library]}]'"
    if missing:
        return SpecError(
            f"model.arch '{arch}' needs {missing[-1]}, which is not installed", hint=f"pip install {extra}"
        )
    return SpecError(
        f"model.arch '{arch}' cannot import {library}: {reason_of(error)}", hint=f"pip install -U {extra}"
    )


def refuse_downloads(arch: str, args: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the arguments without `names`, which would make a library download weights.

    Raises:
        SpecError: one of them is set.
    """
    for name in names:
        if args.get(name):
            raise SpecError(
                f"model.args.{name}: '{arch}' starts from fresh weights; glue downloads none",
                hint="name a checkpoint on disk in experts.init",
            )
    return {name: value for name, value in args.items() if name not in names}


def unknown_name(arch: str, library: str, name: str, known: Collection[str]) -> SpecError:
    """Return the error for a name that a library does not have, with similar names that it has."""
    return SpecError(
        f"model.arch '{arch}': {library} has no model '{name}'",
        hint=did_you_mean(name, known, most=3) or f"{library} has {len(known)} models, such as '{min(known)}'",
    )


def call_library(arch: str, function: Callable[..., Any], args: Mapping[str, Any], accepted: Collection[str]) -> Any:
    """Call a library's function and return what it builds.

    Args:
        accepted: the names of the arguments that it takes, for the hint.
    Raises:
        SpecError: the arguments are wrong.
    """
    try:
        return function(**args)
    except (GlueError, ImportError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        blamed = [name for name in args if f"'{name}'" in str(error)]
        takes = f"{did_you_mean(blamed[0], accepted) if blamed else ''} it takes {', '.join(accepted)}"
        raise SpecError(
            f"model.args do not fit '{arch}': {reason_of(error)}",
            hint=takes.lstrip() if accepted else "set model.args to what the library takes",
        ) from error


def accepted_names(builder: Callable[..., Any]) -> list[str]:
    """Return the names of a builder's arguments and of the arguments of the class that it returns."""
    signature = inspect.signature(builder)
    parameters = list(signature.parameters.values())
    if isinstance(signature.return_annotation, type):
        parameters += inspect.signature(signature.return_annotation).parameters.values()
    named = (p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    return list(dict.fromkeys(named))


def reason_of(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it, the first cause last."""
    current: BaseException | None = error
    while current:
        yield current
        current = current.__cause__ or current.__context__


def _incompatible_torchvision(arch: str) -> SpecError:
    import torch

    build = torch.__version__.partition("+")[2]  # such as cpu or cu130; empty in PyPI's builds
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return SpecError(
        f"model.arch '{arch}' imports torchvision, and the installed one was built for another torch than"
        f" {torch.__version__}",
        hint=f"pip install --force-reinstall --no-deps torchvision{index}",
    )
