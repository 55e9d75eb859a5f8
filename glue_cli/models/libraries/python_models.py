"""The user's own models: a function that the spec names returns an `nn.Module`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.nearest import did_you_mean
from glue_cli.foundation.user_code import call_function, load_function


def find_python(location: str, args: Mapping[str, Any], folder: Path) -> Callable[[], Any]:
    """Return a function that calls `python:MODULE:FUNCTION` with `args` as keyword arguments.

    Args:
        folder: the folder in which the module is looked up first.
    Raises:
        SpecError: there is no such function, or it does not take these arguments; every fault is listed.
    """
    function = load_function(location, folder, key="model.arch")
    _check_arguments(location, function, args)
    return partial(
        call_function,
        partial(function, **args),
        folder=folder,
        name=f"model.arch 'python:{location}'",
        hint="correct the function or model.args",
    )


def _check_arguments(location: str, function: Callable[..., Any], args: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    parameters = signature.parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    faults = []
    for name in args:
        if name not in named and not takes_any:
            fault = f"model.args.{name}: 'python:{location}' has no argument '{name}'; {did_you_mean(name, named)}"
            faults.append(fault.removesuffix("; "))
    faults += [f"model.args.{p.name}: missing" for p in named.values() if p.default is p.empty and p.name not in args]
    if faults:
        raise SpecError(
            faults[0] if len(faults) == 1 else f"model.args: {len(faults)} arguments do not fit 'python:{location}'",
            items=faults if len(faults) > 1 else (),
            hint=f"the function takes {signature}",
        )
