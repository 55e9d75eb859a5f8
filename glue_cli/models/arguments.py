"""Check `model.args` against the signature of the architecture's function, whose annotations give the valid ranges."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.nearest import did_you_mean

# The upper bounds are far above any sensible model; beyond them torch overflows instead of running out of memory.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Multiplier = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

_STRICT = ConfigDict(strict=True)  # neither "10" nor True is a number


def check_arguments(arch: str, architecture: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments converted to the right types (1 for a float becomes 1.0), in the given order.

    Args:
        arch: the architecture's name, for the message.
        architecture: a function whose parameters all have an annotation and a default.
        args: argument name -> value, as read from the spec.
    Raises:
        SpecError: a name or a value is wrong; every fault is listed, and the hint says what the architecture accepts.
    """
    parameters = inspect.signature(architecture).parameters
    checked: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in args.items():
        if name not in parameters:
            guess = did_you_mean(name, parameters)
            faults.append(f"model.args.{name}: '{arch}' has no argument '{name}'; {guess}".removesuffix("; "))
            continue
        try:
            adapter = TypeAdapter[Any](parameters[name].annotation, config=_STRICT)
            checked[name] = adapter.validate_python(value)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
            faults.append(f"model.args.{name}: got {value!r}, wanted {wanted}")
    if faults:
        raise SpecError(
            faults[0] if len(faults) == 1 else f"model.args: {len(faults)} arguments do not fit '{arch}'",
            items=faults if len(faults) > 1 else (),
            hint=f"'{arch}' accepts {_accepted(parameters)}",
        )
    return checked


def _accepted(parameters: Mapping[str, inspect.Parameter]) -> str:
    return ", ".join(f"{name}={parameter.default!r}" for name, parameter in parameters.items())
