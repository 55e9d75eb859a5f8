"""The model and examples that a blend's BatchNorm statistics were taken with, so that they can be taken again."""

from collections.abc import Mapping
from typing import Any

from glue_cli.data.identity import identity_of
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.spec.schema import Spec


def identity(spec: Spec, examples: Examples) -> dict[str, Any]:
    """Identify the model and the examples that statistics are taken with, in the same way on every machine."""
    args = {
        name: value for name, value in spec.model.args.items() if name != "path"
    }  # a path, which differs between machines
    return {"arch": spec.model.arch, "args": args, "batch_size": spec.mix.batch_size, "data": identity_of(examples)}


def check_same(actual: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Check that statistics are taken again with the same model and examples as before.

    Raises:
        SpecError, DataError: they are not.
    """
    hint = "statistics come out the same only with the spec and the data that the blend was made with"
    for key in ("arch", "args"):
        if actual[key] != recorded[key]:
            raise SpecError(f"model.{key} is {actual[key]}, the blend was refreshed with {recorded[key]}", hint=hint)
    if actual["data"] != recorded["data"]:
        raise DataError(
            "the target's examples are not those that the blend was refreshed on:"
            f" their sha256 is {actual['data']}, wanted {recorded['data']}",
            hint=hint,
        )
