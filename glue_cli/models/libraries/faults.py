"""What the adapters to other libraries share: imports, calls and their faults, as errors that say what to do next."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

from glue_cli.foundation.errors import GlueError, SpecError
from glue_cli.foundation.memory import is_out_of_memory

EXTRAS = {"torchvision": "vision", "timm": "timm", "transformers": "hf"}  # library -> the extra that brings it


def import_library(library: str, arch: str) -> ModuleType:
    """Import one of the libraries of `EXTRAS`.

    Raises:
        SpecError: it or what it needs is not installed, or does not fit the rest; the hint says how to mend that.
    """
    try:
        return importlib.import_module(library)
    except Exception as error:  # a library that does not fit its neighbours may raise anything
        raise import_error(library, arch, error) from error


def import_error(library: str, arch: str, error: Exception) -> SpecError:
    """Return the error about a failed import, which some libraries make late, with the way to mend it."""
    causes = list(_causes(error))
    if any("operator torchvision::" in str(cause) for cause in causes):
        return _misfit_of_torchvision(arch)
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
    """Return the arguments without `names`, by which a library would fetch weights.

    Raises:
        SpecError: one of them is set.
    """
    for name in names:
        if args.get(name):
            raise SpecError(
                f"model.args.{name}: '{arch}' starts from fresh weights, glue downloads none",
                hint="name a checkpoint on disk in experts.init",
            )
    return {name: value for name, value in args.items() if name not in names}


def unknown_name(arch: str, library: str, name: str, known: Collection[str]) -> SpecError:
    """Return the error about a name that a library does not have, with the nearest that it has."""
    near = difflib.get_close_matches(name, known, n=3)
    guess = "did you mean " + " or ".join(f"'{other}'" for other in near) + "?"
    return SpecError(
        f"model.arch '{arch}': {library} has no model '{name}'",
        hint=guess if near else f"{library} has {len(known)} models, such as '{min(known)}'",
    )


def call_library(arch: str, function: Callable[..., Any], args: Mapping[str, Any], accepted: Collection[str]) -> Any:
    """Return what a library's function builds.

    Args:
        accepted: names of arguments, for the hint.
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
        near = difflib.get_close_matches(blamed[0], accepted, n=1) if blamed else []
        guess = f"did you mean '{near[0]}'? " if near else ""
        raise SpecError(
            f"model.args do not fit '{arch}': {reason_of(error)}",
            hint=f"{guess}it takes {', '.join(accepted)}" if accepted else "set model.args to what the library takes",
        ) from error


def accepted_names(builder: Callable[..., Any]) -> list[str]:
    """Return the names of a builder's arguments, and of those that it passes on to the class that it returns."""
    signature = inspect.signature(builder)
    parameters = list(signature.parameters.values())
    if isinstance(signature.return_annotation, type):
        parameters += inspect.signature(signature.return_annotation).parameters.values()
    named = (p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    return list(dict.fromkeys(named))


def reason_of(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0].rstrip('.')}" if said else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the first cause last."""
    current: BaseException | None = error
    while current:
        yield current
        current = current.__cause__ or current.__context__


def _misfit_of_torchvision(arch: str) -> SpecError:
    import torch

    build = torch.__version__.partition("+")[2]  # such as cpu or cu130; none in PyPI's own builds
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return SpecError(
        f"model.arch '{arch}' imports torchvision, and the one installed was built for another torch than"
        f" {torch.__version__}",
        hint=f"pip install --force-reinstall --no-deps torchvision{index}",
    )
